"""What a source changes against the live release, without what was built in either: by the releases' indexes."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from deployer.releases import compare
from deployer.releases.index import place
from deployer.wire.schema import Changes

_ALL = "SELECT directory, name, digest, mode & 64 FROM file"


def source_changes(live: Path | None, release: Path, tree: Path) -> Changes:
    """`release` is the name whose index tells what is in `tree`. Without an index of the live release the trees are
    compared, and what was built in it counts as removed. Raises OSError."""
    before = {} if live is None else _indexed(place(live))
    after = _indexed(place(release))
    if before is None or after is None:
        found = list(compare.differences(live, tree))
        return Changes(
            added=[each.path for each in found if each.old is None],
            removed=[each.path for each in found if each.new is None],
            changed=[each.path for each in found if each.old is not None and each.new is not None],
        )
    return Changes(
        added=sorted(after.keys() - before.keys()),
        removed=sorted(before.keys() - after.keys()),
        changed=sorted(path for path in after.keys() & before.keys() if after[path] != before[path]),
    )


def _indexed(path: Path) -> dict[str, tuple[bytes, int]] | None:
    """Digest and executable bit of each file by its path; None where there is no index, or a damaged one."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as db:
            rows = db.execute(_ALL).fetchall()
    except sqlite3.Error:
        return None
    return {_text(directory, name): (digest, executable) for directory, name, digest, executable in rows}


def _text(directory: bytes, name: bytes) -> str:
    path = directory + b"/" + name if directory else name
    return path.decode("utf-8", "backslashreplace")
