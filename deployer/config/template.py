"""The deployer.toml that `deployer init` writes: every section, explained in comments, ready for `load`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from deployer.config.command import escape
from deployer.config.rules import slug


@dataclass(frozen=True)
class Detected:
    """What was found in a directory. Without `command` and `app` a person must write one."""

    kind: Literal["procfile", "node", "django", "asgi", "wsgi", "unknown"]
    found: str
    command: str | None = None
    app: str | None = None
    env: tuple[tuple[str, str], ...] = ()
    health: str | None = None
    health_seen_in: str | None = None
    notes: tuple[str, ...] = ()


_TEMPLATE = """\
# {found}
# Keys that are commented out show their defaults or an example. Check this file with: deployer check
name = {name}
# root = ".deployer"             # where releases, logs and state are kept

[worker]
{notes}{program}
# count = "auto"                 # a number, or "auto": one worker per usable CPU
{env}
# env_file = [".env"]            # files of KEY=VALUE lines
{ready}
# ready_timeout = "60s"          # a worker that is not ready by then has failed
# drain_timeout = "30s"          # from SIGTERM to SIGKILL: time to finish open requests
# stop_signal = "SIGTERM"
# memory_limit = "512M"          # a worker that uses more is replaced, once another serves in its place
# max_age = "24h"                # ... and one that has served for so long
# user = "shop"                  # when started as root
# rlimits = {{ nofile = 65536 }}

[[listen]]
address = "tcp://127.0.0.1:8000" # or "unix:/run/shop.sock", "tcp://[::]:80"
# name = "web"                   # for {{fd:web}}, when there are several [[listen]]
# backlog = 2048

[source]
# path = "."                     # what is deployed: a directory ...
# git = "https://example.com/shop.git"  # ... or a git repository instead
# ref = "main"                   # branch, tag or commit of it
# exclude = ["node_modules"]     # left out of releases

[health]
{health}
# expect = 200
# interval = "5s"
# timeout = "2s"
# unhealthy_after = 3            # failed checks in a row, then the worker is replaced

[rollout]
# preflight = true               # try the new release on a private socket first
# soak = "3s"                    # how long the first new worker must stay healthy before the others follow
# batch = 1                      # workers replaced at once after the first
# max_error_ratio = 0.02         # of an `app`: 5xx to visitors meanwhile, beyond those of the old workers
# on_failure = "revert"          # or "hold": keep the failed worker for inspection
# deadline = "30m"               # a rollout that takes longer is reverted
"""


def render(detected: Detected, name: str) -> str:
    """The text of a deployer.toml for `detected`; `name` (a directory's, say) is made to fit."""
    return _TEMPLATE.format(
        found=_comment(detected.found),
        name=_quoted(slug(name)),
        notes="".join(f"# {_comment(note)}\n" for note in detected.notes),
        program=_program(detected),
        env=_env(detected),
        ready=_ready(detected),
        health=_health(detected),
    )


def plain_command(words: list[str]) -> str:
    """The words as a `command` that means just them: quoted where needed, braces doubled."""
    return " ".join(_shell_word(escape(word)) for word in words)


def _program(detected: Detected) -> str:
    if detected.app is not None:
        note = "# A WSGI or ASGI object, or module:factory(); deployer serves it itself. For a server of yours: command"
        return f"app = {_quoted(detected.app)}\n{note}"
    command = _quoted(detected.command or "") + ("" if detected.command else "   # <- what starts your app")
    fd = "# {fd} is the listening socket, handed down ready for accept(). Also filled in: {worker} and {release}."
    return f"command = {command}\n{fd}"


def _env(detected: Detected) -> str:
    if detected.env:
        pairs = ", ".join(f"{_quoted(key)} = {_quoted(value)}" for key, value in detected.env)
        return f"env = {{ {pairs} }}"
    example = 'NODE_ENV = "production"' if detected.kind == "node" else 'LOG_LEVEL = "info"'
    return f"# env = {{ {example} }}"


def _ready(detected: Detected) -> str:
    if detected.app is not None:
        return '# ready = "notify"               # when it serves; or "http": when [health] http answers'
    if detected.health:
        return 'ready = "http"                   # ready when [health] http answers; or "listen", "notify", "delay"'
    return '# ready = "listen"               # when it accepts connections; or "notify" (sd_notify), "http", "delay"'


def _health(detected: Detected) -> str:
    if detected.health is None:
        return '# http = "/healthz"              # asked before a worker gets visitors, and while it serves'
    seen = f"seen in {_comment(detected.health_seen_in)}" if detected.health_seen_in else "asked while it serves"
    return f"http = {_quoted(detected.health)}   # {seen}"


def _quoted(text: str) -> str:
    # A JSON string is a TOML string but for DEL, which TOML wants escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _comment(text: str | None) -> str:
    return "".join(char if char.isprintable() else " " for char in text or "")


def _shell_word(word: str) -> str:
    """As shlex.quote, but leaving placeholders and URLs bare."""
    if word and all(char.isalnum() or char in "@%+=:,./-_{}~" for char in word):
        return word
    return "'" + word.replace("'", "'\"'\"'") + "'"
