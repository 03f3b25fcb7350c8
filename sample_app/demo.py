"""The main job, start to end, on the sample app: `make demo`.

Makes a scratch git repository of this directory, starts a cluster from it on a free loopback port, sends real
load from a process of its own (tests/load.py), and then: deploys v2, deploys a v3 that crashes at import
(must halt with exit code 3 while v2 serves on), and rolls back to v1. One visitor with a session looks on
(tests/visitor.py): the count of his visits must never go back. Prints what each step cost the visitors. Exits
with 0 only if no request was lost and every step ended as it should; leaves nothing running.
"""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from tests.load import LoadProcess, LoadReport
from tests.visitor import Visitor

HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent
HALTED = 3  # exit code of a deploy whose canary or preflight failed: nothing was replaced
COMMAND_LIMIT_S = 60.0
DOWN_LIMIT_S = 20.0
STEPS = 5
SETTLE_LIMIT_S = 2.0
AFTERWARDS = 60  # answers to see after each step, so that a late loss falls into the step that caused it
FIRST, SECOND = "Hello from the first release", "Hello from the second release"
CRASH = 'raise RuntimeError("v3 cannot start: no DATABASE_URL")'


@dataclass(frozen=True)
class Row:
    """One step, as the table shows it."""

    step: str
    seconds: float
    serves: str
    exit_code: int | None
    wrong: str = ""  # what is not as it should be
    requests: int = 0
    lost: int = 0


class Demo:
    """A scratch directory with a repository, a host directory and one cluster."""

    def __init__(self, scratch: Path) -> None:
        self.repository = scratch / "shop"
        self.host = scratch / "host"
        self.scratch = scratch
        self.visitor: Visitor | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        # The app runs on the Python that deployer was installed with: it has what the app imports.
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("DEPLOYER_")}
        self.environment = inherited | {"PATH": f"{BIN}:{os.environ.get('PATH', '/usr/bin:/bin')}"}

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def prepare(self) -> None:
        """The repository with v1, and a deployer.toml beside it that says where to find it."""
        hidden = shutil.ignore_patterns("__pycache__", ".deployer", "demo.py")
        shutil.copytree(HERE, self.repository, ignore=hidden)
        self.git("init", "--quiet", "--initial-branch=main")
        self.commit("First release")
        self.host.mkdir()
        settings = (HERE / "deployer.toml").read_text().replace("tcp://127.0.0.1:8000", self.address)
        source = f'\n[source]\ngit = "{self.repository}"\nref = "main"\n'
        (self.host / "deployer.toml").write_text(settings + source)

    def git(self, *arguments: str) -> None:
        identity = ["-c", "user.name=demo", "-c", "user.email=demo@localhost", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, *arguments], cwd=self.repository, check=True)

    def commit(self, message: str) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)

    def change(self, old: str, new: str, message: str) -> None:
        """A commit that changes app.py; the text must be there, or the demo would deploy nothing."""
        source = self.repository / "app.py"
        text = source.read_text()
        assert old in text, f"{old!r} is not in app.py"
        source.write_text(text.replace(old, new, 1))
        self.commit(message)

    def deployer(self, *arguments: str, limit_s: float = COMMAND_LIMIT_S) -> tuple[int, str]:
        """Run the command as a person would and show what it prints; its exit code and output."""
        print(f"\n$ deployer {' '.join(arguments)}", flush=True)
        process = subprocess.Popen(
            [BIN / "deployer", *arguments],
            cwd=self.host,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        lines = []
        with process, killed_after(process, limit_s):
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line)
                print(f"  | {line}", end="", flush=True)
        return process.returncode, "".join(lines)

    def page(self) -> tuple[str, str]:
        """Which release answers a new visitor, and its page."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        connection.request("GET", "/", headers={"Connection": "close"})
        response = connection.getresponse()
        body = response.read().decode()
        connection.close()
        return response.headers.get("X-Release", "?"), body

    def serving(self, release: str, headline: str) -> str:
        """What new visitors get. A worker that was just told to stop may take a visitor more: look again."""
        end = time.monotonic() + SETTLE_LIMIT_S
        while True:
            try:
                pages = [self.page() for _ in range(6)]
            except OSError as error:
                print(f"nobody serves: {error}", file=sys.stderr)
                return "nothing"
            found = "+".join(sorted({seen if headline in body else f"{seen}?" for seen, body in pages}))
            if found == release or time.monotonic() > end:
                return found

    def step(self, name: str, arguments: list[str], *, expect: int, serves: str, headline: str, shows: str = "") -> Row:
        """One command, and whether it ended as it should: exit code, what it shows, what visitors get."""
        began = time.monotonic()
        code, output = self.deployer(*arguments)
        seconds = time.monotonic() - began
        seen = self.serving(serves, headline)
        wrong = []
        if code != expect:
            wrong.append(f"exit code {code}, not {expect}")
        if seen != serves:
            wrong.append(f"{seen} serves, not {serves} with {headline!r}")
        if shows not in output:
            wrong.append(f"the output does not show {shows!r}")
        if self.visitor is not None:
            if not self.visitor.until_served_by(serves):
                wrong.append(f"{serves} never served the visitor")
            wrong += self.visitor.complaints()
        return Row(name, seconds, seen, code, "; ".join(wrong))

    def run(self) -> tuple[list[Row], LoadReport | None]:
        """All steps; without a cluster there is nothing to send load to."""
        self.prepare()
        first = self.step("up", ["up"], expect=0, serves="v1", headline=FIRST)
        if first.wrong:
            return [first], None
        rows, report = self.under_load()
        return [first, *rows], report

    def under_load(self) -> tuple[list[Row], LoadReport]:
        """The steps that visitors must not notice."""
        with LoadProcess(self.address, keepalive=16, fresh=4, slow=4) as load, Visitor(self.address) as self.visitor:
            rows = [self.steady(load)]

            load.mark("deploy v2")
            self.change(FIRST, SECOND, "A new headline")
            rows.append(self.step("deploy v2", ["deploy"], expect=0, serves="v2", headline=SECOND))
            load.more(AFTERWARDS)

            load.mark("deploy v3")
            self.change("RELEASE = ", f"{CRASH}\nRELEASE = ", "A mistake")
            v3 = ["deploy", "--message", "this one cannot start"]
            rows.append(
                self.step("deploy v3", v3, expect=HALTED, serves="v2", headline=SECOND, shows="RuntimeError: v3")
            )
            load.more(AFTERWARDS)

            load.mark("rollback v1")
            rows.append(self.step("rollback v1", ["rollback", "v1"], expect=0, serves="v1", headline=FIRST))
            load.more(AFTERWARDS)
        report = load.report()
        return [with_load(row, report) for row in rows], report

    def steady(self, load: LoadProcess) -> Row:
        """How v1 does before anything happens to it."""
        began = time.monotonic()
        load.mark("v1 serves")
        load.more(600)
        return Row("v1 serves", time.monotonic() - began, self.page()[0], None)

    def clean_up(self) -> bool:
        """Stop the cluster; what the command could not stop is killed. True if it needed no force."""
        code, _ = self.deployer("down", limit_s=DOWN_LIMIT_S)
        left = self.processes()
        for process in left:
            print(f"left over, killed: {process.pid} {' '.join(process.cmdline())}")
            process.kill()
        psutil.wait_procs(left, timeout=5)
        return code == 0 and not left

    def processes(self) -> list[psutil.Process]:
        """Processes of this demo's cluster: their directory, command or environment names the scratch one."""
        found = []
        for process in psutil.process_iter():
            try:
                about = [process.cwd(), *process.cmdline(), process.environ().get("DEPLOYER_ROOT", "")]
            except psutil.Error:
                continue  # it ended, or is not ours to look at
            if process.pid != os.getpid() and any(str(self.scratch) in text for text in about):
                found.append(process)
        return found


