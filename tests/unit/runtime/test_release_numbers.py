"""Releases as the scoreboard has them: words of 64 bits."""

from __future__ import annotations

import pytest

from deployer.runtime.api import name_of, number_of


@pytest.mark.parametrize("name", ["v1", "v4096", "dev-1", "dev-70000"])
def test_a_release_keeps_its_name(name: str) -> None:
    assert 0 < number_of(name) < 2**63
    assert name_of(number_of(name)) == name


@pytest.mark.parametrize("name", ["", "v", "dev-", "dev--1", "main"])
def test_what_is_no_release_has_no_number(name: str) -> None:
    assert number_of(name) == 0
