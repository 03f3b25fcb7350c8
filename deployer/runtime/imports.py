"""What the application's imports find, and in which order: its own packages first, always.

Two finders stand at the edges of sys.meta_path. `Alias` gives applications `deployer.runtime`, this very package,
where they have nothing of that name. `Borrowed`, asked last, has a closed list of deployer's own packages for an
environment that lacks them. No directory of deployer ever lies on sys.path: whatever else deployer has installed would
be seen by an application that only looks whether it is there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import spec_from_loader
from types import ModuleType

HERE = os.path.dirname(os.path.abspath(__file__))


class Borrowed(MetaPathFinder):
    """Packages of deployer's, by name, for those that the application has not."""

    def __init__(self, places: Mapping[str, str]) -> None:
        self.places = dict(places)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        place = self.places.get(fullname) if path is None else None
        return PathFinder.find_spec(fullname, [place]) if place else None


class Alias(MetaPathFinder):
    """`deployer.runtime` is this package, also where another copy of it is installed: there is one worker here."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "deployer.runtime" or not _is_ours(path):
            return None
        package = sys.modules[__package__]
        return spec_from_loader(fullname, _Existing(package), is_package=True)


class Parent(MetaPathFinder):
    """An empty `deployer` to hang it on, where there is none."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return spec_from_loader(fullname, _Empty(), is_package=True) if fullname == "deployer" else None


class _Existing(Loader):
    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has put the other name's there


class _Empty(Loader):
    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        pass


def _is_ours(path: Sequence[str] | None) -> bool:
    """Is the parent our empty one, or an installed deployer? An application's own `deployer` is left alone."""
    places = list(path or ())
    return not places or any(os.path.isfile(os.path.join(place, "runtime", "scoreboard.py")) for place in places)


def offer_api() -> None:
    """Let the application import `deployer.runtime`."""
    sys.meta_path.insert(0, Alias())
    sys.meta_path.append(Parent())


def lend(places: Mapping[str, str]) -> None:
    """Let imports that would fail find these packages of deployer's."""
    if places:
        sys.meta_path.append(Borrowed(places))
