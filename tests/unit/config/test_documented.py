"""Each key of deployer.toml is explained to users, with its default."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from deployer.config.model import Config, Section

REPO = Path(__file__).resolve().parents[3]
ROW = re.compile(r"\| `(\w+)` \| (?:`([^`]*)`|(none|required)) \| .+ \|")
HEADING = re.compile(r"## (?:\[+(\w+)\]+|At the top)")
ABSENT = {"none": None, "required": msgspec.NODEFAULT}


def documented() -> dict[str, Any]:
    """ "section.key" -> default, as docs/configuration.md has it."""
    found: dict[str, Any] = {}
    section = ""
    for line in (REPO / "docs" / "configuration.md").read_text().splitlines():
        if heading := HEADING.fullmatch(line):
            section = f"{heading[1]}." if heading[1] else ""
        elif row := ROW.fullmatch(line):
            found[section + row[1]] = ABSENT[row[3]] if row[3] else json.loads(row[2])
    return found


def keys() -> dict[str, Any]:
    """The same of the model."""
    found: dict[str, Any] = {}
    for field in msgspec.structs.fields(Config):
        section = _section(field.type)
        if section is None:
            found[field.name] = _default(field)
        else:
            found |= {f"{field.name}.{inner.name}": _default(inner) for inner in msgspec.structs.fields(section)}
    return found


def _section(kind: Any) -> type[Section] | None:
    kinds = (kind, *getattr(kind, "__args__", ()))  # a table, or a list of them
    return next((each for each in kinds if isinstance(each, type) and issubclass(each, Section)), None)


def _default(field: Any) -> Any:
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


@pytest.mark.parametrize("key", keys())
def test_every_key_is_explained_with_its_default(key: str) -> None:
    assert documented().get(key, "not there") == keys()[key]


def test_no_key_is_explained_that_is_none() -> None:
    assert documented().keys() == keys().keys()
