"""Writes what a watch has to say: saves on stdout, what went wrong on stderr, what is under way in a line that goes.

It stays calm: nothing is redrawn but that one line, and only on a terminal.
"""

from __future__ import annotations

from collections.abc import Iterable

from deployer.cli.lines import timestamped
from deployer.cli.logs import format_line
from deployer.cli.output import Output, clean, shorten
from deployer.cli.saves import Saves, Told
from deployer.client.follow import flatten
from deployer.errors import DeployerError
from deployer.wire.schema import Event, LogLine

LOST = "connection to the supervisor lost; the workers serve on, waiting ..."


class SaveScreen:
    """Events, log lines and answers to keys, as they come, by one thread."""

    def __init__(self, out: Output, saves: Saves) -> None:
        self.out = out
        self.saves = saves
        self._transient = ""  # the line that is there until the next one takes its place

    def event(self, event: Event) -> None:
        told = self.saves.apply(event)
        if self.out.style.json:
            self.out.result_json(flatten(event))
            return
        if self.out.style.verbose:
            self.say(timestamped(event, self.out.glyphs))
        self._print(told)

    def line(self, line: LogLine) -> None:
        self._print(self.saves.line(line))

    def say(self, text: str) -> None:
        """Beside the results."""
        self._erase()
        self.out.tell(text)
        self._draw()

    def error(self, error: DeployerError) -> None:
        self._erase()
        self.out.error(error)
        self._draw()

    def waiting(self, lost: bool) -> None:
        self.say(LOST if lost else "connected again")

    def close(self) -> None:
        self._erase()

    # Private.

    def _print(self, told: Iterable[Told | LogLine]) -> None:
        for one in told:
            self._erase()
            if isinstance(one, LogLine):
                self.out.result(format_line(one, self.out))
            else:
                self._tell(one)
        self._draw()

    def _tell(self, told: Told) -> None:
        out = self.out
        if told.good:
            out.result(out.paint(told.text, told.colour, stream=out.stdout))
        else:
            out.tell(out.paint(told.text, told.colour))
        out.tail(told.tail)
        if told.problem is not None:
            out.error(told.problem)
        if told.after:
            for line in told.after.split("\n"):
                out.tell(out.paint(clean(line), "warn"))

    def _draw(self) -> None:
        busy = self.saves.busy
        shown = busy is not None and self.out.live and not (self.out.style.json or self.out.style.verbose)
        text = shorten(clean(f"  ... {busy}"), self.out.width - 1) if shown else ""
        if text == self._transient:
            return
        self._erase()
        self.out.stderr.write(self.out.paint(text, "dim"))
        self.out.stderr.flush()
        self._transient = text

    def _erase(self) -> None:
        if self._transient:
            self.out.stderr.write("\r\x1b[K")
            self.out.stderr.flush()
            self._transient = ""
