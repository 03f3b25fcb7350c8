"""The warm template of a watch: interpreter, server and third-party packages are imported once, not once a save.

Unlike a template (template.py) it has no application: the worker that is forked from it enters the directory of its
release and imports what lies there, as one that was started on its own would. So nothing of a release may be here
already. What the manager names was imported by a worker of an earlier save, from where packages are installed, and in
that order; that import must succeed here without the release's directory, or it is refused: the manager makes another
warm template without it, since a second try in a worker would meet what the first has left behind.

A blank one is brought up in the same way while a release is being staged, and is told to become its template.
"""

from __future__ import annotations

import functools
import os
import site
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from importlib import import_module
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

from . import template
from .channel import ENVIRONMENT_KEY, Channel
from .imports import HERE
from .load import CannotLoadError


class Start(NamedTuple):
    """What __main__ found."""

    modules: Collection[str]  # that came with the interpreter, before any directory of a release was looked into
    directory: str  # of the release, whose limits and environment the process has
    path: Sequence[str]  # entries of sys.path in there, which are out of it for now


def load_server() -> None:
    """What a worker imports only when it serves."""
    import asyncio.runners  # noqa: F401

    import uvicorn.middleware.proxy_headers
    import uvicorn.server  # noqa: F401

    try:
        import uvloop  # noqa: F401
    except ImportError:
        pass  # serve.new_loop does without, too


def run(channel: Channel) -> template.Order:
    """Import what the manager names, then fork whenever it asks: as `template.run`. Or nothing of that, where the
    process itself is to become a template: then it has the order of one."""
    names: list[str] = []
    while True:
        message, fds = _receive(channel)
        if message["op"] == "go":
            break
        if message["op"] == "become":
            return template.take_order(fds[0], [])
        names += message["names"]
    if refused := [name for name in names if not _can_import(name)]:
        channel.send_names("refused", refused)
        template.await_end(channel)
    return template.run(channel)


def enter(directory: str, start: Start) -> list[str]:
    """The directory of a release, which comes first on the path. What it has under the name of a module that is here
    already is its own: that is forgotten, and named. Who has imported it before has the other one still."""
    try:
        os.chdir(directory)
    except OSError as error:
        raise CannotLoadError(f"cannot run in {directory}: {error.strerror}") from None
    own = [directory, *(directory + entry.removeprefix(start.directory) for entry in start.path)]
    sys.path[:0] = list(dict.fromkeys(own))
    shadowed = list(_shadowed(own, {_top(module) for module in start.modules}))
    for module in [module for module in sys.modules if _top(module) in shadowed]:
        del sys.modules[module]
    return shadowed


def start_anew(order: template.Order, channel: Channel) -> NoReturn:
    """As the template that was ordered, with nothing in memory."""
    os.set_inheritable(channel.fileno(), True)
    os.execve(order.argv[0], order.argv, {**os.environ, ENVIRONMENT_KEY: str(channel.fileno())})


def tell(channel: Channel | None, known: Collection[str]) -> None:
    """What else than its own modules this worker has imported, for the next warm template."""
    if channel is not None:
        channel.send_names("imported", _installed(name for name in list(sys.modules) if name not in known))


def _receive(channel: Channel) -> tuple[dict[str, Any], list[int]]:
    while (found := channel.receive(None)) is None:
        pass
    return found


def _can_import(name: str) -> bool:
    """Without anything that may be an application's own: that would be there in the release of the next save, too."""
    before = set(sys.modules)
    try:
        import_module(name)
    except BaseException:  # whatever it is that it raises
        return False
    new = [module for module in list(sys.modules) if module not in before]
    return all(_file(module) is None or _is_installed(module) for module in new)


def _shadowed(path: Iterable[str], spared: Collection[str]) -> Iterator[str]:
    """Names of top-level modules that an import would now find on this path. A directory without __init__.py is a
    namespace package: what is installed comes before it."""
    loaded = {_top(module) for module in sys.modules} - set(spared)
    for place in path:
        try:
            found = {name.partition(".")[0] for name in os.listdir(place)}
        except OSError:
            continue  # entries of PYTHONPATH need not exist
        for name in found & loaded:
            spec = PathFinder.find_spec(name, [place])
            if spec is not None and spec.loader is not None and spec.origin is not None:
                yield name


def _installed(names: Iterable[str]) -> list[str]:
    return [name for name in names if _is_installed(name)]


def _is_installed(name: str) -> bool:
    """Does it lie where the standard library or packages are? What lies elsewhere may be an application's own, as
    with `pip install --editable`."""
    file = _file(name)
    return file is not None and file.startswith(_places()) and not file.startswith(f"{HERE}{os.sep}")


@functools.cache
def _places() -> tuple[str, ...]:
    found = [os.path.dirname(os.__file__), *site.getsitepackages(), site.getusersitepackages()]
    return tuple(f"{place}{os.sep}" for place in found)


def _file(name: str) -> str | None:
    """Never by getattr: modules that load lazily would do so."""
    module = sys.modules.get(name)
    found = module.__dict__.get("__file__") if isinstance(module, ModuleType) else None
    return found if isinstance(found, str) else None


def _top(module: str) -> str:
    return module.partition(".")[0]
