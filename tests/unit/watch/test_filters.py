"""Which paths make a save. The cases of nodemon's own test (test/monitor/match.test.js) are among them."""

from __future__ import annotations

from typing import Any

import pytest

from deployer.watch.filters import Filters, expand
from deployer.watch.protocol import Settings


def filters(**settings: Any) -> Filters:
    return Filters(Settings(path="/srv/shop", root="/srv/shop/.deployer", **settings))


def is_save(path: str, **settings: Any) -> bool:
    """Whether a change of this file is one, with each of its directories looked at from the top down."""
    rules = filters(**settings)
    parts = path.split("/")
    above = ("/".join(parts[:depth]) for depth in range(1, len(parts)))
    if any(rules.ignores(directory, directory=True) for directory in above):
        return False
    return not rules.ignores(path, directory=False) and rules.counts(path)


@pytest.mark.parametrize("path", ["app.py", "a/b/c.html", ".env", "a/.flaskenv", "Makefile", "a b/ü.txt", "x.tmp"])
def test_everything_counts(path: str) -> None:
    assert is_save(path)


@pytest.mark.parametrize(
    "path",
    [
        ".git/HEAD",
        "lib/.git/index",
        ".hg/store",
        "node_modules/react/index.js",
        "web/node_modules/a.js",
        "__pycache__/app.cpython-311.pyc",
        "a/app.pyc",
        ".mypy_cache/x.json",
        ".pytest_cache/v",
        ".ruff_cache/x",
        ".tox/py/x.py",
        ".nox/py/x.py",
        ".idea/workspace.xml",
        ".vscode/settings.json",
        "shop.log",
        "logs/today.log",
        "4913",
        "views/4913",
        ".app.py.swp",
        ".app.py.swx",
        "app.py~",
        ".#app.py",
        "#app.py#",
        "app.py.tmp-1234",
        ".DS_Store",
        "app.py___jb_tmp___",
    ],
)
def test_caches_logs_and_files_of_editors_do_not(path: str) -> None:
    assert not is_save(path)


def test_a_file_that_is_called_like_an_ignored_directory_counts() -> None:
    assert is_save("docs/node_modules")


@pytest.mark.parametrize(
    ("path", "expected"),
    [("app.py", True), ("a/b.html", True), ("c.js", False), ("py", False), ("Makefile", False), ("x.pyi", False)],
)
@pytest.mark.parametrize("extensions", [["py", "html"], [".py", ".html"], ["*.py", "*.html"]])
def test_extensions_with_dot_and_without(path: str, expected: bool, extensions: list[str]) -> None:
    assert is_save(path, extensions=extensions) is expected


def test_an_extension_of_several_parts() -> None:
    assert is_save("a.html.jinja", extensions=["html.jinja"])
    assert not is_save("a.jinja", extensions=["html.jinja"])


@pytest.mark.parametrize(
    ("paths", "path", "expected"),
    [
        # nodemon: "should match zero files", "one file", "two files", "be specific about directories"
        (["views/server/*"], "views/server/remy.js", True),
        (["views/server/*"], "views/server/deep/remy.js", True),
        (["views/server/*"], "random.js", False),
        (["lib"], "app.js", False),
        (["lib"], "lib/a.js", True),
        (["lib/"], "lib/deep/a.js", True),
        (["lib"], "library/a.js", False),
        # "should allow for relative paths", "*.js at the top level", "simple star rule"
        (["*.js"], "app.js", True),
        (["*.js"], "deep/app.js", True),
        (["public/*"], "public/js/chrome.save.js", True),
        (["./*.nodemon"], "app.nodemon", True),
        (["./*.nodemon"], "dir/app.nodemon", False),
        (["/*.js"], "dir/app.js", False),
        # "--watch .", "--watch .*", "lots of **s"
        (["."], "index.js", True),
        ([".*"], "index.js", True),
        (["*.*"], "test/fixtures/app", True),
        (["**/*"], "a/b", True),
        (["src/**/*.py"], "src/a.py", True),
        (["src/**/*.py"], "src/x/y/a.py", True),
        (["src/**/*.py"], "src/a.js", False),
        (["src/**/*.py"], "lib/a.py", False),
        (["config/*/config.json"], "config/prod/config.json", True),
        (["*.{js,ts}"], "web/a.ts", True),
        (["*.{js,ts}"], "web/a.css", False),
        (["/srv/shop/lib"], "lib/a.py", True),
        (["/srv/shop/lib"], "other/lib/a.py", False),
        (["a", "b"], "b/x", True),
        (["[ab].py"], "a.py", True),
        (["?.py"], "ab.py", False),
    ],
)
def test_paths_as_in_nodemon(paths: list[str], path: str, expected: bool) -> None:
    assert is_save(path, paths=paths) is expected


@pytest.mark.parametrize(
    ("ignore", "path", "expected"),
    [
        (["*.coffee"], "views/server/remy.coffee", False),
        (["test/fixtures"], "test/fixtures/app.js", False),
        (["test/fixtures/"], "test/fixtures/deep/app.js", False),
        (["public/*"], "public/js/chrome.save.js", False),
        (["**/dir/*.nodemon"], "dir/app.nodemon", False),
        (["**/dir/*.nodemon"], "a/dir/app.nodemon", False),
        (["./*.nodemon"], "app.nodemon", False),
        (["./*.nodemon"], "deep/app.nodemon", True),
        (["**/coverage/**"], "test/coverage/x.js", False),
        (["**/coverage/**"], "test/cover/x.js", True),
        (["views/server/ignore.js"], "views/server/ignore.js", False),
        (["views/server/ignore.js"], "views/server/keep.js", True),
        (["*.{css,map}"], "web/a.map", False),
        (["#notes"], "#notes", False),
    ],
)
def test_what_is_ignored(ignore: list[str], path: str, expected: bool) -> None:
    assert is_save(path, ignore=ignore) is expected


def test_ignore_beats_watch() -> None:
    for paths in (["public/app.js"], ["public"], ["public/*"], ["**/*.js"]):
        assert not is_save("public/app.js", paths=paths, ignore=["public/*"])
    assert not is_save("node_modules/a.js", paths=["node_modules"])


def test_a_file_that_is_named_needs_no_extension() -> None:
    """nodemon: "should support --watch <single file>"."""
    rules: dict[str, Any] = {"paths": ["config.json", "src"], "extensions": ["py"]}
    assert is_save("config.json", **rules)
    assert is_save("src/a.py", **rules)
    assert not is_save("src/a.css", **rules)
    assert not is_save("other.json", **rules)


def test_a_gitignore_always_counts() -> None:
    assert is_save("lib/.gitignore", extensions=["py"], paths=["src"])


def test_what_is_no_part_of_a_snapshot_matters_to_nobody() -> None:
    assert not is_save("docs/a.md", exclude=["docs"])


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a", ["a"]),
        ("{a}", ["{a}"]),
        ("*.{a,b}", ["*.a", "*.b"]),
        ("{x,y}/{1,2}", ["x/1", "x/2", "y/1", "y/2"]),
        ("a{b,{c,d}}", ["ab", "ac", "ab", "ad"]),
    ],
)
def test_braces(pattern: str, expected: list[str]) -> None:
    assert expand(pattern) == expected
