"""What GitHub Actions reads from a step's output: annotations at a file's line, and the job summary."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from deployer.cli.output import Output, clean
from deployer.cli.traffic import cut_words
from deployer.errors import DeployerError, Exit
from deployer.units import format_duration

if TYPE_CHECKING:
    from deployer.cli.view import RolloutView

_PYTHON = re.compile(r'^\s*File "([^"]+)", line (\d+)')
_NODE = re.compile(r"^\s*at .*?\(?(?:file://)?(/[^():]+):(\d+):\d+\)?\s*$")
_PREFIX = re.compile(r"^([^\s:]+):(\d+)(?::\d+)?:")
_LIBRARY = re.compile(r"/(?:site-packages|dist-packages|node_modules|lib/python3)")
_RELEASE = re.compile(r"^.*/releases/\.?v\d+(?:\.partial)?/")


def annotate(out: Output, message: str, *, title: str, where: tuple[str, int] | None = None) -> None:
    """An `::error` line; `where` is a file of the repository and a line in it."""
    fields = [f"title={_property(title)}"]
    if where is not None:
        fields = [f"file={_property(where[0])}", f"line={where[1]}", *fields]
    out.tell(f"::error {','.join(fields)}::{_data(message)}")


def warn(out: Output, message: str) -> None:
    """A `::warning` line."""
    out.tell(f"::warning title=deployer::{_data(clean(message))}")


def annotate_failure(view: RolloutView, out: Output, what: str, error: DeployerError, headline: str) -> None:
    """The failure of a rollout, at the line of the application's own code that raised, if it shows."""
    last = next((clean(line) for line in reversed(view.tail) if line.strip()), "")
    message = "\n".join(part for part in (error.what, last, headline) if part)
    annotate(out, message, title=what, where=source_line(view.tail))


def annotate_error(out: Output, error: DeployerError) -> None:
    """An error that begins with file:line, as those of deployer.toml do."""
    found = _PREFIX.match(error.what)
    message = "\n".join(part for part in (error.what, error.cause) if part)
    annotate(out, message, title="deployer", where=(_inside(found[1]), int(found[2])) if found else None)


def source_line(tail: Sequence[str]) -> tuple[str, int] | None:
    """The innermost frame of a traceback that lies in the release itself, as a path inside of it."""
    frames = [(found[1], int(found[2])) for line in tail if (found := _PYTHON.match(line))]
    if not frames:
        # Node.js prints the innermost frame first.
        frames = [(found[1], int(found[2])) for line in reversed(tail) if (found := _NODE.match(line))]
    for path, number in reversed(frames):
        inside = _RELEASE.sub("", path)
        relative = not PurePosixPath(inside).is_absolute() and not inside.startswith("<")
        if relative and not _LIBRARY.search(f"/{inside}"):
            return inside, number
    return None


def summarise(view: RolloutView, out: Output, app: str, headline: str) -> None:
    """A few lines for the page of the job, in the file that $GITHUB_STEP_SUMMARY names."""
    path = out.env.get("GITHUB_STEP_SUMMARY")
    if not path or view.finished is None:
        return
    fields = view.finished
    good = fields.get("exit_code") in (Exit.OK, Exit.LIVE_WITH_WARNINGS)
    rows = {
        "result": f"{fields.get('outcome')} (exit {fields.get('exit_code')})",
        "release": view.release or "none",
        "serves now": fields.get("serving") or "nothing",
        "took": format_duration(fields["seconds"]) if fields.get("seconds") is not None else "?",
    }
    if view.judged:
        rows["canary"] = clean(f"{view.judged.get('verdict')}: {view.judged.get('text')}")
    text = [f"### {'✅' if good else '❌'} {view.kind} of {_html(app)}: {_html(headline)}", "", "| | |", "|---|---|"]
    text += [f"| {key} | {_html(value)} |" for key, value in rows.items()]
    text += [f"\n⚠️ {_html(clean(warning))}" for warning in view.warnings]
    if view.cut is not None:
        text.append(f"\n⚠️ {_html(cut_words(view.cut))}")
    if view.tail:
        lines = "\n".join(_html(clean(line)) for line in view.tail)
        text += ["", f"<details><summary>last output</summary><pre>\n{lines}\n</pre></details>"]
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write("\n".join([*text, "", ""]))
    except OSError as error:
        out.tell(f"the job summary {path} cannot be written: {os.strerror(error.errno or 0)}")


# Private.


def _inside(path: str) -> str:
    """A path below the working directory as the runner knows it: relative to it."""
    here = f"{os.getcwd()}/"
    return path.removeprefix(here)


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(clean(text)).replace(":", "%3A").replace(",", "%2C")


def _html(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("|", "&#124;")