@contextmanager
def killed_after(process: subprocess.Popen[str], limit_s: float) -> Iterator[None]:
    """A command that hangs must not hang the demo; nor may one outlive an interrupted demo."""
    timer = threading.Timer(limit_s, process.kill)
    timer.start()
    try:
        yield
    except BaseException:
        process.kill()  # the command only watches: what it started is stopped by clean_up
        raise
    finally:
        timer.cancel()


def with_load(row: Row, report: LoadReport) -> Row:
    tally = report.by_step[row.step]
    wrong = [row.wrong] if row.wrong else []
    if tally.lost:
        wrong.append(f"{tally.lost} lost")
    if tally.errors:
        wrong.append(f"{tally.errors} answers were errors")
    return replace(row, requests=tally.requests, lost=tally.lost, wrong="; ".join(wrong))


def print_table(rows: list[Row], report: LoadReport | None, visitor: Visitor | None) -> None:
    print(f"\n{'step':<14}{'requests':>9}{'lost':>6}{'seconds':>9}  {'serves':<8}{'exit':>4}  as it should")
    for row in rows:
        code = "-" if row.exit_code is None else row.exit_code
        print(
            f"{row.step:<14}{row.requests:>9}{row.lost:>6}{row.seconds:>9.1f}  {row.serves:<8}{code:>4}  "
            f"{'NO: ' + row.wrong if row.wrong else 'yes'}"
        )
    if report is not None:
        print(f"\n{report}")
    if visitor is not None:
        print(f"one session, through {' -> '.join(visitor.releases)}: {visitor.count} visits counted")


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    signal.signal(signal.SIGTERM, interrupted)
    began = time.monotonic()
    rows: list[Row] = []
    report: LoadReport | None = None
    with tempfile.TemporaryDirectory(prefix="deployer-demo-") as scratch:
        demo = Demo(Path(scratch))
        try:
            rows, report = demo.run()
        except KeyboardInterrupt:
            print("\ninterrupted: stopping what was started", file=sys.stderr)
            return 130
        except (RuntimeError, TimeoutError, subprocess.CalledProcessError) as error:
            print(f"\nthe demo cannot go on: {error}", file=sys.stderr)
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)  # an impatient second Ctrl-C must not leave workers behind
            clean = demo.clean_up()
    print_table(rows, report, demo.visitor)
    good = len(rows) == STEPS and clean and not any(row.wrong for row in rows)
    print(f"\n{'All as it should be' if good else 'FAILED'}, in {time.monotonic() - began:.0f} s.")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
