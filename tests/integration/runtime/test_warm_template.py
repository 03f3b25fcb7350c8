"""Workers of saves that are forked from a real warm template, and what becomes of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest

from deployer.clock import uptime
from deployer.config.model import Config
from deployer.config.model import Worker as WorkerConfig
from deployer.keeper.keeper import PR_SET_CHILD_SUBREAPER, prctl
from deployer.keeper.link import KeeperLink
from deployer.logs.applog import AppLog
from deployer.manager.adoption import Adoption
from deployer.manager.warm import Warm
from deployer.osutil.process import start_ticks
from deployer.paths import Layout
from deployer.releases.release import Release
from deployer.sockets.address import Address
from deployer.state.store import Store
from deployer.wire.schema import WARM_SLOT
from deployer.workers import start
from deployer.workers.pool import Pool
from deployer.workers.worker import Listener, State, Worker

LIMIT_S = 60.0
APP = """
import json, os, sys, urllib.parse
before = set(sys.modules)
{imports}
async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError
    value = json.dumps(eval(urllib.parse.unquote(scope["query_string"].decode()))).encode()
    headers = [(b"connection", b"close"), (b"content-length", str(len(value)).encode())]
    await send({{"type": "http.response.start", "status": 200, "headers": headers}})
    await send({{"type": "http.response.body", "body": value}})
