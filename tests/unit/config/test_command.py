"""Placeholders in the words of a command."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployer.config.command import escape, fill, placeholders, split


def test_placeholders_are_filled_in_after_the_words_are_split() -> None:
    words = split("serve '--fd={fd}' {fd:web}/{worker} {release} {{fd}}")
    values = {"fd": "3", "fd:web": "4", "worker": "1", "release": "v 7"}
    assert [fill(word, values) for word in words] == ["serve", "--fd=3", "4/1", "v 7", "{fd}"]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text("{}fd: x"))
def test_escaped_text_has_no_placeholders_and_comes_back_as_it_was(text: str) -> None:
    assert placeholders(escape(text)) == []
    assert fill(escape(text), {}) == text
