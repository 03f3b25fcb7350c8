"""What a source changes against the live release, without what was built in either: by the releases' indexes."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from deployer.releases import compare
from deployer.releases.index import DamagedError, IndexReader, place
from deployer.wire.schema import Changes


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
        with closing(IndexReader(path)) as index:
            return {_text(where, entry.name): (entry.digest, entry.mode & 0o100) for where, entry in index.all()}
    except DamagedError:
        return None


def _text(directory: bytes, name: bytes) -> str:
    path = directory + b"/" + name if directory else name
    return path.decode("utf-8", "backslashreplace")
