"""WSGI and ASGI objects in Python sources, found by reading them: importing would run them."""

from __future__ import annotations

import ast
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Kind = Literal["asgi", "wsgi"]

FILES_MAX = 2000
FILE_BYTES_MAX = 500_000
DEPTH_MAX = 5

_CONSTRUCTORS: dict[tuple[str, str], Kind] = {
    ("fastapi", "FastAPI"): "asgi",
    ("starlette", "Starlette"): "asgi",
    ("quart", "Quart"): "asgi",
    ("litestar", "Litestar"): "asgi",
    ("flask", "Flask"): "wsgi",
    ("bottle", "Bottle"): "wsgi",
    ("django", "get_asgi_application"): "asgi",
    ("django", "get_wsgi_application"): "wsgi",
    ("channels", "ProtocolTypeRouter"): "asgi",
}
_FACTORY_NAMES = ("create_app", "make_app", "create_application", "make_application", "get_app")
_OBJECT_NAMES = ("app", "application", "api", "asgi", "wsgi")
_FILE_NAMES = ("app", "main", "wsgi", "asgi", "server", "application", "__init__")
_SKIPPED = {"node_modules", "__pycache__", "site-packages", "tests", "test", "docs", "examples", "build", "dist"}
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class PythonApp:
    """`target` is "module:object"; a factory is called to get the application."""

    kind: Kind
    module: str
    name: str
    file: str
    search_path: str = ""
    is_factory: bool = False
    framework: str = ""

    @property
    def target(self) -> str:
        return f"{self.module}:{self.name}"


@dataclass
class _Module:
    """What one file says; `calls` are names bound to the result of a function of unknown kind."""

    file: str
    module: str
    search_path: str
    names: dict[str, str] = field(default_factory=dict)
    objects: list[tuple[str, Kind, str]] = field(default_factory=list)
    factories: dict[str, tuple[Kind, str]] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)


def find_python_apps(directory: Path) -> list[PythonApp]:
    """All applications below `directory`, the likeliest first; objects come before factories."""
    modules = [module for path in source_files(directory, ".py") if (module := _read_module(path, directory))]
    factories = {f"{module.module}.{name}": kind for module in modules for name, kind in module.factories.items()}
    found = [app for module in modules for app in _apps(module, factories)]
    return sorted(found, key=_likelihood)


def source_files(directory: Path, *suffixes: str) -> Iterator[Path]:
    """Source files, shallow ones first; no tests, no virtual environments, nothing hidden."""
    count = 0
    level = [directory]
    for _ in range(DEPTH_MAX):
        deeper: list[Path] = []
        for entry in (entry for folder in level for entry in _entries(folder)):
            if entry.is_dir() and not entry.is_symlink():
                if entry.name not in _SKIPPED and not (entry / "pyvenv.cfg").exists():
                    deeper.append(entry)
            elif entry.suffix in suffixes and entry.is_file() and not _is_test(entry.name):
                count += 1
                if count > FILES_MAX:
                    return
                yield entry
        level = deeper


def read_source(path: Path) -> str:
    """The text, or nothing when it is too large or not readable: detection is a best effort."""
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            return ""
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder / name for name in os.listdir(folder) if not name.startswith("."))
    except OSError:
        return []


def _is_test(name: str) -> bool:
    return name.startswith("test_") or name.endswith("_test.py") or name in ("conftest.py", "setup.py")


def _likelihood(app: PythonApp) -> tuple[bool, int, int, int, str]:
    last = Path(app.file).stem
    file_rank = _FILE_NAMES.index(last) if last in _FILE_NAMES else len(_FILE_NAMES)
    name_rank = _OBJECT_NAMES.index(app.name) if app.name in _OBJECT_NAMES else len(_OBJECT_NAMES)
    return (app.is_factory, app.module.count("."), file_rank, name_rank, app.target)


def _read_module(path: Path, directory: Path) -> _Module | None:
    relative = path.relative_to(directory)
    parts = list(relative.with_suffix("").parts)
    search_path = ""
    if parts[0] == "src" and len(parts) > 1 and not (directory / "src" / "__init__.py").exists():
        search_path, parts = "src", parts[1:]
    is_package = parts[-1] == "__init__"
    if is_package:
        parts.pop()
    if not parts or not all(part.isidentifier() for part in parts):
        return None
    module = _Module(str(relative), ".".join(parts), search_path)
    package = parts if is_package else parts[:-1]
    try:
        for statement in _top_level(_parse(read_source(path)).body):
            _read_statement(statement, module, package)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return module


