"""What developers run while they edit, and deployer as one of it: each serves a small app anew after every save.

Each peer has its best way of being told of changes. Their apps have no drain of their own, as a developer's has none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Self

from tests.bench import peers, rivals
from tests.bench.systems import Plan, System
from tests.watchkit import Tree

ONE = Plan(workers=1, boot_s=0.0)
HEAVY = f"import {', '.join(peers.LIBRARIES)}\n"
INSTALLED = '[build]\npython = "pip"\n'  # of ours the packages are where its user has them: in an environment
INSTALL_LIMIT_S = 300.0
PYTHON = """import os
import views


def served():
    body = views.LABEL.encode() + b"\\n"
    return body, [("content-length", str(len(body))), ("x-pid", str(os.getpid()))]


async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError
    body, headers = served()
    headers = [(name.encode(), value.encode()) for name, value in headers]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def wsgi(environ, start_response):
    body, headers = served()
    start_response("200 OK", headers)
    return [body]
"""
NODE = """const http = require('node:http');
const label = require('./views.js');
const server = http.createServer((request, response) => {
  response.setHeader('x-pid', process.pid);
  response.end(`${label}\\n`);
});
const { PORT } = process.env;
if (!PORT) process.on('SIGTERM', () => server.close());
server.listen(PORT ? { host: '127.0.0.1', port: Number(PORT) } : { fd: 3 });
"""


class Tongue:
    """A language's app: its files, and which one a save changes."""

    def __init__(self, name: str, file: str, program: str, views: str, label: str) -> None:
        self.name, self.file, self.program, self.views, self.label = name, file, program, views, label

    def plant(self, directory: Path, label: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / self.file).write_text(self.program)
        self.save(directory, label)

    def save(self, directory: Path, label: str) -> None:
        (directory / self.views).write_text(self.label.format(label))


SMALL = Tongue("small", "app.py", PYTHON, "views.py", "LABEL = '{}'\n")
LARGE = Tongue("heavy", "app.py", HEAVY + PYTHON, "views.py", "LABEL = '{}'\n")
NODES = Tongue("small, Node", "server.js", NODE, "views.js", "module.exports = '{}';\n")


class Reloader(rivals.Peer):
    """`write` is a save, and all of the reload."""

    tongue = SMALL
    kernel = False  # it is told of changes by a package that its users add
    log_level = ""

    def __init__(self, tongue: Tongue | None = None) -> None:
        super().__init__(ONE)
        self.tongue = self.app_of = tongue or type(self).tongue
        self.app = self.tongue.name

    def __enter__(self) -> Self:
        self._paths = [str(peers.libraries())] * (self.tongue is LARGE) + [str(peers.watchers())] * self.kernel
        return super().__enter__()

    def write(self, behaviour: str, label: str) -> None:
        if (self.directory / self.tongue.file).exists():
            self.tongue.save(self.directory, label)
        else:
            self.tongue.plant(self.directory, label)

    def reload(self) -> str:
        return ""

    def begin(self, *words: str, **env: str) -> None:
        path = {"PYTHONPATH": os.pathsep.join(self._paths)} if self._paths else {}
        self.spawn([str(self.peer.program), *words, *self.settings.split()], **path, **env)


class Uvicorn(Reloader):
    name, options, kernel = "uvicorn --reload (watchfiles)", "--log-level warning --no-access-log", True
    find = staticmethod(peers.uvicorn)

    def start(self) -> None:
        self.begin("app:app", "--reload", "--port", str(self.port))


class UvicornPolling(Uvicorn):
    name, kernel = "uvicorn --reload", False


class Granian(Reloader):
    name, options = "granian --reload", "--interface asgi --loop uvloop --log-level warning"
    find = staticmethod(peers.granian)

    def start(self) -> None:
        self.begin("app:app", "--reload", "--port", str(self.port))


class Gunicorn(Reloader):
    name, options = "gunicorn --reload", "--no-control-socket --reload-engine poll"
    find = staticmethod(peers.gunicorn)

    def start(self) -> None:
        self.begin("app:wsgi", "--reload", "-b", f"127.0.0.1:{self.port}")


class GunicornInotify(Gunicorn):
    name, options, kernel = "gunicorn --reload (inotify)", "--no-control-socket --reload-engine inotify", True


class Nodemon(Reloader):
    name, tongue = "nodemon", NODES
    find = staticmethod(peers.nodemon)

    def start(self) -> None:
        self.begin("server.js", PORT=str(self.port))


class Pm2Watch(Reloader, rivals.Pm2):
    name, tongue, options = "pm2 --watch", NODES, "fork mode, watch"
    find = staticmethod(peers.pm2)

    def start(self) -> None:
        program = {"name": "bench", "script": "server.js", "cwd": str(self.directory), "watch": True}
        program["env"] = {"PORT": str(self.port)}
        (self.directory / "bench.config.json").write_text(json.dumps({"apps": [program]}))
        self.command("start", "bench.config.json")

    def stop(self) -> None:
        rivals.Pm2.stop(self)


class Watch(System):
    """`deployer watch`, as its user starts it."""

    name, ours, must_lose_none = "deployer watch", True, True

    def __init__(self, tongue: Tongue) -> None:
        self.plan, self.tongue, self.app = ONE, tongue, tongue.name
        self.settings = "defaults"

    def __enter__(self) -> Self:
        command = f'command = "{peers.node().program} server.js"\nready = "listen"'
        worker = command if self.tongue is NODES else 'app = "app:app"'
        self._tree = Tree()
        self._tree.directory.mkdir()
        self._tree.configure(worker, INSTALLED if self.tongue is LARGE else "")
        if self.tongue is LARGE:
            (self._tree.directory / "requirements.txt").write_text(f"{chr(10).join(peers.LIBRARIES)}\n")
        self.tongue.plant(self._tree.directory, "r0")
        try:
            self._watch = self._tree.watch()
            self._tree.until_served("r0", INSTALL_LIMIT_S)
        except BaseException:
            self.__exit__(True)
            raise
        return self

    def __exit__(self, *failure: object) -> None:
        try:
            if hasattr(self, "_watch"):
                self._watch.__exit__(*failure)
        finally:
            self._tree.close(check=failure[0] is None)

    @property
    def address(self) -> str:
        return self._tree.address

    def write(self, behaviour: str, label: str) -> None:
        self.tongue.save(self._tree.directory, label)

    def reload(self) -> str:
        return ""


def everything() -> list[Callable[[], System]]:
    """In the order of the table; ports are chosen when each is made."""
    python: list[type[Reloader]] = [Uvicorn, UvicornPolling, Granian, Gunicorn, GunicornInotify]
    found: list[Callable[[], System]] = []
    for tongue in (SMALL, LARGE):
        found.append(lambda tongue=tongue: Watch(tongue))  # type: ignore[misc]
        found += [lambda kind=kind, tongue=tongue: kind(tongue) for kind in python]  # type: ignore[misc]
    return [*found, lambda: Watch(NODES), Nodemon, Pm2Watch]
