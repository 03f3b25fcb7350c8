"""`module:object` to an application: importing it, calling a factory, telling WSGI from ASGI.

What goes wrong in the application is shown as its own traceback, from its first line on: how we came there is
no help to anyone.
"""

from __future__ import annotations

import difflib
import inspect
import os
import sys
import traceback
from importlib import import_module
from types import TracebackType
from typing import Any, Literal, NamedTuple

from .imports import HERE

Kind = Literal["asgi", "asgi2", "wsgi"]
_OURS = (HERE, "<frozen importlib", os.path.dirname(inspect.getfile(import_module)))


class App(NamedTuple):
    """An application, and how it is to be called."""

    target: str
    kind: Kind
    call: Any


class CannotLoadError(Exception):
    """Why there is no application; the text is all that the user needs."""


def load(target: str) -> App:
    """CannotLoadError with the application's own traceback, or with what is wrong about the name."""
    module_name, found = find(target)
    return App(target, kind_of(found, f"{module_name} has it, but it"), found)


def find(target: str) -> tuple[str, Any]:
    """The module's name and the object; a factory ("module:create()") is called."""
    module_name, _, path = target.partition(":")
    is_factory = path.endswith("()")
    path = path.removesuffix("()")
    if not module_name or not all(part.isidentifier() for part in path.split(".")):
        raise CannotLoadError(f'"{target}" does not name an application: write "module:object" or "module:factory()"')
    module = _imported(module_name)
    found: Any = module
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise CannotLoadError(_no_such_name(module_name, path, part, found)) from None
    if is_factory:
        found = _called(found, target)
    return module_name, found


def load_hook(target: str) -> Any:
    """The function of `post_fork = "module:function"`. CannotLoadError as for an application."""
    module_name, found = find(target)
    if not callable(found):
        raise CannotLoadError(f"{module_name} has {target!r}, but {type(found).__name__} objects cannot be called")
    return found


def _imported(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise CannotLoadError(f"no module named {error.name!r} in {os.getcwd()}, nor installed") from None
        raise CannotLoadError(own_traceback(error)) from None
    except Exception as error:
        raise CannotLoadError(own_traceback(error)) from None


def _called(factory: Any, target: str) -> Any:
    try:
        return factory()
    except Exception as error:
        raise CannotLoadError(own_traceback(error) + f"(while calling {target})\n") from None


def _no_such_name(module: str, path: str, part: str, where: Any) -> str:
    near = difflib.get_close_matches(part, [name for name in vars(where) if not name.startswith("_")], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    file = getattr(sys.modules[module], "__file__", None)
    return f"module {module!r} has no {path!r}{f' ({file})' if file else ''}{hint}"


def own_traceback(error: BaseException) -> str:
    """The traceback as Python prints it, without the frames before the application's first."""
    return "".join(traceback.format_exception(type(error), error, _first_of_theirs(error.__traceback__)))


def _first_of_theirs(frames: TracebackType | None) -> TracebackType | None:
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(_OURS):
        frames = frames.tb_next
    return frames


def kind_of(found: Any, what: str = "the object") -> Kind:
    """ASGI calls have three arguments (once one), WSGI calls two; CannotLoadError for what is neither."""
    if not callable(found):
        raise CannotLoadError(f"{what} is not an application: {type(found).__name__} objects cannot be called")
    call = found if inspect.isfunction(found) or inspect.ismethod(found) else getattr(found, "__call__", found)  # noqa: B004
    if inspect.isclass(found):
        return "asgi" if hasattr(found, "__await__") else "asgi2"
    if inspect.iscoroutinefunction(call):
        return "asgi"
    try:
        parameters = inspect.signature(found).parameters.values()
    except (ValueError, TypeError):
        return "wsgi"  # written in C: there are no such ASGI applications
    positional = [
        parameter
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and parameter.default is parameter.empty
    ]
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters) and not positional:
        return "wsgi" if hasattr(found, "wsgi_app") else "asgi"
    kinds: dict[int, Kind] = {3: "asgi", 2: "wsgi", 1: "asgi2"}
    if len(positional) not in kinds:
        raise CannotLoadError(
            f"{what} is not an application: it takes {len(positional)} arguments, where a WSGI application takes "
            f"(environ, start_response) and an ASGI application (scope, receive, send)"
            + ("; a factory is written with parentheses: module:factory()" if not positional else "")
        )
    return kinds[len(positional)]
