"""The worker's command line: `__main__.py [--check] [options] module:object`.

--template           import the application once, and fork workers when the manager asks for one
--warm               import what the manager names, no application, and fork workers that get theirs with their order
--post-fork M:F      call this function of the application's in each worker before it serves
--check              import the application and say what it is, and with --template if it can be forked; exit 1 with
                     its traceback when it cannot be imported
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
import functools
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from . import api, imports, parts, template, warm
from .channel import Channel
from .counting import Counting
from .load import App, CannotLoadError, load, load_hook, own_traceback
from .scoreboard import Record, Scoreboard
from .serve import StartupFailedError, Worker, group_of, has_living_threads, inherited, new_loop

FAILED = 1
KEEP_ALIVE_S = 75  # longer than the proxies in front keep theirs: they close, we never race them
THREADS = 8
DRAIN_TIMEOUT_S = 30.0


def main(words: Sequence[str]) -> int:
    arguments = _parsed(words)
    _set_up()
    if arguments.check:
        return _explained(lambda: _check(arguments))
    return _explained(lambda: _serve_forked(arguments) if arguments.template else _serve_alone(arguments))


def warm_up(words: Sequence[str], modules: Collection[str], directory: str, path: Sequence[str]) -> int:
    """The same as a warm template; what else it is given is `warm.Start`."""
    arguments = _parsed(words)
    _set_up()
    return _explained(lambda: _serve_warm(arguments.lend, warm.Start(modules, directory, path)))


def _set_up() -> None:
    faulthandler.enable()  # SIGABRT: every thread's stack into the log
    imports.offer_api()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as SIGTERM: stopped while it boots it prints no frames of ours


def _explained(run: Callable[[], int]) -> int:
    try:
        return run()
    except (CannotLoadError, parts.Missing) as error:
        sys.stderr.write(str(error).rstrip("\n") + "\n" if "\n" in str(error) else f"error: {error}\n")
        return FAILED


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    arguments = _parser().parse_args(words)
    sys.argv = [arguments.app]
    return arguments


@functools.cache
def _parser() -> argparse.ArgumentParser:
    """Made once, also for all the workers that are forked from a warm template."""
    parser = argparse.ArgumentParser(prog="deployer.runtime", description="A worker of [worker] app.")
    parser.add_argument("app", nargs="?", default="", help="module:object or module:factory(); none with --warm")
    parser.add_argument("--warm", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--template", action="store_true")
    parser.add_argument("--post-fork")
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
    if arguments.post_fork is not None:
        load_hook(arguments.post_fork)
    text = f"{app.target} is {'a WSGI' if app.kind == 'wsgi' else 'an ASGI'} application ({type(app.call).__module__})"
    what = template.unsafe() if arguments.template else None
    print(text if what is None else f"{text}; its workers boot one by one: {what} would not survive a fork")
    if has_living_threads():
        _leave_threads_behind()
    return 0


@dataclass(frozen=True)
class Server:
    """What serves, before there is an application."""

    config: Any  # uvicorn's
    counting: Counting


@dataclass(frozen=True)
class Prepared:
    """An application that is imported, and what is to serve it."""

    app: App
    server: Server
    post_fork: Callable[[], object] | None


def _server(lend: Sequence[str]) -> Server:
    imports.lend(parts.server(_offer(lend)))
    counting = Counting()
    return Server(_config(counting), counting)


def _prepare(arguments: argparse.Namespace, server: Server) -> Prepared:
    known = set(sys.modules)
    app = load(arguments.app)
    if app.kind == "wsgi":
        imports.lend(parts.wsgi(_offer(arguments.lend)))
    post_fork = None if arguments.post_fork is None else load_hook(arguments.post_fork)
    if (api.release() or "").startswith("dev-"):
        api.worker.when_calm = lambda: warm.tell(api.worker.channel, known)
    return Prepared(app, server, post_fork)


def _serve_alone(arguments: argparse.Namespace) -> int:
    listeners = inherited()
    api.worker.channel = Channel.from_environment()
    api.worker.record = _claim(group_of(listeners))  # before the import: what that reports is seen
    return _serve(_prepare(arguments, _server(arguments.lend)), arguments, listeners)


def _serve_forked(arguments: argparse.Namespace) -> int:
    channel = Channel.from_environment()
    assert channel is not None, "a template forks for the manager"
    return _serve_as_template(arguments, channel, _server(arguments.lend))


def _serve_as_template(arguments: argparse.Namespace, channel: Channel, server: Server) -> int:
    """As the template; and as each worker that is forked from it."""
    prepared = _prepare(arguments, server)
    if not server.config.loaded:
        server.config.load()
    try:
        order = template.run(channel)
    except EOFError:
        os._exit(0)  # keeper and manager are gone: the next manager makes a template of its own
    _take_place(order)
    return _serve(prepared, arguments, order.sockets)


def _serve_warm(lend: Sequence[str], start: warm.Start) -> int:
    """As the warm template; and as each worker that is forked from it, or as the template that it is to become, whose
    own command line comes with its order."""
    channel = Channel.from_environment()
    assert channel is not None, "a warm template forks for the manager"
    server = _server(lend)
    server.config.load()
    warm.load_server()
    try:
        order = warm.run(channel)
    except EOFError:
        os._exit(0)  # as above
    arguments = _parsed(order.argv[2:])  # after interpreter and program
    if arguments.template:
        if warm.enter(order.directory, start):
            warm.start_anew(order, channel)  # else its workers would differ from one that boots on its own
        return _serve_as_template(arguments, channel, server)
    _take_place(order)
    warm.enter(order.directory, start)
    return _serve(_prepare(arguments, server), arguments, order.sockets)


def _take_place(order: template.Order) -> None:
    """In a worker that was forked."""
    api.worker.channel = Channel.from_environment()
    api.worker.record = _claim(group_of(order.sockets))


def _serve(prepared: Prepared, arguments: argparse.Namespace, listeners: list[socket.socket]) -> int:
    record = api.worker.record
    if prepared.post_fork is not None:
        try:
            prepared.post_fork()
        except Exception as error:
            raise CannotLoadError(own_traceback(error) + f"(in post_fork = {arguments.post_fork!r})\n") from None
    if prepared.app.kind == "wsgi" and record is not None:
        record.set("threads", arguments.threads)
    asgi = _reloading(_as_asgi3(prepared.app, arguments.threads))
    config, counting = prepared.server.config, prepared.server.counting
    counting.serve(asgi, _with_proxy_headers(config), record)
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
    """The interpreter would wait for threads whose requests were cut, or that the import has started."""
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


def _reloading(asgi: Any) -> Any:
    """With the script for open pages, where `deployer watch --browser` has asked for it."""
    url = os.environ.get("DEPLOYER_RELOAD")
    if not url:
        return asgi
    from .reload import Reload

    return Reload(asgi, url, api.release() or "")


def _claim(group: int) -> Record | None:
    """Our record on the scoreboard; a worker serves without one as well."""
    path = os.environ.get("DEPLOYER_SCOREBOARD")
    if not path:
        return None
    try:
        return Scoreboard.open(path).claim(
            slot=api.slot() or 0,
            generation=int(os.environ.get("DEPLOYER_GENERATION", "0")),
            release=api.number_of(api.release() or ""),
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
