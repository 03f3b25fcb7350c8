"""What may reach a terminal, and how columns are laid out."""

from __future__ import annotations

import pytest

from deployer.cli.output import clean, clean_lines, shorten, table


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("plain\ttext ✔ é", "plain\ttext ✔ é"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b[2J\x1b[1;1Hhome", "home"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]0;never ended", ""),
        ("\x1bPdcs\x1b\\after", "after"),
        ("\x1bcreset", "reset"),
        ("\x1b(0charset", "charset"),
        ("\x9b31mcsi \x85 nel", "31mcsi  nel"),
        ("bell\x07 back\x08 del\x7f nul\x00", "bell back del nul"),
        ("over\rwritten\nnext", "over written next"),
        ("\u202eright to left\u2069\u2028", "right to left "),
        ("\x1b", ""),
    ],
)
def test_nothing_a_terminal_would_obey_survives(text: str, left: str) -> None:
    assert clean(text) == left


def test_lines_are_kept_apart() -> None:
    assert clean_lines("one \r\n\x1b[1mtwo\n") == ["one", "two"]
    assert clean_lines("") == [""]


def test_a_table_aligns_and_cuts_at_the_width_given() -> None:
    assert table(("A", "LONG"), [("xyz", "1"), ("\x1b[1mb", "a long cell")]) == [
        "A    LONG",
        "xyz  1",
        "b    a long cell",
    ]
    assert table(("A", "LONG"), [("b", "a long cell")], width=10)[1] == "b  a lo..."
    assert shorten("fits", 4) == "fits"