"""


class Watch:
    """A manager's parts, without the manager; releases are written by the test. `packages` is a directory that passes
    for one in which packages are installed."""

    def __init__(self, base: Path) -> None:
        self.base, self.layout = base, Layout(base / "root")
        for directory in (self.layout.run, self.layout.notify):
            directory.mkdir(parents=True)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.packages = base / "user" / "lib" / version / "site-packages"
        self.packages.mkdir(parents=True)
        self.env = {"PYTHONUSERBASE": str(base / "user"), "PYTHONPATH": f"{self.packages}:src"}
        self.store = Store(base / "state.db")
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.keeper = KeeperLink(self.ours)
        self.supervisor = SimpleNamespace(stopping=False)
        self.sock = socket.create_server(("127.0.0.1", 0))
        address = Address("tcp", *self.sock.getsockname())
        self.listeners = (Listener("web", address, self.sock, 100),)
        self.number = 0
        base = {key: value for key, value in os.environ.items() if key.startswith("PATH")}
        self.pool = Pool(
            app="a",
            store=self.store,
            keeper=self.keeper,
            layout=self.layout,
            log=AppLog(self.base / "app.log"),
            base_env=base,
        )
        self.warm = Warm(store=self.store, pool=self.pool, supervisor=self.supervisor)  # type: ignore[arg-type]

    def close(self) -> None:
        self.store.close()
        for sock in (self.ours, self.theirs, self.sock):
            sock.close()

    def package(self, name: str, text: str) -> None:
        (self.packages / f"{name}.py").write_text(text)

    def save(self, imports: str = "", files: dict[str, str] | None = None, **env: str) -> Release:
        self.number += 1
        directory = self.layout.release(f"dev-{self.number}")
        for name, text in {"main.py": APP.format(imports=imports), **(files or {})}.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        config = Config(name="a", worker=WorkerConfig(app="main:app", ready_timeout="20s", drain_timeout="5s"))
        return Release(directory.name, directory, config, self.env | env)

    async def serve(self, release: Release) -> Worker:
        """In place of whoever served."""
        before = [worker for worker in self.pool.workers.values() if worker.in_slot]
        worker = self.pool.spawn(1, self.number, release, self.listeners)
        await first(worker.started, worker.ended)
        assert worker.state is State.READY, "\n".join(worker.tail)
        for old in before:
            self.pool.retire(old)
            await old.ended.wait()
        return worker

    async def ask(self, expression: str) -> Any:
        reader, writer = await asyncio.open_connection(*self.sock.getsockname())
        writer.write(f"GET /?{quote(expression)} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        data = await reader.read()
        writer.close()
        await writer.wait_closed()
        return json.loads(data.partition(b"\r\n\r\n")[2])

    async def warmed(self, release: Release, *names: str) -> Worker:
        """The warm template for this release, once all these are imported in it."""
        self.warm.want(release)
        while True:
            found = self.pool.warm_for(release)
            if found is not None and found is self.warm._latest and set(names) <= set(self.warm._given):
                return found
            await asyncio.sleep(0.01)

    async def end(self) -> None:
        self.supervisor.stopping = True
        for worker in list(self.pool.workers.values()):
            self.pool.retire(worker, now=True)
            await worker.ended.wait()


async def first(*events: asyncio.Event) -> None:
    tasks = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    prctl(PR_SET_CHILD_SUBREAPER, 1)  # as the keeper: what is forked is ours to reap
    made = Watch(tmp_path)
    yield made
    made.close()
    prctl(PR_SET_CHILD_SUBREAPER, 0)


def run(watch: Watch, test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(LIMIT_S):
            try:
                await test()
            finally:
                await watch.end()

    asyncio.run(bounded())


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def modules(names: Sequence[str]) -> str:
    """An expression: which of them had been imported before the application was."""
    return f"[name for name in {list(names)!r} if name in before]"


def test_packages_are_imported_once_and_own_modules_with_every_save(watch: Watch) -> None:
    async def test() -> None:
        watch.package("heavy", "import lighter\nWHERE = __import__('os').getpid()")
        watch.package("lighter", "")
        own = {"shop.py": "LABEL = 'one'", "src/parts.py": "LABEL = 'src one'"}
        release = watch.save("import heavy, shop, parts", own)
        await watch.serve(release)
        warm = await watch.warmed(release, "heavy", "lighter")
        assert not {"shop", "parts", "main"} & set(watch.warm.names)

        own = {"shop.py": "LABEL = 'two'", "src/parts.py": "LABEL = 'src two'"}
        release = watch.save(
            "import heavy, shop, parts",
            own,
        )
        worker = await watch.serve(release)
        assert await watch.ask("[heavy.WHERE,os.getpid()]") == [warm.pid, worker.pid]
        assert await watch.ask("[shop.LABEL,parts.LABEL]") == ["two", "src two"]
        assert await watch.ask(modules(["heavy", "lighter", "shop", "parts"])) == ["heavy", "lighter"]
        assert await watch.ask("[os.getcwd(),sys.path[0],sys.path[1]]") == [
            str(release.directory),
            str(release.directory),
            str(release.directory / "src"),
        ]
        assert await watch.ask("os.environ['DEPLOYER_RELEASE']") == "dev-2"
        assert await watch.ask("sys.argv") == ["main:app"]
        assert parent_of(worker.pid) == os.getpid(), "it does not depend on the template"

    run(watch, test)


def test_what_a_save_imports_besides_is_imported_for_the_next_one(watch: Watch) -> None:
    """The old one serves until the new one is there; then it goes."""

    async def test() -> None:
        for name in ("early", "late"):
            watch.package(name, "")
        release = watch.save("import early")
        await watch.serve(release)
        old = await watch.warmed(release, "early")
        release = watch.save("import early, late")
        await watch.serve(release)
        assert await watch.ask(modules(["early", "late"])) == ["early"]
        new = await watch.warmed(release, "early", "late")
        assert new is not old
        await old.ended.wait()
        await watch.serve(watch.save("import early, late"))
        assert await watch.ask(modules(["early", "late"])) == ["early", "late"]
        names = [name for name in watch.warm.names if name in ("early", "late")]
        assert names == ["early", "late"]

    run(watch, test)


def test_an_own_module_comes_before_a_package_of_its_name(watch: Watch) -> None:
    """Also one that the template has, and what is in it; a mere directory of that name does not."""

    async def test() -> None:
        watch.package("utils", "import utils2; WHOSE = 'installed'")
        watch.package("utils2", "WHOSE = 'installed'")
        release = watch.save("import utils, utils2, queue, asyncio")
        await watch.serve(release)
        await watch.warmed(release, "utils", "utils2")
        own = {"utils/__init__.py": "from utils.more import WHOSE", "utils/more.py": "WHOSE = 'own'"}
        own |= {"utils2/data.txt": "", "queue.py": "WHOSE = 'own'"}
        await watch.serve(watch.save("import utils, utils2, queue, asyncio", own))
        assert await watch.ask("[utils.WHOSE,utils2.WHOSE,queue.WHOSE]") == ["own", "installed", "own"]
        await watch.serve(watch.save("import utils, utils2, queue, asyncio"))
        assert await watch.ask("[utils.WHOSE,utils2.WHOSE,queue.__name__]") == ["installed", "installed", "queue"]

    run(watch, test)


def test_a_module_that_needs_the_application_is_left_to_the_worker(watch: Watch) -> None:
    """It cannot be imported for itself. The template that has tried is not used: half of it may be there."""

    async def test() -> None:
        watch.package("plugin", "import counter; counter.seen.append('plugin'); import settings")
        watch.package("counter", "seen = []")
        release = watch.save("import counter, plugin", {"settings.py": ""})
        await watch.serve(release)
        await watch.warmed(release, "counter")
        while "plugin" not in watch.warm._refused:
            await asyncio.sleep(0.01)
        await watch.warmed(release, "counter")
        watch.package("third", "")
        await watch.serve(watch.save("import counter, plugin, third", {"settings.py": ""}))
        assert await watch.ask(modules(["counter", "plugin", "settings"])) == ["counter"]
        assert await watch.ask("counter.seen") == ["plugin"]
        while "third" not in watch.warm.names:
            await asyncio.sleep(0.01)
        assert "plugin" not in watch.warm.names, "it was told of once more"

    run(watch, test)


def test_what_is_not_installed_is_never_warm(watch: Watch) -> None:
    """As with `pip install --editable`: it may be what is being worked on."""

    async def test() -> None:
        tree = watch.base / "elsewhere"
        tree.mkdir()
        (tree / "linked.py").write_text("")
        watch.package("reaches", f"import sys; sys.path.append({str(tree)!r}); import linked")
        watch.package("plain", "")
        release = watch.save("import plain, reaches, linked")
        await watch.serve(release)
        watch.warm.want(release)
        while "reaches" not in watch.warm._refused:
            await asyncio.sleep(0.01)
        await watch.warmed(release, "plain")
        await watch.serve(watch.save("import plain, reaches, linked"))
        assert await watch.ask(modules(["plain", "reaches", "linked"])) == ["plain"]

    run(watch, test)


def test_one_that_would_not_survive_a_fork_is_made_without_packages(watch: Watch) -> None:
    async def test() -> None:
        watch.package(
            "ticker", "import threading, time; threading.Thread(target=time.sleep, args=(9,), daemon=True).start()"
        )
        release = watch.save("import ticker")
        await watch.serve(release)
        watch.warm.want(release)
        while "ticker" not in watch.warm._refused:
            await asyncio.sleep(0.01)
        warm = await watch.warmed(release)
        await watch.serve(watch.save("import ticker"))
        assert await watch.ask(modules(["ticker", "uvicorn"])) == ["uvicorn"]
        assert warm.exit is None

    run(watch, test)


def test_another_environment_is_not_forked_from_it(watch: Watch) -> None:
    """Packages read variables when they are imported: the worker boots by itself, and the template is made anew."""

    async def test() -> None:
        watch.package("reads", "import os; LEVEL = os.environ.get('LEVEL')")
        release = watch.save("import reads")
        await watch.serve(release)
        old = await watch.warmed(release, "reads")
        release = watch.save("import reads", LEVEL="high")
        assert watch.pool.warm_for(release) is None
        await watch.serve(release)
        assert await watch.ask("[reads.LEVEL,'reads'in before]") == ["high", False]
        await watch.warmed(release, "reads")
        await old.ended.wait()
        await watch.serve(watch.save("import reads", LEVEL="high"))
        assert await watch.ask("[reads.LEVEL,'reads'in before]") == ["high", True]

    run(watch, test)


def test_a_release_that_is_not_of_a_save_is_not_forked_from_it(watch: Watch) -> None:
    async def test() -> None:
        release = watch.save()
        await watch.serve(release)
        await watch.warmed(release)
        ordinary = Release("v1", release.directory, release.config, release.env)
        assert watch.pool.warm_for(ordinary) is None

    run(watch, test)


def test_one_that_dies_is_made_anew_and_harms_nobody(watch: Watch) -> None:
    async def test() -> None:
        watch.package("heavy", "")
        release = watch.save("import heavy")
        await watch.serve(release)
        warm = await watch.warmed(release, "heavy")
        worker = await watch.serve(watch.save("import heavy"))
        os.kill(warm.pid, signal.SIGKILL)
        await warm.ended.wait()
        assert await watch.ask("os.getpid()") == worker.pid
        assert await watch.warmed(release, "heavy") is not warm

    run(watch, test)


def test_one_that_hangs_is_killed_and_the_worker_boots_by_itself(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        monkeypatch.setattr(start, "FORK_LIMIT_S", 0.1)
        release = watch.save()
        await watch.serve(release)
        warm = await watch.warmed(release)
        os.kill(warm.pid, signal.SIGSTOP)
        await watch.serve(watch.save())
        assert await watch.ask("'uvicorn'in sys.modules") is True
        await warm.ended.wait()
        monkeypatch.setattr(start, "FORK_LIMIT_S", 5.0)
        assert await watch.warmed(release) is not warm

    run(watch, test)


def test_it_ends_with_the_watch(watch: Watch) -> None:
    async def test() -> None:
        release = watch.save()
        worker = await watch.serve(release)
        warm = await watch.warmed(release)
        watch.warm.want(None)
        await warm.ended.wait()
        assert list(watch.pool.workers.values()) == [worker]

    run(watch, test)


def test_the_next_manager_ends_it_and_makes_one_with_what_is_known(watch: Watch) -> None:
    """What it fits is in nobody's memory any more."""

    async def test() -> None:
        watch.package("heavy", "")
        release = watch.save("import heavy")
        watch.store.put("warm", ["heavy"])
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True) as old:
            values = {"slot": WARM_SLOT, "generation": 0, "release": release.name, "state": State.READY}
            watch.store.add_worker(**values, pid=old.pid, ticks=start_ticks(old.pid), spawned_at=uptime())
            adoption = Adoption(
                store=watch.store,
                catalog=SimpleNamespace(release=lambda name: release),  # type: ignore[arg-type]
                pool=watch.pool,
                keeper=watch.keeper,
                layout=watch.layout,
                listeners=watch.listeners,
                config=release.config,
            )
            assert adoption.run(watch.store.workers(), lambda: None) == 1
            (left,) = watch.pool.workers.values()
            assert watch.pool.warm_for(release) is None
            await left.ended.wait()
        await watch.warmed(release, "heavy")
        await watch.serve(release)
        assert await watch.ask(modules(["heavy"])) == ["heavy"]

    run(watch, test)
