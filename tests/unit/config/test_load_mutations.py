"""Whatever is written in deployer.toml, `load` answers with a Config or a ConfigError."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployer.config.load import load
from deployer.errors import ConfigError

VALID = """\
name = "shop"

[worker]
command = "serve {fd}"

[[listen]]
address = "tcp://127.0.0.1:8000"
"""

FULL = (
    VALID
    + """\
backlog = 128
[source]
path = "app"
exclude = ["*.log"]
[health]
http = "/up"
interval = "5s"
[rollout]
soak = "3s"
on_failure = "hold"
[worker.env]
A = "1"
[worker.rlimits]
nofile = 1024
"""
)
PIECES = (
    st.sampled_from(
        [
            "[",
            "]",
            "[[",
            '"',
            "'",
            '"""',
            "{",
            "}",
            "=",
            ".",
            ",",
            "\n",
            "0",
            "-1",
            "1e999",
            "nan",
            "true",
            "\\u0000",
            "é",
        ]
    )
    | st.sampled_from(
        ["ref = 1", "[worker]", "listen = 1", "{fd:x}", "tcp://", "unix:", "\x00", "1979-05-27", "9" * 40]
    )
    | st.text(max_size=3)
)


@settings(
    max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
@given(st.lists(st.tuples(st.integers(0, len(FULL)), st.integers(0, 12), PIECES), min_size=1, max_size=4))
def test_any_mutation_is_loaded_or_refused_as_a_config_error(tmp_path: Path, edits: list[tuple[int, int, str]]) -> None:
    text = FULL
    for at, length, piece in edits:
        text = text[:at] + piece + text[at + length :]
    path = tmp_path / "mutated.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        load(path)
    except ConfigError as error:
        assert error.what.startswith("mutated.toml:")  # noqa: PT017
        assert "msgspec" not in error.what  # noqa: PT017
        assert "`str`" not in error.what  # noqa: PT017


KEYS = st.sampled_from(["name", "worker", "listen", "command", "ready", "env.A", "rlimits.nofile", "address", "'a b'"])
VALUES = st.sampled_from(
    ["1", "-1", "0", "1.5", "nan", "true", "''", "'x'", "'{fd}'", "'{fd:x}'", "'unix:x'", "'0s'", "'1h'", "'http'"]
) | st.sampled_from(
    ["[]", "[1]", "['x']", "[{}]", "{}", "{x = 1}", "{x = 'y'}", "1979-05-27", "'\"'", "0x" + "f" * 5000]
)


@settings(
    max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
@given(st.integers(0, FULL.count("\n") - 1), st.none() | KEYS, VALUES)
def test_any_wrong_key_or_value_is_refused_with_its_line(tmp_path: Path, at: int, key: str | None, value: str) -> None:
    rows = FULL.splitlines()
    kept = rows[at].partition(" =")[0] if "=" in rows[at] else None
    rows[at] = f"{key or kept or 'other'} = {value}"
    path = tmp_path / "mutated.toml"
    path.write_text("\n".join(rows))
    try:
        load(path)
    except ConfigError as error:
        # Only what is not there at all has no line.
        assert re.match(r"mutated\.toml:(\d+: |.* is missing)", error.what)  # noqa: PT017
        assert "Expected `" not in error.what  # noqa: PT017


def test_the_text_that_is_mutated_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "deployer.toml"
    path.write_text(FULL)
    assert load(path).config.rollout.soak == "3s"
