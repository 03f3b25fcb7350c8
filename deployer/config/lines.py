"""On which line a key of a TOML text stands; tomllib does not tell. Reads only text that tomllib accepted."""

from __future__ import annotations

import re
import tomllib

Path = tuple[str | int, ...]
"""Where a value lies: ("worker", "command"), ("listen", 0, "address")."""

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_KEY_PART = re.compile(r"""[ \t]*(?:(?P<bare>[A-Za-z0-9_-]+)|(?P<quoted>"(?:\\.|[^"\\\n])*"|'[^'\n]*'))[ \t]*""")
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}(?!")|\'\'\'.*?\'{3,5}(?!\')|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'', re.DOTALL
)
_SCALAR = re.compile(r"[^,\]}\n#]*")


def find_lines(text: str) -> dict[Path, int]:
    """The line, from 1, of every table, key and array item in `text`."""
    scanner = _Scanner(text)
    scanner.document()
    return scanner.lines


class _Scanner:
    """One pass over the text; `at` is where it reads."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Path, int] = {}
        self._items: dict[Path, int] = {}
        self._counted = (0, 1)

    def document(self) -> None:
        table: Path = ()
        while self._skip_blank():
            before = self.at
            if self.text.startswith("[", self.at):
                table = self._header()
            else:
                self._pair(table)
            assert self.at > before, "text that tomllib accepted is read to its end"

    def _header(self) -> Path:
        line = self._line()
        is_array = self.text.startswith("[[", self.at)
        self.at += 2 if is_array else 1
        parts = self._key()
        self.at += 2 if is_array else 1
        path: Path = ()
        for part in parts[:-1]:
            self.lines.setdefault((*path, part), line)
            path = self._enter(path, part)
        path = (*path, parts[-1])
        if is_array:
            self.lines.setdefault(path, line)
            self._items[path] = self._items.get(path, -1) + 1
            path = (*path, self._items[path])
        self.lines[path] = line
        return path

    def _enter(self, path: Path, part: str) -> Path:
        """Below `part`: of an array of tables, the item that was opened last."""
        inner = (*path, part)
        return (*inner, self._items[inner]) if inner in self._items else inner

    def _pair(self, table: Path) -> None:
        path = table
        line = self._line()
        for part in self._key():
            path = (*path, part)
            self.lines.setdefault(path, line)
        self.at += 1
        self._value(path)

    def _key(self) -> list[str]:
        parts: list[str] = []
        while match := _KEY_PART.match(self.text, self.at):
            parts.append(match["bare"] or _unquote(match["quoted"]))
            self.at = match.end()
            if not self.text.startswith(".", self.at):
                break
            self.at += 1
        return parts

    def _value(self, path: Path) -> None:
        self._skip_blank()
        if string := _STRING.match(self.text, self.at):
            self.at = string.end()
        elif self.text.startswith("[", self.at):
            self._sequence(path, "]")
        elif self.text.startswith("{", self.at):
            self._sequence(path, "}")
        elif scalar := _SCALAR.match(self.text, self.at):
            self.at = scalar.end()

    def _sequence(self, path: Path, closing: str) -> None:
        """An array's items or an inline table's pairs, up to `closing`."""
        self.at += 1
        index = 0
        while self._skip_blank() and not self.text.startswith(closing, self.at):
            if self.text.startswith(",", self.at):
                self.at += 1
            elif closing == "}":
                self._pair(path)
            else:
                self.lines[(*path, index)] = self._line()
                self._value((*path, index))
                index += 1
        self.at += 1

    def _skip_blank(self) -> bool:
        """Past white space and comments; False at the end of the text."""
        match = _BLANK.match(self.text, self.at)
        assert match is not None
        self.at = match.end()
        return self.at < len(self.text)

    def _line(self) -> int:
        # Counted on from the last place, so that a long text is read once.
        start, line = self._counted
        line += self.text.count("\n", start, self.at)
        self._counted = (self.at, line)
        return line


def _unquote(quoted: str) -> str:
    return next(iter(tomllib.loads(f"{quoted} = 0")))
