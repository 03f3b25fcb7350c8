"""The manager's process: builds everything, hands it down, runs it. Started by the keeper only.

python -m deployer.daemon ROOT CONFIG TOKEN [--deploy]
"""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.modules["rich"] = None  # type: ignore[assignment]  # structlog would load it for tracebacks: 8 MB and 60 ms

import msgspec
import structlog

from deployer.api.app import Api
from deployer.api.serve import ControlServer
from deployer.api.streams import Bell
from deployer.config.load import Loaded, load
from deployer.config.model import Config
from deployer.errors import DeployerError, Exit
from deployer.keeper.link import KeeperLink
from deployer.manager import inherit
from deployer.manager.manager import Manager
from deployer.osutil.files import write_atomic
from deployer.osutil.process import start_ticks
from deployer.osutil.tasks import watched
from deployer.paths import Layout
from deployer.releases import tree
from deployer.state.store import Store, WorkerRow
from deployer.wire.schema import DeployRequest, Problem

OWN_LOG_MAX = 16 * 1024 * 1024  # bytes

log = structlog.get_logger()


def main() -> int:
    root, config_path, token, *flags = sys.argv[1:]
    layout = Layout(Path(root))
    link = KeeperLink.from_environment()
    link.receive_inheritance()
    set_up_log()
    trim_own_log(layout)
    sweep(layout)  # what a killed staging left may be what fills the disk
    say(layout, token, "starting")
    try:
        asyncio.run(run(layout, Path(config_path), link, token, deploy="--deploy" in flags))
    except DeployerError as error:
        log.error("manager.refused", what=error.what, cause=error.cause)
        say(layout, token, "failed", problem_of(error))
        return int(error.exit_code)
    except Exception as error:
        log.exception("manager.failed")
        say(layout, token, "failed", Problem(what=f"the manager failed: {error!r}", cause=f"see {layout.own_log}"))
        return int(Exit.BUG)
    return 0


async def run(layout: Layout, config_path: Path, link: KeeperLink, token: str, *, deploy: bool) -> None:
    """Take over what runs, serve, and end when told to."""
    asyncio.get_running_loop().set_exception_handler(functools.partial(crash, layout, token))
    bell = Bell()
    store = Store(layout.database, on_event=bell.ring)
    rows = inherit.live_rows(store)
    loaded = configuration(store, config_path, layout, first=link.starts == 1 and not rows)
    known = {row.pid for row in rows}
    donors = [*filter(None, [inherit.other_manager(store)]), *known, *(p for p, _ in inherit.strays(layout, known))]
    listeners = inherit.listeners(loaded.config, loaded.directory, link, donors)
    inherit.end_other_manager(store)
    control = inherit.control(layout, link)
    store.put("manager", {"pid": os.getpid(), "ticks": start_ticks(os.getpid())})
    manager = Manager(
        loaded=loaded, store=store, keeper=link, layout=layout, listeners=listeners, base_env=dict(os.environ)
    )
    server = ControlServer(Api(manager, bell))
    manager.on_stopped = server.end
    link.attach(asyncio.get_running_loop())
    link.on_gone = lambda: log.error("keeper.gone", hint="deployer up")
    begin(manager, rows, layout)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: watched(manager.stop()))
    link.ready()
    say(layout, token, "ready")
    if link.starts > 1 and store.get("stopping"):
        watched(manager.stop())
    elif deploy and store.get("release") is None and manager.driver.rollout is None:
        manager.commands.deploy(DeployRequest(who="up --foreground"))
    await server.run_on(control)
    layout.control_socket.unlink(missing_ok=True)
    store.close()


def sweep(layout: Layout) -> None:
    """What cannot be removed is in nobody's way: retention tries again, and tells."""
    try:
        tree.clean(layout, ())
    except OSError as error:
        log.warning("releases.not_swept", error=str(error))


def begin(manager: Manager, rows: list[WorkerRow], layout: Layout) -> None:
    manager.store.trim_events()
    manager.store.back_up()
    for error in manager.catalog.sweep():
        log.warning("releases.not_swept", error=str(error))
    adopted, resumed = manager.take_over(rows)
    log.info("manager.started", pid=os.getpid(), adopted=adopted, resumed=resumed)


def configuration(store: Store, path: Path, layout: Layout, *, first: bool) -> Loaded:
    """deployer.toml when the cluster starts; later what was promoted, so that an edit in progress harms nobody."""
    known: Mapping[str, Any] | None = store.get("config")
    if first or known is None:
        loaded = load(path)
        with store.transaction():
            store.put("app", loaded.config.name)
            store.put("config", msgspec.to_builtins(loaded.config))
        return loaded
    return Loaded(msgspec.convert(known, Config), path, layout.root, path.parent, None)


def set_up_log() -> None:
    """JSON lines on standard error, which is deployer.log or, in front, the terminal or the journal."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ],
        logger_factory=lambda *_: Output(),
    )


def trim_own_log(layout: Layout) -> None:
    """Keeper and manager append to one file all their lives: emptied in place when it is long, one copy kept."""
    try:
        if layout.own_log.stat().st_size > OWN_LOG_MAX:
            shutil.copyfile(layout.own_log, layout.own_log.with_suffix(".log.1"))
            os.truncate(layout.own_log, 0)
    except OSError:
        pass  # no such file in front; or a full disk


class Output:
    """Standard error; a disk that is full must not end the manager."""

    def msg(self, line: str) -> None:
        try:
            os.write(2, line.encode() + b"\n")
        except OSError:
            pass

    debug = info = warning = error = exception = critical = msg


def say(layout: Layout, token: str, state: str, problem: Problem | None = None) -> None:
    """run/manager.json: how `up` learns what became of us when no API answers."""
    word = {"pid": os.getpid(), "state": state, "problem": problem, "token": token}
    data = msgspec.json.encode(word)
    try:
        write_atomic(layout.manager_state, data)
    except OSError:
        _say_in_place(layout, data)


def _say_in_place(layout: Layout, data: bytes) -> None:
    """On a full disk there is room for this only where the last word stands."""
    try:
        with layout.manager_state.open("r+b") as file:
            file.write(data)
            file.truncate()
    except OSError as error:
        log.error("manager.cannot_say", error=str(error))


def problem_of(error: DeployerError) -> Problem:
    return Problem(what=error.what, cause=error.cause, hint=error.hint, exit=int(error.exit_code), reason=error.reason)


def crash(layout: Layout, token: str, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A bug must be seen, and must not leave half a manager behind: the keeper starts another, which adopts.

    What a connection of the API runs into (too many open files, a client that went away) is no bug.
    """
    error = context.get("exception")
    if isinstance(error, OSError) and ("transport" in context or "socket" in context):
        log.warning("api.connection", message=context.get("message"), error=str(error))
        return
    log.error("manager.bug", message=context.get("message"), exc_info=error)
    cause = f"{context.get('message')}; workers that run keep serving; details in {layout.own_log}"
    say(layout, token, "failed", Problem(what=f"the manager met a bug of its own: {error!r}", cause=cause))
    os._exit(int(Exit.BUG))


if __name__ == "__main__":
    sys.exit(main())
