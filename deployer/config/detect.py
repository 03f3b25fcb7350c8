"""What kind of application lies in a directory, for `deployer init`. Reads files; runs and imports nothing of it."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from pathlib import Path

from deployer.config.python_apps import PythonApp, find_python_apps, read_source, source_files
from deployer.config.template import Detected, plain_command, render

__all__ = ["Detected", "detect", "render"]

GUNICORN = "gunicorn -b fd://{fd} -w 1 -k gthread --threads 8"
UVICORN = "uvicorn --fd {fd}"

_HEALTH = re.compile(r"""["'`](/?(?:healthz|health|up|ping)/?)["'`]""")
_HEALTH_ORDER = ("healthz", "health", "up", "ping")
_WEB = re.compile(r"^web[ \t]*:[ \t]*(\S.*)$", re.MULTILINE)
_PORT = re.compile(r"\$\{?PORT\b")
_SHELL = re.compile(r"[|&;<>$`*?()\n]")
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_SETTINGS = re.compile(r"DJANGO_SETTINGS_MODULE\W+[\"']([\w.]+)[\"']")
_ASGI_SETTING = re.compile(r"^ASGI_APPLICATION\s*=", re.MULTILINE)
_SERVER_NOTE = "must be on the PATH of `deployer up`; or write its path, e.g. /srv/shop/.venv/bin/"
_DJANGO = ("Django", "ProtocolTypeRouter")
_ANY_NOTES = (
    "The program must serve on the socket it inherits, descriptor {fd} (also LISTEN_FDS), not on a port of its own.",
)
_NODE_NOTES = (
    "The server must listen on the socket it inherits: server.listen({fd: 3})",
    "For example: server.listen(process.env.LISTEN_FDS ? { fd: 3 } : 8000)",
)


def detect(directory: Path) -> Detected:
    """The application in `directory`: a Procfile's word first, then package.json, Django, and Python sources."""
    detected = _procfile(directory) or _node(directory) or _django(directory) or _python(directory)
    if detected is None:
        return Detected(
            "unknown", "No application was recognised here: fill in `command` in [worker].", notes=_ANY_NOTES
        )
    route, file = _health_route(directory)
    return dataclasses.replace(detected, health=route, health_seen_in=file)


def _procfile(directory: Path) -> Detected | None:
    match = _WEB.search(read_source(directory / "Procfile"))
    if match is None:
        return None
    line = match[1].strip()
    found = f"From the Procfile: web: {line}"
    env, words = _split_environment(line)
    if words and (server := _on_descriptor(words)):
        return Detected("procfile", found, server, env=env, notes=(f"{words[0]} {_SERVER_NOTE}{words[0]}",))
    if _PORT.search(line) or not words:
        note = f"It binds $PORT itself, which workers cannot share. Write a command that serves on {{fd}}: {line}"
        return Detected("procfile", found, env=env, notes=(note,))
    return Detected("procfile", found, _shell_or_plain(line, words), env=env, notes=_ANY_NOTES)


def _split_environment(line: str) -> tuple[tuple[tuple[str, str], ...], list[str]]:
    """`A=1 B=2 program ...` as the variables and the words; without words when a shell is needed to read it."""
    try:
        words = shlex.split(line)
    except ValueError:
        return (), []
    env: list[tuple[str, str]] = []
    while words and _ASSIGNMENT.match(words[0]) and "$" not in words[0]:
        key, _, value = words.pop(0).partition("=")
        env.append((key, value))
    return tuple(env), words


def _on_descriptor(words: list[str]) -> str | None:
    """The command of a known server, with {fd} in place of the address it binds; None for other programs."""
    if any(_SHELL.search(word) for word in words if not _PORT.search(word) and "()" not in word):
        return None
    if words[0] == "gunicorn":
        kept = _without_options(words[1:], "-b", "--bind")
        return f"gunicorn -b fd://{{fd}} {plain_command(kept)}"
    if words[0] == "uvicorn":
        kept = _without_options(words[1:], "--host", "--port", "--uds", "--fd")
        return f"{UVICORN} {plain_command(kept)}"
    return None


def _without_options(words: list[str], *options: str) -> list[str]:
    kept: list[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in options:
            skip = True
        elif not any(_is_joined(word, option) for option in options):
            kept.append(word)
    return kept


def _is_joined(word: str, option: str) -> bool:
    """Whether `word` is the option with its value in one: --bind=X, -bX."""
    return word.startswith(f"{option}=" if option.startswith("--") else option)


def _shell_or_plain(line: str, words: list[str]) -> str:
    """The words; or the line through a shell where it uses one. Descriptors pass through sh."""
    return plain_command(["sh", "-c", line]) if _SHELL.search(line) else plain_command(words)


def _node(directory: Path) -> Detected | None:
    try:
        package = json.loads(read_source(directory / "package.json"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(package, dict):
        return None
    scripts, main = package.get("scripts"), package.get("main")
    start = scripts.get("start") if isinstance(scripts, dict) else None
    if isinstance(start, str) and start.strip():
        env, words = _split_environment(start)
        if words:
            command = _shell_or_plain(start, _node_program(words))
            # npm itself closes inherited descriptors, so its script is run without it.
            return Detected("node", f"From package.json, scripts.start: {start}", command, env=env, notes=_NODE_NOTES)
    if isinstance(main, str) and main and (directory / main).is_file():
        return Detected("node", f"From package.json, main: {main}", plain_command(["node", main]), notes=_NODE_NOTES)
    return None


def _node_program(words: list[str]) -> list[str]:
    """npm looks for programs in node_modules/.bin first; the PATH does not have it."""
    if words[0] in ("node", "sh", "env") or "/" in words[0]:
        return words
    return [f"node_modules/.bin/{words[0]}", *words[1:]]


def _django(directory: Path) -> Detected | None:
    manage = read_source(directory / "manage.py")
    if "django" not in manage.lower():
        return None
    apps = [app for app in find_python_apps(directory) if app.framework in _DJANGO]
    settings = _SETTINGS.search(manage)
    package = settings[1].partition(".")[0] if settings else ""
    wants_asgi = _wants_asgi(directory, settings[1]) if settings else False
    # A project made by startproject has both modules; only one that uses channels needs ASGI, or one that says so.
    apps.sort(key=lambda app: (app.module.partition(".")[0] != package, _django_rank(app, wants_asgi)))
    if not apps:
        return None
    return _served(directory, apps[0], f"A Django project, served by {apps[0].target} ({apps[0].file})")


def _django_rank(app: PythonApp, wants_asgi: bool) -> int:
    return 0 if app.framework == "ProtocolTypeRouter" else 1 if (app.kind == "asgi") is wants_asgi else 2


def _wants_asgi(directory: Path, settings: str) -> bool:
    """startproject writes WSGI_APPLICATION alone; who serves by ASGI adds the other."""
    file = directory / (settings.replace(".", "/") + ".py")
    return _ASGI_SETTING.search(read_source(file)) is not None


def _python(directory: Path) -> Detected | None:
    apps = find_python_apps(directory)
    if not apps:
        return None
    what = "factory" if apps[0].is_factory else "application"
    found = f"{apps[0].framework} {what} {apps[0].target}, found in {apps[0].file}"
    return _served(directory, apps[0], found)


def _served(directory: Path, app: PythonApp, found: str) -> Detected:
    """By deployer's own runtime; by gunicorn where that is configured for it."""
    kind = "django" if app.framework in _DJANGO else app.kind
    target = f"{app.target}()" if app.is_factory else app.target
    if app.kind == "wsgi" and (directory / "gunicorn.conf.py").is_file():
        path = f" --pythonpath {app.search_path}" if app.search_path else ""
        word = f"'{target}'" if app.is_factory else target
        return Detected(kind, found, f"{GUNICORN}{path} {word}", notes=(f"gunicorn {_SERVER_NOTE}gunicorn",))
    env = (("PYTHONPATH", app.search_path),) if app.search_path else ()
    return Detected(kind, found, app=target, env=env)


def _health_route(directory: Path) -> tuple[str | None, str | None]:
    """A route that looks like a health check, and the file it is in; /healthz before /health before the rest."""
    best: tuple[int, str, str] | None = None
    for path in source_files(directory, ".py", ".js", ".mjs", ".cjs", ".ts"):
        relative = str(path.relative_to(directory))
        for match in _HEALTH.finditer(read_source(path)):
            # Only Django's urls.py writes routes without the first slash; elsewhere it is some other word.
            if not match[1].startswith("/") and path.name != "urls.py":
                continue
            rank = _HEALTH_ORDER.index(match[1].strip("/"))
            if best is None or rank < best[0]:
                best = (rank, "/" + match[1].lstrip("/"), relative)
    return (best[1], best[2]) if best else (None, None)
