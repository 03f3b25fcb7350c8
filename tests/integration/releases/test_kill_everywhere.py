"""SIGKILL of the staging child, and of its group, at every change it makes: nothing live is touched, the next works.

Exhaustive by counting. `killsite/sitecustomize.py` listens to Python's audit events in the staging child (no hook in
the product) and counts those that change the disk or start a process. A first run counts them; then there is one run
for each, killed just before it, up to the last, when the result has been told (for each second one, unless
DEPLOYER_EVERY_KILL=1: tests/sweep.py). Not audited are writes, fsyncs and what git, uv and build commands do in their
own processes: of those the places before and after are covered here, the middle in test_stage_kill.py and
test_stage_build.py.

After each kill: all that was live (v1's tree with inodes, contents, modes and times, its index, its environment,
`current`, what lies in ROOT/shared) is as it was; v2, when it stands there without a mark, is whole; the sweep of a
starting manager leaves nothing but whole releases. Then the manager's next attempt (`Work._stage`: remove what has the
name, stage it, and after the promotion remove what no release needs) gives the tree, and leaves in ROOT exactly what a
run that was never killed leaves there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from stagekit import CONFIG, Done, Repository, Stager

from deployer.config.model import Build, Config, Release
from deployer.paths import Layout
from deployer.releases import envs, tree
from deployer.releases.digest import tree_digest
from deployer.releases.request import Artifact, Directory, Git, Room, Source
from tests.sweep import dealt

pytestmark = pytest.mark.long
HERE = Path(__file__).parent
CHUNKS = 2  # tests, side by side, among which the points of a scenario are dealt out

READS = re.compile(r"mode=ro&|'git', 'version'|'(config', '--get|rev-parse|cat-file|log|status|ls-remote)'")

Facts = dict[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Point:
    """A place to kill at: see sitecustomize.py."""

    at: str
    event: str
    text: str


@dataclass
class World:
    """A ROOT in which v1 is live, and what v2 is to be made from."""

    stager: Stager
    source: Source
    options: dict[str, Any]
    tree: Path  # what v2's source holds, and nothing else
    expected: dict[str, str]  # files of v2: path and content
    kinds: set[str]  # of events that must be among those counted
    changing: tuple[str, ...] = ()  # of ROOT: what staging brings up to date in place, so that it is put back each time
    module: bool = False  # workers of v2 import `one` from its environment
    live: Facts = field(default_factory=dict)
    kept: Path = Path()

    @property
    def layout(self) -> Layout:
        return self.stager.layout

    def freeze(self, live_digest: str | None) -> None:
        """What there is now is live."""
        if live_digest is not None:
            self.layout.current.symlink_to("releases/v1")
        self.options = {"live_digest": live_digest, "room": Room(), **self.options}
        self.live = self.facts()
        self.kept = self.layout.root.with_name("kept")
        self._copy_changing(self.layout.root, self.kept)

    def facts(self) -> Facts:
        """Of all in ROOT: what tells that somebody touched it. Nothing of a directory that others are made in."""
        top = os.fspath(self.layout.root)
        found: Facts = {}
        for directory, directories, names in os.walk(top):
            relative = os.path.relpath(directory, top)
            if relative.split("/")[0] in self.changing:
                directories.clear()
                continue
            for name in (*directories, *names):
                if name in self.changing:
                    continue
                path = os.path.join(directory, name)
                found[os.path.normpath(f"{relative}/{name}")] = _fact(path)
        return found

    def untouched(self) -> None:
        found = self.facts()
        changed = {path: (fact, found.get(path)) for path, fact in self.live.items() if found.get(path) != fact}
        assert not changed
        tops = [path for path in self.live if re.fullmatch(r"releases/v1|envs/[0-9a-f]+-[0-9a-f]+", path)]
        added = [path for path in found if path not in self.live and path.startswith(tuple(f"{top}/" for top in tops))]
        assert not [path for path in added if envs.SIZE not in path]  # of a live environment too: a note of its size

    def reset(self) -> None:
        """Nothing is there but what is live."""
        for path in sorted(self.facts(), reverse=True):
            if path not in self.live:
                _unlink(self.layout.root / path)
        for name in self.changing:
            shutil.rmtree(self.layout.root / name, ignore_errors=True)
        self._copy_changing(self.kept, self.layout.root)

    def _copy_changing(self, top: Path, into: Path) -> None:
        for name in self.changing:
            if (top / name).exists():
                shutil.copytree(top / name, into / name, symlinks=True)

    # Runs

    def stage(self, **env: str) -> subprocess.Popen[bytes]:
        stager = self.stager
        before, stager.env = stager.env, stager.env | env
        try:
            return stager.start(stager.request(self.source, "v2", **self.options))
        finally:
            stager.env = before

    def count(self, trace: Path) -> list[Point]:
        """A run that nobody kills: v2 is there after it."""
        done = self.stager.finish(self.stage(PYTHONPATH=str(HERE / "killsite"), KILL_TRACE=str(trace)))
        self.made(done)
        lines = (line.split(" ", 3) for line in trace.read_text().splitlines())
        return [Point(f"{role} {number}", event, text) for role, number, event, text in lines]

    def kill(self, point: Point, trace: Path) -> None:
        trace.unlink(missing_ok=True)
        child = self.stage(PYTHONPATH=str(HERE / "killsite"), KILL_TRACE=str(trace), KILL_AT=point.at)
        out, errors = child.communicate(timeout=60)
        assert child.returncode == -signal.SIGKILL, (point, out, errors)
        last = trace.read_text().splitlines()
        assert any(line.startswith(f"{point.at} {point.event} ") for line in last), (point, last)

    def again(self) -> Done:
        """As a manager does: it has v2 staged once more, and after the promotion removes what nobody needs."""
        tree.remove(self.layout.release("v2"))
        done = self.stager.finish(self.stage())
        result = done.result or {}
        for path in envs.unused(self.layout.envs, [*self.environments("v1"), result.get("environment") or ""]):
            envs.remove(path)
        return done

    # Judging

    def made(self, done: Done) -> None:
        assert done.exit == 0, done.told
        assert done.result is not None
        assert done.result["outcome"] == "staged"
        self.whole(self.layout.release("v2"))

    def whole(self, release: Path) -> None:
        """All of v2's tree, and what it needs."""
        told = json.loads((release / ".deployer.json").read_text())
        for name, text in self.expected.items():
            assert (release / name).read_text() == text, name
        assert told["tree_digest"] == tree_digest(self.tree)
        if self.module:
            python = self.layout.envs / told["environment"] / "bin" / "python"
            assert os.access(python, os.X_OK)
            assert list(python.parent.parent.glob("lib/*/site-packages/one.py"))

    def environments(self, name: str) -> list[str]:
        path = self.layout.release(name) / ".deployer.json"
        told = json.loads(path.read_text()) if path.exists() else {}
        return [told["environment"]] if told.get("environment") else []

    def half_or_whole(self) -> None:
        """What a link in envs/ names is whole, and so is a release without a mark: both are trusted."""
        for link in self.layout.envs.glob("[0-9a-f]*"):
            if link.is_symlink():
                assert os.access(link / "bin" / "python", os.X_OK)
        if self.layout.release("v2").exists() and not self.layout.building("v2").exists():
            self.whole(self.layout.release("v2"))

    def listing(self) -> list[str]:
        """Names in ROOT, and what kind each is; of a mirror only the top. An environment's home has a random name."""
        lines = []
        for path, fact in self.facts().items():
            lines.append(re.sub(r"(envs/[0-9a-f]+)-[0-9a-f]{6}\b", r"\1-RANDOM", f"{path} {oct(fact[0])}"))
        for name in self.changing:
            litter = [path for path in (self.layout.root / name).rglob("*") if re.search(r"\.lock|tmp_", path.name)]
            lines += [f"{name} {path.name}" for path in litter]
        return sorted(lines)

    def swept(self, aside: Path) -> None:
        """What a manager that starts does with a copy of this."""
        self.layout.releases.mkdir(exist_ok=True)  # as `up` does
        shutil.copytree(self.layout.releases, aside / "releases", symlinks=True)
        (aside / "shared").symlink_to(self.layout.shared)
        try:
            tree.clean(Layout(aside), ())
            left = set(os.listdir(aside / "releases")) - {"v1", ".v1.index"}
            assert left <= {"v2", ".v2.index"}, left
            if "v2" in left:
                self.whole(aside / "releases" / "v2")
        finally:
            shutil.rmtree(aside)


