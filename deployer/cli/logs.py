"""`deployer logs`: what the workers wrote, all of them in one stream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from time import monotonic, sleep
from typing import Annotated

import msgspec
import typer

from deployer.cli.lines import stamp
from deployer.cli.output import Output, clean
from deployer.cli.session import Session
from deployer.client.follow import RECONNECT_LIMIT_S, RETRY_PAUSE_S, SILENCE_LIMIT_S
from deployer.client.transport import Stream
from deployer.errors import UnavailableError
from deployer.wire.schema import BLANK_SLOT, TEMPLATE_SLOT, WARM_SLOT, LogLine

CATCH_UP_LINES = 1000
"""Asked for after a break; those that were shown before are left out by their time."""


class Stamp(msgspec.Struct):
    """As much of a LogLine as it takes to put it in order."""

    ts: float


def run(
    session: Session,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what they write.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many old lines.")] = 100,
    slot: Annotated[int | None, typer.Option(min=0, metavar="N", help="Only this slot's (0: preflight).")] = None,
    release: Annotated[str | None, typer.Option(metavar="vN", help="Only this release's.")] = None,
) -> int:
    """Show what the workers wrote."""
    out = session.out
    for raw in log_lines(session, follow, lines, slot, release):
        if out.style.json:
            out.result(raw.decode())
            continue
        line = msgspec.json.decode(raw, type=LogLine)
        out.result(clean(line.line) if out.style.quiet else format_line(line, out))
    return 0


def format_line(line: LogLine, out: Output) -> str:
    """12:00:01.204 v7/1 9004 | text, with ! for the bar where it came from stderr; v7/template, where no slot's."""
    bar = "!" if line.stream == "stderr" else out.glyphs.bar
    slot = {TEMPLATE_SLOT: "template", WARM_SLOT: "warm", BLANK_SLOT: "blank"}.get(line.slot, line.slot)
    return f"{stamp(line.ts)} {line.release}/{slot} {line.pid} {bar} {clean(line.line)}".rstrip()


def log_lines(
    session: Session,
    follow: bool,
    lines: int,
    slot: int | None = None,
    release: str | None = None,
    since: float = 0.0,
) -> Iterator[bytes]:
    """Lines as they come. A manager that dies is waited for, and what was written meanwhile is not missed.

    `since`: only what was written later (seconds since the epoch).
    """
    last, give_up, patience = since, None, since
    while True:
        try:
            with closing(session.client.logs(lines=lines, follow=follow, slot=slot, release=release)) as stream:
                for raw in _read(stream):
                    give_up = None
                    if raw.strip() and (ts := msgspec.json.decode(raw, type=Stamp).ts) > patience:
                        last = max(last, ts)
                        yield raw
        except UnavailableError:
            if give_up is None or monotonic() >= give_up:
                raise
        if not follow:
            return
        if give_up is None:
            give_up = monotonic() + RECONNECT_LIMIT_S
        lines, patience = CATCH_UP_LINES, last
        sleep(RETRY_PAUSE_S)


def _read(stream: Stream) -> Iterator[bytes]:
    while True:
        try:
            raw = stream.readline(SILENCE_LIMIT_S)
        except TimeoutError:
            return
        if raw is None:
            return
        yield raw
