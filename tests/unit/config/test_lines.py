"""The line of each key, in every form that TOML allows."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployer.config.lines import Path, find_lines

TEXT = '''\
name = "a # [no]"   # = comment
"quoted.key" = 1

[worker]
env.A = """
[worker]
x = "1"
"""
rlimits = { nofile = 1, "a b" = [2, {z = 3}] }
list = [
  "one", # ]
  'two]',
]

[[listen]]
address = 'x'
[[listen]]
[listen.deep]
key = 1979-05-27T07:32:00
[health] # end
http = "/"
[only.below]
'''


def test_tables_keys_and_items_are_found_on_their_lines() -> None:
    lines = find_lines(TEXT)
    assert lines[("name",)] == 1
    assert lines[("quoted.key",)] == 2
    assert lines[("worker",)] == 4
    assert lines[("worker", "env", "A")] == 5
    assert lines[("worker", "rlimits", "nofile")] == 9
    assert lines[("worker", "rlimits", "a b", 1, "z")] == 9
    assert lines[("worker", "list", 0)] == 11
    assert lines[("worker", "list", 1)] == 12
    assert lines[("listen", 0, "address")] == 16
    assert lines[("listen", 1)] == 17
    assert lines[("listen", 1, "deep", "key")] == 19
    assert lines[("health", "http")] == 21
    assert lines[("only",)] == 22


def test_the_finder_sees_the_places_that_the_parser_sees() -> None:
    assert set(_places(tomllib.loads(TEXT), ())) <= set(find_lines(TEXT))


KEYS = st.text("ab.\"'\\#[]= é", max_size=4)
VALUES = st.recursive(
    st.text("ab\"'\\#[]{},= \té", max_size=6) | st.integers() | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_any_document_is_read_to_its_end(data: dict[str, object]) -> None:
    text = "".join(f"{json.dumps(key, ensure_ascii=False)} = {_write(value)}\n" for key, value in data.items())
    lines = find_lines(text)
    assert [lines[(key,)] for key in data] == list(range(1, len(data) + 1))
    assert set(_places(tomllib.loads(text), ())) == set(lines)


def _places(value: object, path: Path) -> Iterator[Path]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from _places(item, (*path, key))


def _write(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_write, value)) + "]"
    if isinstance(value, dict):
        pairs = (f"{json.dumps(key, ensure_ascii=False)} = {_write(item)}" for key, item in value.items())
        return "{" + ", ".join(pairs) + "}"
    return json.dumps(value, ensure_ascii=False)
