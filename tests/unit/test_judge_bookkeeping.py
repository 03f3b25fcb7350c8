"""The judge of `deployer watch` excuses what the application itself cut off, by proof, and nothing else."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests import apps
from tests.e2e.watching import editor
from tests.e2e.watching.books import Death, never_to_be_served, sorted_out
from tests.e2e.watching.plan import KINDS, PAUSE_S, SERVABLE, Kind, Save, Way, plan
from tests.load import Loss, Sighting

SAVES = list(plan(7, 600, kills=True))
DEATH = Death(pid=9, at=100.0, ports=(5001, 5002))


def loss(port: int, at: float) -> Loss:
    return Loss(at, "start", "keepalive", "ECONNRESET", True, 20, 0, "9", port)


def test_what_the_dead_process_held_is_the_applications_own() -> None:
    """Two connections, two losses; who waited longest learns last."""
    found = sorted_out([loss(5001, 100.01), loss(5002, 102.0)], [DEATH])
    assert (len(found.lost), len(found.by_the_app)) == (0, 2)


@pytest.mark.parametrize(
    ("port", "at"),
    [(5003, 100.01), (5001, 99.9), (5001, 106.0), (0, 100.01)],
    ids=["another's connection", "before its end", "long after", "could not connect"],
)
def test_all_else_is_lost(port: int, at: float) -> None:
    """Also in the moment in which a process ended itself."""
    assert len(sorted_out([loss(port, at)], [DEATH]).lost) == 1


def test_a_connection_is_excused_once() -> None:
    """Its port may be another connection's soon after."""
    found = sorted_out([loss(5001, 100.01), loss(5001, 100.5)], [DEATH])
    assert (len(found.lost), len(found.by_the_app)) == (1, 1)


def test_half_a_file_and_a_broken_save_are_not_to_be_served() -> None:
    """Labels tell what was answered."""
    good = next(save for save in SAVES if save.kind is Kind.GOOD)
    broken = next(save for save in SAVES if save.kind is Kind.SYNTAX)
    seen = [Sighting(label, "1", "5", 0, 1, 3) for label in ("first", good.label, broken.label, good.half)]
    assert never_to_be_served(seen, SAVES, "first") == {broken.label, good.half}


def test_a_plan_has_all_of_it_and_can_be_had_again() -> None:
    """Every kind, way and kill; short and long pauses; the last is a good one that nobody kills."""
    assert {save.kind for save in SAVES} == set(KINDS)
    assert {save.way for save in SAVES} == set(Way)
    assert {save.kill for save in SAVES} == {None, "manager", "child"}
    assert min(save.pause_s for save in SAVES) < 2 * PAUSE_S[0]
    assert max(save.pause_s for save in SAVES) > PAUSE_S[1] * 0.9
    assert (SAVES[-1].kind, SAVES[-1].kill) == (Kind.GOOD, None)
    assert list(plan(7, 600, kills=True)) == SAVES
    assert all(save.kill is None for save in plan(7, 100))


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_save_is_what_it_is_said_to_be(tmp_path: Path, kind: Kind) -> None:
    """The first part alone is a program too: half a file would be served if somebody took it."""
    save = next(save for save in SAVES if save.kind is kind)
    first, rest = save.text("words")
    half: dict[str, str] = {}
    exec(first, half)
    assert half["LABEL"] == save.half
    editor.write(tmp_path / "views.py", first, rest, way=save.way)
    shutil.copyfile(apps.HERE / "watched" / "dying.py", tmp_path / "dying.py")
    done = run(tmp_path, "import views; print(views.LABEL, flush=True); views.answering()")
    assert (done.returncode in (0, 3)) == (kind in SERVABLE), done.stderr
    assert (save.label in done.stdout) == (kind in SERVABLE)


@pytest.mark.parametrize("how", ["soon(0.05", "now("])
def test_last_words_name_the_connections(tmp_path: Path, how: str) -> None:
    """A process of two connections, of which the other end is ours, ends itself."""
    words = tmp_path / "words"
    call = f"dying.{how}, {str(words)!r})" if how[-1] != "(" else f"dying.{how}{str(words)!r})"
    shutil.copyfile(apps.HERE / "watched" / "dying.py", tmp_path / "dying.py")
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = server.getsockname()[1]
        done = run(
            tmp_path,
            f"import dying, socket, time; a = [socket.create_connection(('127.0.0.1', {here})) for _ in range(2)]; "
            f"{call}; time.sleep(20)",
        )
    assert done.returncode == 3, done.stderr
    death = Death.read(words.read_text())
    assert death.ports == (here, here)
    assert json.loads(words.read_text())["pid"] == death.pid


@pytest.mark.parametrize("way", list(Way))
def test_ways_of_writing_end_in_the_same_file(tmp_path: Path, way: Way) -> None:
    """And leave no other."""
    path = tmp_path / "views.py"
    path.write_text("before")
    editor.write(path, "one ", "two", way=way)
    assert path.read_text() == "one two"
    editor.vim(path, "three")
    assert path.read_text() == "three"
    assert list(tmp_path.iterdir()) == [path]


def run(directory: Path, program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=30, check=False)


def test_labels_are_of_one_length() -> None:
    """Saves within a second that differ neither in size nor, by the second, in age: bytecode must not be mixed up."""
    texts = {len("".join(save.text("w"))) for save in SAVES if save.kind is Kind.GOOD}
    assert len(texts) == 1
    assert isinstance(SAVES[0], Save)
