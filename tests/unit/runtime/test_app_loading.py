"""Telling WSGI from ASGI by how an application is called."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from starlette.applications import Starlette

from deployer.runtime.load import CannotLoadError, find, kind_of
from deployer.runtime.parts import version


class Asgi:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...


class Wrapped:
    """A middleware that is not a coroutine function itself."""

    def __call__(self, scope: Any, receive: Any, send: Any) -> Any: ...


class Wsgi:
    def __call__(self, environ: Any, start_response: Any, option: int = 1) -> Any: ...


class Old:
    def __init__(self, scope: Any) -> None: ...
    async def __call__(self, receive: Any, send: Any) -> None: ...


async def asgi(scope: Any, receive: Any, send: Any) -> None: ...


def wsgi(environ: Any, start_response: Any) -> Any: ...


def plain_wrapper(scope: Any, receive: Any, send: Any) -> Any: ...


def any_arguments(*args: Any) -> Any: ...


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        (asgi, "asgi"),
        (Asgi(), "asgi"),
        (Wrapped(), "asgi"),
        (plain_wrapper, "asgi"),
        (Starlette(), "asgi"),
        (functools.partial(asgi), "asgi"),
        (Asgi().__call__, "asgi"),
        (Old, "asgi2"),
        (wsgi, "wsgi"),
        (Wsgi(), "wsgi"),
        (functools.partial(wsgi), "wsgi"),
        (any_arguments, "asgi"),
    ],
)
def test_the_arguments_tell(found: Any, kind: str) -> None:
    assert kind_of(found) == kind


@pytest.mark.parametrize("found", [7, "text", lambda: None, lambda a, b, c, d: None])
def test_other_things_are_no_applications(found: Any) -> None:
    with pytest.raises(CannotLoadError):
        kind_of(found)


@pytest.mark.parametrize("target", ["shop", "shop:", ":app", "shop:app(1)", "shop:a b"])
def test_a_target_names_a_module_and_an_object(target: str) -> None:
    with pytest.raises(CannotLoadError, match="does not name an application"):
        find(target)


@pytest.mark.parametrize(
    ("text", "numbers"), [("0.54.0", (0, 54, 0)), ("1.0rc1", (1, 0)), ("2.1.post3", (2, 1)), ("dev", ())]
)
def test_versions_are_compared_by_their_numbers(text: str, numbers: tuple[int, ...]) -> None:
    assert version(text) == numbers
