"""Where words go: the result on stdout, everything else on stderr; and what a terminal can be given.

Text that others wrote (log lines, commit subjects, an error of git) passes `clean` before it is printed:
a worker must not be able to move the cursor or set the title of the terminal of whoever reads its log.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

import msgspec

from deployer.errors import DeployerError, Exit

if TYPE_CHECKING:
    from collections.abc import Iterator

_CONTROL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|\x1b[\]PX^_].*?(?:\x07|\x1b\\|$)"  # OSC, DCS, SOS, PM, APC: titles, clipboard, links
    r"|\x1b[ -/]*[0-~]?"  # other escapes
    r"|[\x00-\x08\x0a-\x1f\x7f-\x9f]"  # C0 without the tab, DEL, C1
    r"|[\u2028-\u202e\u2066-\u2069]",  # line ends and direction overrides of Unicode
    re.DOTALL,
)
_COLOURS = {"good": "32", "bad": "31", "warn": "33", "dim": "2"}
_HINTS = {Exit.CONFIG: "correct the file, then: deployer check"}
"""The next step where the error itself knows none."""


@dataclass(frozen=True)
class Glyphs:
    """Signs that stand before words, never instead of them."""

    good: str = "✔"
    bad: str = "✖"
    busy: str = "◌"
    idle: str = "·"
    dot: str = "●"
    warn: str = "▲"
    bar: str = "│"
    arrow: str = "→"
    dash: str = "\u2013"


ASCII = Glyphs(good="+", bad="x", busy="~", idle=".", dot="*", warn="!", bar="|", arrow="->", dash="-")


@dataclass(frozen=True)
class Style:
    """How much to say, and in which form (the options that every command takes)."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False


class Output:
    """Prints for one command; knows what its two streams can show."""

    def __init__(self, stdout: TextIO, stderr: TextIO, env: Mapping[str, str], style: Style) -> None:
        self.stdout = stdout
        self.stderr = stderr
        self.env = env
        self.style = style
        self.github = env.get("GITHUB_ACTIONS") == "true"
        dumb = env.get("TERM", "dumb") == "dumb"
        self.live = stderr.isatty() and not dumb and env.get("CI", "").lower() in ("", "0", "false")
        self._colour = not env.get("NO_COLOR") and not dumb
        self.glyphs = Glyphs() if _is_utf8(stdout, env) and _is_utf8(stderr, env) else ASCII

    @property
    def width(self) -> int:
        """Columns of the terminal, at least 40."""
        return max(40, shutil.get_terminal_size((80, 24)).columns)

    @property
    def height(self) -> int:
        return max(6, shutil.get_terminal_size((80, 24)).lines)

    def result(self, text: str) -> None:
        """What was asked for."""
        print(text, file=self.stdout, flush=True)

    def result_json(self, value: Any) -> None:
        print(msgspec.json.encode(value).decode(), file=self.stdout, flush=True)

    def note(self, text: str) -> None:
        """Progress and advice: not under --quiet, and not beside --json, which a program reads."""
        if not (self.style.quiet or self.style.json):
            self.tell(text)

    def tell(self, text: str) -> None:
        """What must be said whatever the options are, to people."""
        print(text, file=self.stderr, flush=True)

    def error(self, error: DeployerError) -> None:
        """`error:` what, `cause:` why, `hint:` one command to paste."""
        with self.untrusted():
            for key, text, colour in (
                ("error", error.what, "bad"),
                ("cause", error.cause, None),
                ("hint", error.hint or _HINTS.get(error.exit_code), None),
            ):
                if text:
                    first, *rest = clean_lines(text)
                    head = f"{key}:"
                    self.tell(f"{self.paint(head, colour)} {first}")
                    for line in rest:
                        self.tell(f"{' ' * len(head)} {line}")

    def tail(self, lines: Sequence[str]) -> None:
        """Log lines of a worker, as it wrote them, each behind a bar."""
        with self.untrusted():
            for line in lines:
                self.tell(f"  {self.glyphs.bar} {clean(line)}".rstrip())

    @contextmanager
    def untrusted(self) -> Iterator[None]:
        """Under GitHub Actions a printed line may be a command to the runner: not in here."""
        if not self.github:
            yield
            return
        token = os.urandom(16).hex()
        self.tell(f"::stop-commands::{token}")
        try:
            yield
        finally:
            self.tell(f"::{token}::")

    def paint(self, text: str, colour: str | None, *, stream: TextIO | None = None) -> str:
        """Colour where the stream (stderr unless said) shows it; the words say it all without."""
        if colour is None or not self._colour or not (stream or self.stderr).isatty():
            return text
        return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"


def clean(text: str) -> str:
    """One line without anything that a terminal would obey."""
    return _CONTROL.sub(lambda found: " " if found[0] in "\n\r\v\f\u2028\u2029" else "", text)


def clean_lines(text: str) -> list[str]:
    """The same for text that may have several lines; at least one, perhaps empty."""
    return [clean(line).rstrip() for line in text.strip().split("\n")]


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, width: int | None = None) -> list[str]:
    """Columns two spaces apart, without borders; no line is longer than `width` where it is given."""
    cells = [list(head), *([clean(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = ("  ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True)) for row in cells)
    return [shorten(line.rstrip(), width) for line in lines]


def shorten(text: str, width: int | None) -> str:
    """At most `width` characters, with an ellipsis of plain dots where something was cut."""
    if width is None or len(text) <= width:
        return text
    return text[: max(0, width - 3)].rstrip() + "..."


def _is_utf8(stream: TextIO, env: Mapping[str, str]) -> bool:
    """Python writes UTF-8 even in the C locale, where the terminal may not read it: ask the locale too.

    Python itself sets LC_CTYPE=C.UTF-8 when there is no other locale, so that value proves nothing.
    """
    if (stream.encoding or "").lower().replace("-", "") != "utf8":
        return False
    kind = env.get("LC_CTYPE", "")
    name = env.get("LC_ALL") or ("" if kind == "C.UTF-8" else kind) or env.get("LANG", "")
    return "utf8" in name.lower().replace("-", "")


def devnull(stream: TextIO) -> None:
    """Point a stream whose reader left at /dev/null, so that the interpreter's last flush is quiet."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, stream.fileno())
    finally:
        os.close(null)
