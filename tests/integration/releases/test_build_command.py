"""What a build command prints: in the log, in the tail, in few lines of progress, and never a secret."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deployer.errors import BuildError
from deployer.releases import command
from deployer.releases.command import Runner


class Shell:
    """A Runner in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory / "logs" / "build.log"
        self.told: list[str] = []
        self.runner = Runner(log=self.log, timeout_s=30, timeout="30s", tell=self.told.append)

    def run(self, text: str) -> None:
        self.runner.run(["/bin/sh", "-c", text], cwd=self.directory, env=dict(os.environ), title=text)

    def fail(self, text: str) -> BuildError:
        with pytest.raises(BuildError) as caught:
            self.run(text)
        return caught.value


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def test_a_progress_bar_leaves_its_last_state(shell: Shell) -> None:
    """What was drawn over is not told."""
    assert shell.fail(r"printf '10%%\r50%%\r100%%\r\nend'; exit 1").tail == ("100%", "end")


def test_secrets_are_masked_in_everything(shell: Shell) -> None:
    """Log, progress, tail, and the command's own text; a value of several lines in each of them."""
    shell.runner.keep_secret(["hunter22", "first line\nsecond line", "abc"])
    error = shell.fail("echo pw=hunter22; echo 'second line'; echo abc; exit 2")
    assert error.tail == ("pw=***", "***", "abc")
    everything = shell.log.read_text() + "".join(shell.told) + error.what + str(error.cause)
    assert "hunter22" not in everything
    assert "second line" not in everything


def test_a_line_without_end_is_cut_and_a_log_without_end_stops(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory and disk stay bounded; the tail is still the last that was printed."""
    monkeypatch.setattr(command, "LOG_MAX", 100_000)
    error = shell.fail("head -c 3000000 /dev/zero | tr '\\0' x; echo; echo last; exit 1")
    assert error.tail[-1] == "last"
    assert shell.log.stat().st_size < 120_000
    assert "more than this log may hold" in shell.log.read_text()
    assert max(map(len, "\n".join(shell.told).split("\n"))) <= 400


def test_bytes_that_are_no_text_do_no_harm(shell: Shell) -> None:
    """Compilers print file names as they are."""
    assert shell.fail(r"printf 'a\377b\n'; exit 1").tail == ("a�b",)


def test_a_signal_is_told_by_name_and_a_missing_program_by_its_own(shell: Shell, tmp_path: Path) -> None:
    """As a person would look for it."""
    assert "SIGSEGV" in shell.fail("kill -SEGV $$").what
    with pytest.raises(BuildError, match="cannot run `nothing`"):
        shell.runner.run([str(tmp_path / "nothing")], cwd=tmp_path, env={}, title="nothing")


def test_the_log_is_private_and_tells_commands_and_their_ends(shell: Shell) -> None:
    """0600: build output may hold what nobody thought of."""
    shell.run("echo one")
    shell.fail("echo two; exit 3")
    assert shell.log.stat().st_mode & 0o777 == 0o600
    lines = shell.log.read_text().splitlines()
    assert lines[0] == "$ echo one"
    assert [line.partition(" after")[0] for line in lines if line.startswith("[")] == ["[exit code 0", "[exit code 3"]


def test_commands_do_not_read_from_the_manager(shell: Shell) -> None:
    """stdin is empty: a question gets no answer, and does not wait for one."""
    shell.run('read answer || test -z "$answer"')
