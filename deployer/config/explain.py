"""Why msgspec refuses the data of a deployer.toml, in words.

msgspec's own messages name Python types and lose the keys of dictionaries. So when it refuses, this walks data and
types side by side and finds each wrong place itself.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Annotated, Any, Literal, Union

import msgspec

from deployer.config.lines import Path
from deployer.config.model import Config, Duration, Section, Size
from deployer.config.problem import Problem, name_key, name_table


def explain(data: object) -> list[Problem]:
    """All that keeps `data` from being a Config: unknown keys first, since they explain missing ones."""
    found = list(_section(data, Config, ()))
    return sorted(found, key=lambda problem: not problem.text.startswith("unknown "))


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` most likely means, or None."""
    close = difflib.get_close_matches(word.lower(), list(known), n=1)
    return close[0] if close else None


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """A hint that names the nearest known word, or else all of them."""
    words = list(known)
    if guess := nearest(word, words):
        return f"did you mean `{guess}`?"
    return "known here: " + ", ".join(words)


def _section(data: object, section: type[Section], path: Path) -> Iterator[Problem]:
    if not isinstance(data, dict):
        yield _wrong_type(data, section, path)
        return
    fields = {field.encode_name: field for field in msgspec.structs.fields(section)}
    for key in data:
        if key not in fields:
            yield _unknown(key, data[key], list(fields), path)
    for name, field in fields.items():
        if name in data:
            yield from _value(data[name], field.type, (*path, name))
        elif field.required:
            yield _missing(name, path)


def _value(data: object, kind: Any, path: Path) -> Iterator[Problem]:
    if isinstance(kind, type) and issubclass(kind, Section):
        yield from _section(data, kind, path)
        return
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is list and isinstance(data, list):
        for index, item in enumerate(data):
            yield from _value(item, arguments[0], (*path, index))
    elif origin is dict and isinstance(data, dict):
        for key, item in data.items():
            yield from _value(item, arguments[1], (*path, key))
    else:
        try:
            msgspec.convert(data, kind)
        except msgspec.ValidationError:
            yield _wrong_type(data, _without_none(kind), path)


def _without_none(kind: Any) -> Any:
    """`X` of `X | None`: TOML has no null, so nobody can write one."""
    if typing.get_origin(kind) in (Union, types.UnionType):
        kinds = [one for one in typing.get_args(kind) if one is not types.NoneType]
        return kinds[0] if len(kinds) == 1 else kind
    return kind


def _unknown(key: str, value: object, known: list[str], path: Path) -> Problem:
    if path:
        text = f"unknown key `{key}` in {name_table(path)}"
    elif isinstance(value, dict):
        text = f"unknown table [{key}]"
    else:
        text = f"unknown key `{key}`"
    return Problem((*path, key), text, _home(key) or did_you_mean(key, known))


def _home(key: str) -> str | None:
    """Says where a key that stands in the wrong table belongs."""
    for field in msgspec.structs.fields(Config):
        if field.encode_name == key:
            return f"`{key}` belongs at the top of the file, before the first [table]"
    for name, section in _sections().items():
        if key in section.__struct_fields__:
            return f"`{key}` belongs in {'[[listen]]' if name == 'listen' else f'[{name}]'}"
    return None


def _sections() -> dict[str, type[Section]]:
    found = {}
    for field in msgspec.structs.fields(Config):
        inner = typing.get_args(field.type)[0] if typing.get_origin(field.type) is list else field.type
        if isinstance(inner, type) and issubclass(inner, Section):
            found[field.encode_name] = inner
    return found


def _missing(name: str, path: Path) -> Problem:
    if not path and name == "worker":
        return Problem(
            (), "the table [worker] is missing", 'add [worker] with app = "module:object" or command = "..."'
        )
    example = {"name": "shop", "address": "tcp://127.0.0.1:8000"}.get(name, "...")
    table = name_table(path)
    return Problem((*path, name), f"the key `{name}` is missing in {table}", f'add {name} = "{example}" to {table}')


def _wrong_type(data: object, kind: Any, path: Path) -> Problem:
    # Values of environment variables may be secrets, and what is printed here ends in logs.
    is_secret = path[:2] == ("worker", "env")
    text = f"{name_key(path)}: expected {_expected(kind, path)}, got {_got(data, is_secret)}"
    return Problem(path, text, _type_hint(data, kind, path))


def _type_hint(data: object, kind: Any, path: Path) -> str | None:
    if isinstance(data, list) and isinstance(kind, type) and issubclass(kind, Section) and len(path) == 1:
        return f"write [{path[0]}] with single brackets"
    if isinstance(data, dict) and path == ("listen",):
        return "write [[listen]] with double brackets"
    if isinstance(data, str) and isinstance(kind, type) and issubclass(kind, StrEnum):
        return did_you_mean(data, [str(member) for member in kind])
    if path[:2] == ("worker", "env") and len(path) == 3:
        return f'put the value in quotes: {path[2]} = "..."'
    return None


def _expected(kind: Any, path: Path) -> str:
    if kind == Duration:
        return 'a duration such as "3s"'
    if kind == Size:
        return 'a size such as "512M"'
    if isinstance(kind, type) and issubclass(kind, Section):
        return "a table"
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return "one of " + ", ".join(f'"{member}"' for member in kind)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_expected(inner, path) for inner in arguments if inner is not types.NoneType)
    if origin is Annotated:
        return _expected(arguments[0], path) + _range(arguments[1:])
    if origin is Literal:
        return " or ".join(f'"{word}"' for word in arguments)
    if origin is list:
        return "[[listen]] tables" if path == ("listen",) else "an array of texts"
    if origin is dict:
        return "a table of names and " + ("texts" if arguments[1] is str else "whole numbers")
    return {str: "a text in quotes", int: "a whole number", float: "a number", bool: "true or false"}[kind]


def _range(metas: tuple[Any, ...]) -> str:
    for meta in metas:
        if meta.ge is not None and meta.le is not None:
            return f" from {meta.ge} to {meta.le}"
        if meta.ge is not None:
            return f" of at least {meta.ge}"
    return ""


def _got(data: object, is_secret: bool) -> str:
    if isinstance(data, bool):
        return "true or false without quotes" if is_secret else str(data).lower()
    if isinstance(data, int | float):
        # Python refuses to print integers of thousands of digits.
        return "a number" if is_secret or abs(data) > 1e18 else f"the number {data}"
    if isinstance(data, str):
        return f'the text "{_short(data)}"'
    if isinstance(data, list):
        return "an array of tables" if data and isinstance(data[0], dict) else "an array"
    return "a table" if isinstance(data, dict) else "a date or time"


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."
