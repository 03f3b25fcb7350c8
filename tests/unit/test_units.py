"""Durations and sizes as people write and read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployer.units import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("0s", 0.0), ("3s", 3.0), ("1.5s", 1.5), ("5m", 300.0), ("1h", 3600.0), (" 3s ", 3.0)],
)
def test_a_duration_is_parsed_to_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "3", "s", "-3s", "3 s", "3S", "1d", "3s5m", ".5s", "1e3s", "inf"])
def test_what_is_no_duration_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(ValueError, match=r'is not a duration: write "250ms", "3s", "5m" or "1h"') as caught:
        parse_duration(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("512", 512), ("1K", 1024), ("512M", 512 * 1024**2), ("1.5G", 3 * 2**29), ("1T", 2**40)],
)
def test_a_size_is_parsed_in_powers_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1M", "512MB", "512 M", "512m", "1P", "x"])
def test_what_is_no_size_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(ValueError, match=r'is not a size: write "512M" or "2G"'):
        parse_size(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0s"),
        (0.34, "0.3s"),
        (9.94, "9.9s"),
        (10, "10s"),
        (59.9, "59s"),
        (60, "1m 0s"),
        (303, "5m 3s"),
        (3599, "59m 59s"),
        (3600, "1h 0m"),
        (7800, "2h 10m"),
        (86399, "23h 59m"),
        (273600, "3d 4h"),
    ],
)
def test_a_duration_is_shown_in_two_units_at_most(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KB"),
        (41 * 1024, "41 KB"),
        (12 * 1024**2, "12 MB"),
        (3 * 2**29, "1.5 GB"),
        (5000 * 1024**4, "5000 TB"),
    ],
)
def test_a_size_is_shown_in_one_unit(count: int, text: str) -> None:
    assert format_size(count) == text


@given(st.integers(0, 10**6), st.sampled_from([("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0)]))
def test_every_whole_number_with_a_unit_is_a_duration(number: int, unit: tuple[str, float]) -> None:
    assert parse_duration(f"{number}{unit[0]}") == pytest.approx(number * unit[1])


@given(st.text(max_size=8))
def test_any_other_text_is_refused_and_never_crashes(text: str) -> None:
    for parse in (parse_duration, parse_size):
        try:
            assert parse(text) >= 0
        except ValueError as error:
            assert "write" in str(error)  # noqa: PT017  # any text may be either