def _fact(path: str) -> tuple[Any, ...]:
    found = os.lstat(path)
    if stat.S_ISDIR(found.st_mode):
        inside = re.search(r"/releases/v1|/envs/[^/]+/", path)  # directories above are there to be changed
        return found.st_mode, found.st_ino, found.st_mtime_ns if inside else 0
    content = os.readlink(path).encode() if stat.S_ISLNK(found.st_mode) else Path(path).read_bytes()
    if path.endswith("/envs/.lock"):
        return found.st_mode, found.st_ino
    return found.st_mode, found.st_ino, found.st_mtime_ns, found.st_uid, hashlib.sha256(content).hexdigest()


def _unlink(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.chmod(0o700)
        path.rmdir()
    else:
        path.unlink()


# Scenarios: each makes v1 live, and says what v2 is made from


def write(directory: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def host(**more: Any) -> Config:
    return msgspec.structs.replace(CONFIG, **more)


V1 = {"app.py": "one", "lib/same.py": "same", "lib/deep/kept.txt": "kept", "uploads/seed.txt": "seed"}


def directory(stager: Stager, tmp_path: Path) -> World:
    """Links to v1, all of them given up for a build, which writes into one; new shared paths, seeded from v2."""
    shop = tmp_path / "host" / "shop"
    write(shop, V1)
    (shop / "app.py").chmod(0o755)
    (shop / "lib" / "link").symlink_to("same.py")
    kept = {"host_config": host(release=Release(shared=["uploads/"]))}
    first = stager.run(Directory(path="shop"), "v1", **kept)
    write(stager.layout.shared / "uploads", {"visitor.txt": "hello"})
    own = (
        '[release]\nshared = ["uploads/", "data/"]\n'
        '[build]\nrun = ["echo more >> lib/same.py", "mkdir public; pwd > public/where"]\n'
    )
    write(shop, {"app.py": "two", "deployer.toml": own, "data/first.db": "1"})
    expected = {
        "app.py": "two",
        "lib/same.py": "samemore\n",
        "lib/deep/kept.txt": "kept",
        "public/where": f"{stager.layout.release('v2')}\n",
        "uploads/visitor.txt": "hello",
        "data/first.db": "1",
    }
    kinds = {"os.fork", "os.link", "os.chmod", "os.rename", "os.symlink", "os.remove", "os.rmdir", "subprocess.Popen"}
    world = World(stager, Directory(path="shop"), kept, shop, expected, {"open", "os.mkdir", "sqlite3.connect", *kinds})
    return _live(world, first)


def first(stager: Stager, tmp_path: Path) -> World:
    """Nothing was ever live, but somebody has put files into ROOT/shared; seeds are noted, to be taken back."""
    shop = tmp_path / "host" / "shop"
    write(stager.layout.shared / "uploads", {"visitor.txt": "hello"})
    write(shop, {"app.py": "one", "uploads/seed.txt": "seed", "settings.ini": "a = 1"})
    options = {"host_config": host(release=Release(shared=["uploads/", "settings.ini"]))}
    expected = {"app.py": "one", "uploads/visitor.txt": "hello", "settings.ini": "a = 1"}
    kinds = {"open", "os.mkdir", "os.symlink", "os.rename", "os.remove", "sqlite3.connect", "end"}
    world = World(stager, Directory(path="shop"), options, shop, expected, kinds)
    world.freeze(None)
    return world


def linked(stager: Stager, tmp_path: Path) -> World:
    """v2 shares its files with v1: what is removed after a kill has inodes that v1 has too."""
    shop = tmp_path / "host" / "shop"
    write(shop, V1 | {"lib/changed.py": "1"})
    first = stager.run(Directory(path="shop"), "v1")
    write(shop, {"lib/changed.py": "2"})
    kinds = {"os.fork", "os.link", "os.chmod", "os.mkdir", "os.rename", "open", "end"}
    return _live(World(stager, Directory(path="shop"), {}, shop, V1 | {"lib/changed.py": "2"}, kinds), first)


def cloned(stager: Stager, tmp_path: Path) -> World:
    """v1 came from a directory: the mirror is made."""
    repository = Repository(tmp_path / "repository")
    write(repository.path, {"app.py": "one", "lib/same.py": "same"})
    repository.commit("First")
    _checkout(repository, tmp_path / "host" / "shop")
    first = stager.run(Directory(path="shop"), "v1")
    write(repository.path, {"app.py": "two"})
    repository.commit("Second")
    checkout = _checkout(repository, tmp_path / "checkout")
    kinds = {"subprocess.Popen", "os.rename", "os.mkdir", "open", "sqlite3.connect", "end"}
    expected = {"app.py": "two", "lib/same.py": "same"}
    world = World(stager, Git(url=str(repository.path)), {}, checkout, expected, kinds, changing=("mirror.git",))
    return _live(world, first)


def fetched(stager: Stager, tmp_path: Path) -> World:
    """v1 came from the same repository: its mirror is brought up to date where it is, and files are shared."""
    repository = Repository(tmp_path / "repository")
    write(repository.path, {"app.py": "one", "lib/same.py": "same"})
    repository.commit("First")
    first = stager.run(Git(url=str(repository.path)), "v1")
    write(repository.path, {"app.py": "two", "lib/new.py": "new"})
    repository.commit("Second")
    checkout = _checkout(repository, tmp_path / "checkout")
    kinds = {"subprocess.Popen", "os.link", "os.rename", "os.mkdir", "open", "sqlite3.connect", "end"}
    expected = {"app.py": "two", "lib/same.py": "same", "lib/new.py": "new"}
    world = World(stager, Git(url=str(repository.path)), {}, checkout, expected, kinds, changing=("mirror.git",))
    return _live(world, first)


def artifact(stager: Stager, tmp_path: Path) -> World:
    """A tar with a link; what equals v1's is shared."""
    shop, archive = tmp_path / "shop", tmp_path / "host" / "shop.tar.gz"
    write(shop, {"app.py": "one", "lib/same.py": "same"})
    (shop / "lib/to").symlink_to("same.py")
    _pack(archive, shop)
    first = stager.run(Artifact(location="shop.tar.gz"), "v1")
    write(shop, {"app.py": "two", "lib/deep/new.py": "new"})
    _pack(archive, shop)
    kinds = {"os.link", "os.symlink", "os.rename", "os.mkdir", "open", "sqlite3.connect", "end"}
    expected = {"app.py": "two", "lib/same.py": "same", "lib/deep/new.py": "new", "lib/to": "same"}
    return _live(World(stager, Artifact(location="shop.tar.gz"), {}, shop, expected, kinds), first)


def python(stager: Stager, tmp_path: Path) -> World:
    """An environment from a lock file that names a wheel beside it, and a command that runs with it."""
    shop = tmp_path / "host" / "shop"
    stager.env |= {"UV_CACHE_DIR": str(tmp_path / "cache"), "UV_OFFLINE": "1"}
    write(shop, {"app.py": "one", "requirements.txt": "# nothing yet\n"})
    options = {"host_config": host(build=Build(python="uv", run=["command -v python > which"]))}
    first = stager.run(Directory(path="shop"), "v1", **options)
    _wheel(shop)
    write(shop, {"app.py": "two", "requirements.txt": "./one-1-py3-none-any.whl\n"})
    kinds = {"subprocess.Popen", "os.fork", "os.symlink", "os.rename", "os.mkdir", "open", "end"}
    world = World(stager, Directory(path="shop"), options, shop, {"app.py": "two"}, kinds, module=True)
    return _live(world, first)


SCENARIOS: dict[str, tuple[Callable[[Stager, Path], World], int]] = {
    "directory": (directory, 55),
    "first": (first, 30),
    "linked": (linked, 22),
    "cloned": (cloned, 20),
    "fetched": (fetched, 20),
    "artifact": (artifact, 19),
    "python": (python, 28),
}
"""With how many kill points there are at least: a scenario that lost some tests less than it says."""


def _live(world: World, first: Done) -> World:
    assert first.exit == 0, first.told
    assert first.result is not None
    world.freeze(first.result["tree_digest"])
    return world


def _checkout(repository: Repository, into: Path) -> Path:
    shutil.copytree(repository.path, into, ignore=shutil.ignore_patterns(".git"))
    return into


def _pack(path: Path, directory: Path) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for entry in sorted(directory.iterdir()):
            archive.add(entry, entry.name)


def _wheel(directory: Path) -> None:
    with zipfile.ZipFile(directory / "one-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("one.py", "WORD = 'one'")
        wheel.writestr("one-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: one\nVersion: 1\n")
        tags = "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr("one-1.dist-info/WHEEL", tags)
        wheel.writestr("one-1.dist-info/RECORD", "")


@pytest.mark.parametrize("chunk", range(CHUNKS))
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_before_each_change(stager: Stager, tmp_path: Path, scenario: str, chunk: int) -> None:
    make, least = SCENARIOS[scenario]
    world = make(stager, tmp_path)
    points = world.count(tmp_path / "trace")
    assert world.kinds <= {point.event for point in points}
    points = different(points)
    print(f"{scenario}: {len(points)} points")
    assert len(points) >= least
    world.again()
    expected = world.listing()
    faults = []
    odd = [*SCENARIOS].index(scenario) % 2 == 1  # what two scenarios have in common is tried by both halves
    for point in dealt(points, chunk, CHUNKS, odd=odd):
        world.reset()
        world.kill(point, tmp_path / "trace")
        world.untouched()
        world.half_or_whole()
        world.swept(tmp_path / "aside")
        done = world.again()
        world.untouched()
        world.made(done)
        if (found := world.listing()) != expected:
            faults.append((point, sorted(set(found) ^ set(expected))))
    assert not faults


def different(points: list[Point]) -> list[Point]:
    """Without those that come after an event which changes nothing (a database or a git that only reads)."""
    return [points[0], *(point for before, point in pairwise(points) if not READS.search(before.text))]
