"""What a watch looks at, and what of that makes a save. Pure: relative paths ("app/views.py") in, yes or no out.

Two questions. What *matters* is looked at: a snapshot holds it, and it must not change while that is made. What of it
*counts* makes a save by itself: that is what `paths` and `extensions` narrow. Nothing counts that does not matter, so
`ignore` beats `paths`, as in nodemon.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from pathspec import GitIgnoreSpec

from deployer.releases.sources.base import Exclude
from deployer.releases.sources.directory import ALWAYS_EXCLUDED
from deployer.watch.protocol import Settings

IGNORED = (
    *(".git", ".hg", ".svn", "node_modules/", "bower_components/"),
    *("__pycache__/", "*.pyc", "*.pyo", ".pytest_cache/", ".mypy_cache/", ".ruff_cache/", ".tox/", ".nox/"),
    *(".hypothesis/", ".nyc_output/", ".sass-cache/", ".idea/", ".vscode/", "*.log", ".DS_Store"),
    # Of editors: vim's test of the directory, swap files and backups; Emacs' locks and autosaves; JetBrains, GNOME.
    *(
        "4913",
        "*.swp",
        "*.swo",
        "*.swx",
        "*~",
        ".#*",
        "#*#",
        "*___jb_tmp___",
        "*___jb_old___",
        ".goutputstream-*",
        "*.tmp-*",
    ),
)
"""Names, beside virtual environments and ROOT, which are known by what is in them."""

_EVERYTHING = {".", "./", "*", "**", "*.*", "**/*", ".*"}
_BRACES = re.compile(r"\{([^{}]*,[^{}]*)\}")
_GLOB = re.compile(r"[*?\[{]")


class Filters:
    def __init__(self, settings: Settings) -> None:
        self._ignored = Exclude((*ALWAYS_EXCLUDED, *IGNORED, *settings.exclude))
        self._ignore = _patterns(settings.ignore, settings.path)
        everything = any(path in _EVERYTHING for path in settings.paths)
        paths = [] if everything else settings.paths
        self._paths = _patterns(paths, settings.path) if paths else None
        # As in nodemon: a file that `paths` names need not have one of the extensions.
        self._named = {path.rstrip("/").rpartition("/")[2] for path in paths if not _GLOB.search(path)}
        self._endings = tuple(f".{extension.removeprefix('*').removeprefix('.')}" for extension in settings.extensions)

    def ignores(self, path: str, *, directory: bool) -> bool:
        """Of an entry of a directory that is not ignored itself."""
        if self._ignored.matches(path, directory=directory):
            return True
        return bool(self._ignore.patterns) and self._ignore.match_file(f"{path}/" if directory else path)

    def counts(self, path: str, *, directory: bool = False) -> bool:
        """Of what matters: whether its change is a save. For a directory, which is part of a snapshot also when it is
        empty: whether it came or went."""
        if path.rpartition("/")[2] == ".gitignore":
            return True  # it decides what belongs to a snapshot
        if self._paths is not None and not self._paths.match_file(f"{path}/" if directory else path):
            return False
        if not self._endings:
            return True
        return not directory and (path.endswith(self._endings) or path.rpartition("/")[2] in self._named)


def expand(pattern: str) -> list[str]:
    """`*.{js,ts}` as globs without braces."""
    found = _BRACES.search(pattern)
    if found is None:
        return [pattern]
    head, tail = pattern[: found.start()], pattern[found.end() :]
    return [text for part in found[1].split(",") for text in expand(head + part + tail)]


def _patterns(globs: Iterable[str], top: str) -> GitIgnoreSpec:
    """Globs as nodemon has them, at any depth and with all that lies below what they match; "./x" and "/x" only at the
    top, where an absolute path below the source is too."""
    lines = []
    for glob in globs:
        for text in expand(glob.removeprefix(top) if glob.startswith(f"{top}/") else glob):
            anchored = text.startswith(("/", "./"))
            text = text.removeprefix(".").lstrip("/") if anchored else text
            if text:
                lines.append(f"/{text}" if anchored else f"**/{text}")
    return GitIgnoreSpec.from_lines(lines, backend="simple")
