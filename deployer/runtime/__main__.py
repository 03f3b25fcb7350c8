"""A worker of `[worker] app`: PYTHON .../deployer/runtime/__main__.py [options] module:object

Run by its path, on the interpreter of the release. Nothing is imported before the path is in order: the release's
directory first, the application's own packages, and never this directory.
"""

import os
import sys

PRIVATE = "_deployer_runtime"


def load() -> None:
    """This package under a private name: `deployer` may be a package of the application."""
    here = os.path.dirname(os.path.abspath(__file__))
    if sys.path and os.path.abspath(sys.path[0]) == here:
        del sys.path[0]
    release = os.getcwd()
    if sys.path[:1] != [release]:
        sys.path.insert(0, release)
    from importlib.util import module_from_spec, spec_from_file_location

    file = os.path.join(here, "__init__.py")
    spec = spec_from_file_location(PRIVATE, file, submodule_search_locations=[here])
    assert spec is not None
    assert spec.loader is not None
    package = module_from_spec(spec)
    sys.modules[PRIVATE] = package
    spec.loader.exec_module(package)


def main() -> int:
    from importlib import import_module

    load()
    code: int = import_module(f"{PRIVATE}.command").main(sys.argv[1:])
    return code


if __name__ == "__main__":
    sys.exit(main())
