"""How long a stage takes beside what it stands in for, of 10,000 files with one changed: `python -m tests.bench.stage`.

From a directory: `rsync -a --link-dest`, which links what did not change. From git: `git archive | tar -x`, which
copies all. The files are the standard library's own sources, copied. Each pair runs side by side, three times; what
is compared is the whole staging process, with its start, its digests and its manifest. The last step of a stage,
waiting until all is on the disk, has no counterpart in the others: it is told apart, and a second ratio has it too.
Exit status 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import deployer
from deployer.config.model import Config, Listen, Worker
from deployer.releases.request import Directory, Git, Source, StageRequest, encode_request

TARGETS = {"directory": 1.0, "git": 1.5}
MEMORY_GROWTH_MAX = 1.15  # four times the files, and no more than noise
CONFIG = Config(name="shop", worker=Worker(command="serve {fd}"), listen=[Listen(address="tcp://127.0.0.1:8000")])


class Bench:
    def __init__(self, place: Path, files: int) -> None:
        self.place = place
        self.source = place / "source"
        self.root = place / "root"
        self.root.mkdir(parents=True)
        self._number = 0
        make_tree(self.source, files)
        self._git("init", "--quiet", "--initial-branch=main")
        self._commit()

    def change_one(self) -> None:
        (self.source / "changed.py").write_text(f"RUN = {time.monotonic_ns()}\n")

    def stage(self, source: Source) -> tuple[float, float, int]:
        """Seconds in all, seconds of those spent waiting for the disk, and peak memory in kB."""
        self._number += 1
        request = StageRequest(
            root=str(self.root),
            name=f"v{self._number}",
            source=source,
            directory=str(self.source),
            host_config=CONFIG,
            parent=os.getpid(),
        )
        began = time.monotonic()
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "deployer.releases.stage"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(encode_request(request))
        child.stdin.close()
        synced_from = None
        line = b""
        for line in child.stdout:
            if b"writing to disk" in line:
                synced_from = time.monotonic()
        child.stdout.close()
        _, status, usage = os.wait4(child.pid, 0)
        ended = time.monotonic()
        child.returncode = status
        assert status == 0, line
        assert "result" in json.loads(line)
        return ended - began, ended - (synced_from or ended), usage.ru_maxrss

    def rsync(self, number: int) -> float:
        out, previous = self.place / f"rsync-{number}", self.place / f"rsync-{number - 1}"
        command = ["rsync", "-a", "--exclude", ".git", f"--link-dest={previous}", f"{self.source}/", f"{out}/"]
        seconds = timed(lambda: subprocess.run(command, check=True))
        if number > 1:
            shutil.rmtree(previous)
        return seconds

    def archive(self) -> float:
        self._commit()
        out = self.place / "archive"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        pipe = f"git -C {self.source} archive HEAD | tar -x -C {out}"
        return timed(lambda: subprocess.run(["sh", "-c", pipe], check=True))

    def forget(self) -> None:
        """Removal is no part of a stage: all but the newest release."""
        for number in range(1, self._number):
            shutil.rmtree(self.root / "releases" / f"v{number}", ignore_errors=True)
            (self.root / "releases" / f".v{number}.index").unlink(missing_ok=True)

    def _commit(self) -> None:
        self._git("add", "--all")
        self._git("-c", "user.name=A", "-c", "user.email=a@b", "commit", "--quiet", "--allow-empty", "-m", "x")

    def _git(self, *arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=self.source, check=True)


def make_tree(into: Path, files: int) -> None:
    library = Path(sysconfig.get_path("stdlib"))
    sources = [path for path in sorted(library.rglob("*.py")) if "site-packages" not in path.parts]
    made = 0
    while made < files:
        for path in sources[: files - made]:
            target = into / f"copy{made // len(sources)}" / path.relative_to(library)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            made += 1 if target != path else 0
    (into / "changed.py").write_text("RUN = 0\n")


def timed(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def compare(name: str, bench: Bench, source: Source, other: Callable[[int], float], rounds: int) -> bool:
    bench.stage(source)
    other(1)
    ours, waits, theirs = [], [], []
    for number in range(2, rounds + 2):
        bench.change_one()
        os.sync()  # neither pays for what the other wrote
        theirs.append(other(number))
        os.sync()
        seconds, wait, _ = bench.stage(source)
        ours.append(seconds)
        waits.append(wait)
        bench.forget()
    whole = [seconds / reference for seconds, reference in zip(ours, theirs, strict=True)]
    same = [(seconds - wait) / ref for seconds, wait, ref in zip(ours, waits, theirs, strict=True)]
    median, target = statistics.median(same), TARGETS[name]
    print(
        f"{name}: {statistics.median(ours):.3f} s, of which {statistics.median(waits):.3f} s until it is on the disk; "
        f"reference {statistics.median(theirs):.3f} s; ratio {median:.2f} (target {target:.1f}), "
        f"with the disk {statistics.median(whole):.2f}"
    )
    return median <= target


def memory(place: Path, files: int, source: Callable[[Bench], Source]) -> list[int]:
    """Peak kB of a stage of `files` files, and of four times as many."""
    peaks = []
    for count in (files, 4 * files):
        bench = Bench(place / f"memory-{count}", count)
        peaks.append(max(bench.stage(source(bench))[2] for _ in range(2)))
        shutil.rmtree(bench.place)
    return peaks


def main() -> int:
    parser = argparse.ArgumentParser(description="Stage 10,000 files with one changed, beside rsync and git archive.")
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-files", type=int, default=2_500)
    options = parser.parse_args()
    compileall.compile_dir(Path(deployer.__file__).parent, quiet=1)  # as pip does when it installs
    if shutil.which("rsync") is None:
        subprocess.run(["apt-get", "install", "-y", "-qq", "rsync"], check=True)
    with tempfile.TemporaryDirectory(prefix="deployer-bench-") as temporary:
        place = Path(temporary)
        by_path = Bench(place / "directory", options.files)
        good = compare("directory", by_path, Directory(path=str(by_path.source)), by_path.rsync, options.rounds)
        by_git = Bench(place / "git", options.files)
        url = Git(url=str(by_git.source))
        good = compare("git", by_git, url, lambda _: by_git.archive(), options.rounds) and good
        kinds: dict[str, Callable[[Bench], Source]] = {
            "directory": lambda bench: Directory(path=str(bench.source)),
            "git": lambda bench: Git(url=str(bench.source)),
        }
        for name, source in kinds.items():
            small, large = memory(place, options.memory_files, source)
            print(f"{name}: peak memory {small / 1024:.1f} MB, with four times the files {large / 1024:.1f} MB")
            good = good and large <= small * MEMORY_GROWTH_MAX
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
