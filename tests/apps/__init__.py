"""Release directories of real servers, each with the ways a release can be broken.

`mini(directory)` and its sisters write a release and say by which command it runs. A release's behaviour is
written into its files, never into the environment: two releases differ by what was deployed, as in life.

    good                    serves and drains without loss
    raises_at_import        a traceback, exit code 1
    exits_zero              exits with 0 before it serves
    never_ready             runs, says nothing, accepts nothing
    never_serves            runs and says READY=1 (where the server can), accepts nothing
    crash_in_soak           serves, then exits with 3 after 0.3 s
    health_500              serves, but /healthz answers 500
    error_500               /healthz is fine, every page answers 500
    third_worker_crashes    raises when DEPLOYER_WORKER is 3
    ignores_sigterm         serves on after SIGTERM, until SIGKILL
    missing_program         the command's program is not in the release
    slow_start              needs `boot_s` (0.3 s unless given) before it serves
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPO = HERE.parent.parent
BIN = Path(sys.executable).parent  # absolute programs: no test depends on the PATH it is run with
SLOW_START_S = 0.3

BEHAVIOURS = (
    "good",
    "raises_at_import",
    "exits_zero",
    "never_ready",
    "never_serves",
    "crash_in_soak",
    "health_500",
    "error_500",
    "third_worker_crashes",
    "ignores_sigterm",
    "missing_program",
    "slow_start",
)


@dataclass(frozen=True)
class App:
    """A release directory and how its workers are run."""

    directory: Path
    command: str  # of [worker], with deployer's placeholders
    ready: str  # the way of telling readiness that is true of this server

    def toml(
        self,
        address: str,
        *,
        name: str = "app",
        count: int = 2,
        soak: str = "300ms",
        ready_timeout: str = "5s",
        drain_timeout: str = "10s",
        health: str = "/healthz",
        interval: str = "200ms",
        worker_extra: str = "",
        extra: str = "",
    ) -> str:
        """A whole deployer.toml for it. `worker_extra` is put into [worker], `extra` at the end."""
        return (
            f"name = {json.dumps(name)}\n\n"
            f"[worker]\ncommand = {json.dumps(self.command)}\ncount = {count}\nready = {json.dumps(self.ready)}\n"
            f"ready_timeout = {json.dumps(ready_timeout)}\ndrain_timeout = {json.dumps(drain_timeout)}\n"
            f"{worker_extra}\n\n"
            f"[[listen]]\naddress = {json.dumps(address)}\n\n"
            f"[health]\nhttp = {json.dumps(health)}\ninterval = {json.dumps(interval)}\n\n"
            f"[rollout]\nsoak = {json.dumps(soak)}\n{extra}"
        )


def mini(directory: Path, behaviour: str = "good", *, label: str = "hello", boot_s: float | None = None) -> App:
    """The default of fast tests: standard library only, -S -E keep site-packages out of its start."""
    _write(directory, {"server.py": "mini.py"}, behaviour, label, boot_s)
    return _app(directory, f"{sys.executable} -S -E server.py", behaviour, "notify")


def gunicorn(directory: Path, behaviour: str = "good", *, label: str = "hello", boot_s: float | None = None) -> App:
    """gunicorn's threads. No -b: the socket comes by LISTEN_FDS, or gunicorn would unlink a unix socket at its
    end, and would take the descriptor twice (see tests/integration/test_servers.py). Not ready = "notify": its
    master says READY=1 before a worker has imported the app."""
    _write(directory, {"app.py": "wsgi.py", "gunicorn.conf.py": "gunicorn_conf.py"}, behaviour, label, boot_s)
    command = f"{BIN}/gunicorn -w 1 -k gthread --threads 8 --keep-alive 75 --timeout 0 --no-control-socket app:app"
    return _app(directory, command, behaviour, "listen")


def uvicorn(directory: Path, behaviour: str = "good", *, label: str = "hello", boot_s: float | None = None) -> App:
    """Plain uvicorn: it ends idle keep-alive connections at once on SIGTERM, whatever the supervisor does."""
    _write(directory, {"app.py": "asgi.py"}, behaviour, label, boot_s)
    command = f"{BIN}/uvicorn --fd {{fd}} --log-level warning --timeout-keep-alive 75 app:app"
    return _app(directory, command, behaviour, "listen")


def node(directory: Path, behaviour: str = "good", *, label: str = "hello", boot_s: float | None = None) -> App:
    """Node's http server with a drain of ten lines."""
    _write(directory, {"server.js": "server.js"}, behaviour, label, boot_s)
    return _app(directory, "node server.js", behaviour, "listen")


def sample(directory: Path) -> App:
    """The sample app as it is in the repository."""
    shutil.copytree(REPO / "sample_app", directory, ignore=shutil.ignore_patterns("__pycache__", "demo.py"))
    return App(directory, f"{sys.executable} serve.py", "notify")


SERVERS: dict[str, Callable[..., App]] = {
    "mini": mini,
    "gunicorn": gunicorn,
    "uvicorn": uvicorn,
    "node": node,
}


def _write(directory: Path, files: dict[str, str], behaviour: str, label: str, boot_s: float | None) -> None:
    """The files of a release (target name: template's name), and what makes this one differ."""
    assert behaviour in BEHAVIOURS, f"no such behaviour: {behaviour!r}"
    if boot_s is None:
        boot_s = SLOW_START_S if behaviour == "slow_start" else 0.0
    directory.mkdir(parents=True, exist_ok=True)
    for name, template in files.items():
        shutil.copyfile(HERE / template, directory / name)
    if "server.js" in files:
        values = {"kind": behaviour, "label": label, "boot_s": boot_s}
        (directory / "behaviour.json").write_text(json.dumps(values))
        return
    (directory / "behaviour.py").write_text(f"BEHAVIOUR = {behaviour!r}\nLABEL = {label!r}\nBOOT_S = {boot_s!r}\n")


def _app(directory: Path, command: str, behaviour: str, ready: str) -> App:
    return App(directory, "./no-such-server" if behaviour == "missing_program" else command, ready)
