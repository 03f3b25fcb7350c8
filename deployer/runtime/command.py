"""The worker's command line: `__main__.py [--check] [options] module:object`.

--check              import the application and say what it is; exit 1 with its traceback when it cannot be
--threads N          of a WSGI application
--drain-timeout S    when SIGKILL comes after SIGTERM
--greedy             take every visitor one is woken for, without regard for the other workers
--lend TAG:NAME=DIR  deployer's own package NAME in DIR, for Python TAG, should the application have none
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import faulthandler
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from . import api, imports, parts
from .counting import Counting
from .load import App, CannotLoadError, load
from .scoreboard import Record, Scoreboard
from .serve import StartupFailedError, Worker, has_living_threads, inherited, new_loop

FAILED = 1
KEEP_ALIVE_S = 75  # longer than the proxies in front keep theirs: they close, we never race them
THREADS = 8
DRAIN_TIMEOUT_S = 30.0


def main(words: Sequence[str]) -> int:
    arguments = _parser().parse_args(words)
    sys.argv = [arguments.app]
    faulthandler.enable()  # SIGABRT: every thread's stack into the log
    imports.offer_api()
    try:
        return _check(arguments) if arguments.check else _serve(arguments)
    except (CannotLoadError, parts.Missing) as error:
        sys.stderr.write(str(error).rstrip("\n") + "\n" if "\n" in str(error) else f"error: {error}\n")
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="deployer.runtime", description="A worker of [worker] app.")
    parser.add_argument("app", help="module:object or module:factory()")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--drain-timeout", type=float, default=DRAIN_TIMEOUT_S)
    parser.add_argument("--greedy", action="store_true")
    parser.add_argument("--lend", action="append", default=[])
    return parser


def _check(arguments: argparse.Namespace) -> int:
    app = load(arguments.app)
    parts.server(_offer(arguments.lend))
    if app.kind == "wsgi":
        parts.wsgi(_offer(arguments.lend))
    kind = type(app.call)
    print(f"{app.target} is {'a WSGI' if app.kind == 'wsgi' else 'an ASGI'} application ({kind.__module__})")
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    offer = _offer(arguments.lend)
    imports.lend(parts.server(offer))
    listeners = inherited()
    group = os.fstat(listeners[0].fileno()).st_ino if listeners else 0
    record = api.worker.record = _claim(group)
    counting = Counting(record)
    config = _config(counting)
    app = load(arguments.app)
    if app.kind == "wsgi":
        imports.lend(parts.wsgi(offer))
        if record is not None:
            record.set("threads", arguments.threads)
    counting.serve(_as_asgi3(app, arguments.threads), _with_proxy_headers(config))
    loop = new_loop()
    asyncio.set_event_loop(loop)
    worker: Worker | None = None

    async def run() -> None:
        nonlocal worker
        worker = Worker(config, counting, record, arguments.drain_timeout, greedy=arguments.greedy)
        await worker.run(listeners)

    try:
        loop.run_until_complete(run())
    except StartupFailedError:
        return FAILED
    if worker is not None and worker.is_stuck and has_living_threads():
        _leave_threads_behind()
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
    return 0


def _leave_threads_behind() -> None:
    """The interpreter would wait for threads whose requests were cut."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _config(counting: Counting) -> Any:
    """uvicorn's configuration, before the application is imported: what that does to logging stays."""
    import uvicorn

    config = uvicorn.Config(
        counting,
        interface="asgi3",
        proxy_headers=False,
        workers=1,  # or WEB_CONCURRENCY is read
        access_log=False,
        log_level="warning",
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    ours = logging.getLogger("deployer.runtime")
    ours.handlers = list(logging.getLogger("uvicorn").handlers)
    ours.propagate = False
    return config


def _with_proxy_headers(config: Any) -> Callable[[Any], Any]:
    """X-Forwarded-For and -Proto, from those that FORWARDED_ALLOW_IPS trusts; as uvicorn has it."""
    from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

    return lambda app: ProxyHeadersMiddleware(app, trusted_hosts=config.forwarded_allow_ips)


def _as_asgi3(app: App, threads: int) -> Any:
    if app.kind == "wsgi":
        from .wsgi import as_asgi

        return as_asgi(app.call, threads)
    if app.kind == "asgi2":
        from uvicorn.middleware.asgi2 import ASGI2Middleware

        return ASGI2Middleware(app.call)
    return app.call


def _claim(group: int) -> Record | None:
    """Our record on the scoreboard; a worker serves without one as well."""
    path = os.environ.get("DEPLOYER_SCOREBOARD")
    if not path:
        return None
    release = os.environ.get("DEPLOYER_RELEASE", "").removeprefix("v")
    try:
        return Scoreboard.open(path).claim(
            slot=api.slot() or 0,
            generation=int(os.environ.get("DEPLOYER_GENERATION", "0")),
            release=int(release) if release.isdecimal() else 0,
            group=group,
        )
    except (OSError, ValueError, RuntimeError) as error:
        sys.stderr.write(f"deployer.runtime: no scoreboard: {error}\n")
        return None


def _offer(lend: Sequence[str]) -> parts.Offer:
    """--lend cpython-311:uvicorn=/srv/deployer/lib/python3.11/site-packages"""
    tag, places = "", {}
    for text in lend:
        tag, _, rest = text.partition(":")
        name, _, place = rest.partition("=")
        places[name] = place
    return parts.Offer(tag, places)
