"""A hook as a process: its gate, its output, its limit, and that nothing of it is left."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deployer.manager import hookprocess
from deployer.manager.hookprocess import SHELL, End, HookProcess, end_inherited
from deployer.osutil.process import start_ticks

ENV = {"PATH": os.environ["PATH"]}


def gone(pid: int, timeout: float = 5.0) -> bool:
    deadline = time.monotonic() + timeout
    while start_ticks(pid) is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def run(
    script: str, cwd: Path, *, timeout: float = 10.0, data: bytes = b"{}", env: dict[str, str] | None = None
) -> tuple[End, list[str]]:
    lines: list[str] = []

    async def main() -> End:
        process = HookProcess((SHELL, "-c", script), cwd, env or ENV, lines.append)
        process.go(data)
        return await process.wait(timeout)

    return asyncio.run(main()), lines


def test_it_runs_in_its_directory_with_its_context_on_stdin_and_both_streams_heard(tmp_path: Path) -> None:
    end, lines = run("pwd; cat; echo; echo problem >&2; exit 7", tmp_path, data=b'{"stage":"after_build"}')
    assert end == End(7, timed_out=False)
    assert lines == [str(tmp_path), '{"stage":"after_build"}', "problem"]


def test_a_hook_that_reads_nothing_may_be_told_a_lot(tmp_path: Path) -> None:
    end, _ = run("exit 0", tmp_path, data=b"x" * 60_000)
    assert end.code == 0


def test_it_leads_a_session_of_its_own(tmp_path: Path) -> None:
    end, lines = run("echo $$ $(cut -d' ' -f6 /proc/$$/stat)", tmp_path)
    pid, session = lines[0].split()
    assert (end.code, pid) == (0, session)


def test_it_does_not_run_before_it_is_let_go(tmp_path: Path) -> None:
    """Its manager died between starting and recording it: the pipe ends, and the gate never opens."""

    async def main() -> int:
        process = HookProcess((SHELL, "-c", "touch ran"), tmp_path, ENV, lambda _: None)
        os.close(process._stdin)
        return (await process.wait(10)).code

    assert asyncio.run(main()) != 0
    assert not (tmp_path / "ran").exists()


def test_the_end_of_a_signal_is_told(tmp_path: Path) -> None:
    assert run("kill -SEGV $$", tmp_path)[0] == End(-signal.SIGSEGV, timed_out=False)


def test_a_program_that_is_not_there_says_so(tmp_path: Path) -> None:
    end, lines = run("exec ./nothing", tmp_path)
    assert end.code == 127
    assert "nothing" in lines[0]


def test_one_that_takes_too_long_is_asked_to_stop_and_then_killed_with_its_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hookprocess, "GRACE_S", 0.3)
    began = time.monotonic()
    end, lines = run("trap 'echo asked' TERM; sleep 60 & echo $!; while :; do wait; done", tmp_path, timeout=0.3)
    assert end.timed_out
    assert "asked" in lines
    assert time.monotonic() - began < 30
    assert gone(int(lines[0]))


def test_a_child_left_behind_with_stdout_open_is_waited_for_a_second_and_ended(tmp_path: Path) -> None:
    began = time.monotonic()
    end, lines = run("sleep 60 & echo $!", tmp_path)
    assert end == End(0, timed_out=False)
    assert 0.5 < time.monotonic() - began < 30
    assert gone(int(lines[0]))


def test_what_a_child_still_says_in_that_second_is_heard(tmp_path: Path) -> None:
    _, lines = run("(sleep 0.3; echo late) & exit 0", tmp_path)
    assert lines == ["late"]


def test_a_daemon_in_a_session_of_its_own_holds_nobody_up_and_lives_on(tmp_path: Path) -> None:
    """Who starts a service on purpose does it as every daemon does."""
    began = time.monotonic()
    _, lines = run("setsid sh -c 'echo $$; exec sleep 60' & sleep 0.2", tmp_path)
    assert time.monotonic() - began < 30
    pid = int(lines[0])
    assert start_ticks(pid) is not None
    os.kill(pid, signal.SIGKILL)


def test_a_cancelled_wait_ends_it(tmp_path: Path) -> None:
    lines: list[str] = []

    async def main() -> None:
        process = HookProcess((SHELL, "-c", "sleep 60 & echo $$ $!; wait"), tmp_path, ENV, lines.append)
        process.go(b"")
        task = asyncio.create_task(process.wait(60))
        while not lines:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert all(gone(int(pid)) for pid in lines[0].split())


def left_running(script: str, env: dict[str, str]) -> tuple[int, int, Callable[[], None]]:
    process = subprocess.Popen([SHELL, "-c", script], env=ENV | env, start_new_session=True)
    ticks = start_ticks(process.pid) or 1  # it may have ended already
    return process.pid, ticks, lambda: process.wait(5) and None


def test_one_that_a_dead_manager_left_is_killed_with_its_group(tmp_path: Path) -> None:
    child = tmp_path / "child"
    pid, ticks, reap = left_running(f"sleep 60 & echo $! > {child}; wait", {})
    while not (child.exists() and child.read_text()):
        time.sleep(0.01)
    end_inherited(pid, ticks, {})
    reap()
    assert gone(int(child.read_text()))


def test_children_of_one_that_is_gone_itself_are_known_by_session_and_environment(tmp_path: Path) -> None:
    child, mark = tmp_path / "child", {"DEPLOYER_STAGE": "after_build", "DEPLOYER_ROLLOUT": "4711"}
    pid, ticks, reap = left_running(f"sleep 60 & echo $! > {child}", mark)
    reap()
    orphan = int(child.read_text())
    end_inherited(pid, ticks, mark | {"DEPLOYER_ROLLOUT": "4712"})
    assert start_ticks(orphan) is not None, "another rollout's"
    end_inherited(pid, ticks, mark)
    assert gone(orphan)


def test_a_pid_that_is_another_process_by_now_is_left_alone() -> None:
    pid, ticks, reap = left_running("sleep 60", {})
    end_inherited(pid, ticks + 1, {"DEPLOYER_STAGE": "x"})
    assert start_ticks(pid) == ticks
    os.killpg(pid, signal.SIGKILL)
    reap()