def _parse(source: str) -> ast.Module:
    with warnings.catch_warnings():
        # What the compiler thinks of someone's escapes is no news of ours.
        warnings.simplefilter("ignore")
        return ast.parse(source)


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run at import, also below `if` and `try`, but not below `if __name__ == "__main__"`."""
    for statement in body:
        if isinstance(statement, ast.If):
            if not any(
                isinstance(node, ast.Constant) and node.value == "__main__" for node in ast.walk(statement.test)
            ):
                yield from _top_level(statement.body + statement.orelse)
        elif isinstance(statement, ast.Try):
            yield from _top_level(statement.body + statement.orelse)
        else:
            yield statement


def _read_statement(statement: ast.stmt, module: _Module, package: list[str]) -> None:
    if isinstance(statement, ast.Import | ast.ImportFrom):
        module.names |= _imported(statement, package)
    elif isinstance(statement, _Function):
        _read_function(statement, module, package)
    elif isinstance(statement, ast.ClassDef):
        bases = (_dotted(base, module.names) for base in statement.bases)
        framework = next((base for base in bases if _constructor(base)), None)
        if framework is not None:
            module.names[statement.name] = framework  # calling it makes an application of that kind
    elif isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(statement.value, ast.Call):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        callee = _dotted(statement.value.func, module.names)
        known = _constructor(callee)
        for target in targets:
            if isinstance(target, ast.Name) and known:
                module.objects.append((target.id, *known))
            elif isinstance(target, ast.Name) and callee:
                module.calls.append((target.id, callee if "." in callee else f"{module.module}.{callee}"))


def _read_function(function: _Function, module: _Module, package: list[str]) -> None:
    arguments = [argument.arg for argument in function.args.args]
    is_async = isinstance(function, ast.AsyncFunctionDef)
    if arguments == ["environ", "start_response"] and not is_async:
        module.objects.append((function.name, "wsgi", "plain WSGI"))
    elif arguments == ["scope", "receive", "send"] and is_async:
        module.objects.append((function.name, "asgi", "plain ASGI"))
    elif function.name in _FACTORY_NAMES and not is_async and _needs_nothing(function.args):
        made = _made_in(function, module.names, package)
        if made is not None:
            module.factories[function.name] = made


def _needs_nothing(arguments: ast.arguments) -> bool:
    """Whether the function can be called without arguments."""
    positional = len(arguments.posonlyargs) + len(arguments.args)
    return positional == len(arguments.defaults) and None not in arguments.kw_defaults


def _made_in(function: _Function, names: dict[str, str], package: list[str]) -> tuple[Kind, str] | None:
    """The kind of application that the body makes; it may import the framework itself."""
    local = dict(names)
    for node in ast.walk(function):
        if isinstance(node, ast.Import | ast.ImportFrom):
            local |= _imported(node, package)
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and (known := _constructor(_dotted(node.func, local))):
            return known
    return None


def _imported(statement: ast.Import | ast.ImportFrom, package: list[str]) -> dict[str, str]:
    """Local name to dotted name of what an import binds."""
    if isinstance(statement, ast.Import):
        return {
            alias.asname or alias.name.partition(".")[0]: alias.name if alias.asname else alias.name.partition(".")[0]
            for alias in statement.names
        }
    base = package[: len(package) - statement.level + 1] if statement.level else []
    prefix = ".".join([*base, *([statement.module] if statement.module else [])])
    return {alias.asname or alias.name: f"{prefix}.{alias.name}" for alias in statement.names}


def _dotted(node: ast.expr, names: dict[str, str]) -> str:
    """The dotted name of an expression such as `fastapi.FastAPI`, imports resolved; empty when it has none."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute) and (inner := _dotted(node.value, names)):
        return f"{inner}.{node.attr}"
    return ""


def _constructor(dotted: str) -> tuple[Kind, str] | None:
    root, name = dotted.partition(".")[0], dotted.rpartition(".")[2]
    kind = _CONSTRUCTORS.get((root, name))
    return (kind, "Django" if root == "django" else name) if kind else None


def _apps(module: _Module, factories: dict[str, tuple[Kind, str]]) -> Iterator[PythonApp]:
    place = (module.file, module.search_path)
    for name, kind, framework in module.objects:
        yield PythonApp(kind, module.module, name, *place, framework=framework)
    for name, callee in module.calls:
        if callee in factories:
            kind, framework = factories[callee]
            yield PythonApp(kind, module.module, name, *place, framework=framework)
    for name, (kind, framework) in module.factories.items():
        yield PythonApp(kind, module.module, name, *place, is_factory=True, framework=framework)
