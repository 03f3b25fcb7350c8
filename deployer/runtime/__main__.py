"""A worker of `[worker] app`: PYTHON .../deployer/runtime/__main__.py [options] module:object

Run by its path, on the interpreter of the release. Nothing is imported before the path is in order: the release's
directory first, the application's own packages, and never this directory. With --warm, as the first word, the path has
nothing of the release, which is not for the workers of the next ones (warm.py).
"""

import os
import sys

PRIVATE = "_deployer_runtime"


def set_path(release: str, *, warm: bool) -> list[str]:
    """Entries that are out of it, in a warm template."""
    here = os.path.dirname(os.path.abspath(__file__))
    if sys.path and os.path.abspath(sys.path[0]) == here:
        del sys.path[0]
    if warm:
        own = [entry for entry in sys.path if entry == release or entry.startswith(release + os.sep)]
        sys.path[:] = [entry for entry in sys.path if entry not in own]
        return own
    if sys.path[:1] != [release]:
        sys.path.insert(0, release)
    return []


def load() -> None:
    """This package under a private name: `deployer` may be a package of the application."""
    from importlib.util import module_from_spec, spec_from_file_location

    here = os.path.dirname(os.path.abspath(__file__))
    file = os.path.join(here, "__init__.py")
    spec = spec_from_file_location(PRIVATE, file, submodule_search_locations=[here])
    assert spec is not None
    assert spec.loader is not None
    package = module_from_spec(spec)
    sys.modules[PRIVATE] = package
    spec.loader.exec_module(package)


def main() -> int:
    modules, release, warm = frozenset(sys.modules), os.getcwd(), sys.argv[1:2] == ["--warm"]
    own = set_path(release, warm=warm)
    from importlib import import_module

    load()
    command = import_module(f"{PRIVATE}.command")
    code: int = command.warm_up(sys.argv[1:], modules, release, own) if warm else command.main(sys.argv[1:])
    return code


if __name__ == "__main__":
    sys.exit(main())
