"""Which uvicorn and a2wsgi serve: the application's own, else deployer's, else a message that says what to add."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import metadata, util
from typing import NamedTuple

UVICORN_MIN = (0, 23)
A2WSGI_MIN = (1, 8)
SERVER = ("uvicorn", "click", "h11", "typing_extensions", "httptools", "uvloop", "websockets", "wsproto")
"""What goes with a borrowed uvicorn; an application that has one of these keeps its own."""
LEAST = {"click": (7, 0), "h11": (0, 8)}
"""What uvicorn asks of them."""


class Missing(Exception):  # noqa: N818  # a message for the user, not a fault
    """What the application's environment lacks, and what to add."""


class Offer(NamedTuple):
    """deployer's own packages: the Python they are for (cache_tag), and name -> directory."""

    python: str
    places: Mapping[str, str]


def server(offer: Offer) -> dict[str, str]:
    """Name -> directory of what is to be lent for a server. Missing: there is no way to serve the application."""
    if _usable("uvicorn", UVICORN_MIN):
        return {}
    for name, least in LEAST.items():
        _usable(name, least)
    return _lent(offer, "uvicorn", SERVER)


def wsgi(offer: Offer) -> dict[str, str]:
    """The same for what a WSGI application needs besides."""
    return {} if _usable("a2wsgi", A2WSGI_MIN) else _lent(offer, "a2wsgi", ("a2wsgi", "typing_extensions"))


def _usable(name: str, least: tuple[int, ...]) -> bool:
    """Has the application this package, in a version that will do? Missing: it has one that will not."""
    try:
        spec = util.find_spec(name)
    except ValueError:  # a module without a spec, put there by hand
        spec = None
    if spec is None:
        return False
    wanted = ".".join(map(str, least))
    try:
        text = metadata.version(name)
    except metadata.PackageNotFoundError:
        raise Missing(
            f"the application has something called {name} ({spec.origin}) that is not the package of that name: "
            f"rename it, or add {name}>={wanted} to its requirements"
        ) from None
    if version(text) < least:
        raise Missing(
            f"the application has {name} {text}, too old for deployer's runtime: "
            f"change its requirements to {name}>={wanted}, or write `command` instead of `app` in [worker]"
        )
    return True


def version(text: str) -> tuple[int, ...]:
    """The numbers at the start of a version."""
    numbers = []
    for part in text.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def _lent(offer: Offer, main: str, names: tuple[str, ...]) -> dict[str, str]:
    ours, theirs = offer.python, sys.implementation.cache_tag
    if main not in offer.places:
        raise Missing(f"the application's environment has no {main}: add {main} to its requirements")
    if ours != theirs:
        raise Missing(
            f"the application's environment has no {main}, and deployer's own is for another Python ({ours}, "
            f"the application's is {theirs}): add {main} to its requirements"
        )
    return {name: offer.places[name] for name in names if name in offer.places}
