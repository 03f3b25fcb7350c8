"""What goes after a rollout: the logs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployer.config.model import Config, Release, Worker
from deployer.manager.cleanup import ROLLOUT_LOGS, CleanUp
from deployer.paths import Layout
from deployer.releases.catalog import Catalog
from deployer.releases.request import StageResult
from deployer.state.store import Store


class Releases:
    """Releases as they end, each with the log of its build."""

    def __init__(self, root: Path) -> None:
        self.layout = Layout(root)
        self.layout.releases.mkdir()
        self.layout.logs.mkdir()
        self.store = Store(self.layout.database)
        self.catalog = Catalog(self.store, self.layout)
        self.cleanup = CleanUp(catalog=self.catalog, layout=self.layout, used=lambda: ())
        self._live: str | None = None

    def building(self) -> str:
        name = self.catalog.open(source="x", origin="x", who="ana", message=None)
        self.layout.build_log(name).write_text("made")
        return name

    def failed(self) -> str:
        name = self.building()
        self.catalog.end(name, "failed", "build")
        return name

    def live(self) -> str:
        name = self.building()
        self.layout.release(name).mkdir()
        told = dict.fromkeys(("commit", "subject", "author", "ref"))
        self.catalog.staged(
            StageResult(
                outcome="staged",
                name=name,
                source="x",
                tree_digest=name,
                settings_digest="s",
                files=1,
                bytes=1,
                config=Config(name="shop", worker=Worker(command="true")),
                env={},
                seconds=0.1,
                **told,
            )
        )
        self.catalog.promoted(name, self._live, back=False)
        self._live = name
        return name

    def clean_up(self, keep: int = 1, keep_failed: int = 1) -> list[str]:
        return asyncio.run(self.cleanup.run(Release(keep=keep, keep_failed=keep_failed)))

    def logs(self) -> set[str]:
        return {path.name for path in self.layout.logs.iterdir()}


@pytest.fixture
def releases(tmp_path: Path) -> Iterator[Releases]:
    made = Releases(tmp_path)
    yield made
    made.store.close()


def test_the_log_of_a_build_goes_with_its_release(releases: Releases) -> None:
    """Not before, and not that of a build that runs."""
    gone, kept, live, building = releases.live(), releases.live(), releases.live(), releases.building()
    other = releases.layout.logs / "build-v99.log"  # of no release that is known
    other.touch()
    assert releases.clean_up() == []
    assert not releases.layout.release(gone).exists()
    assert releases.logs() == {f"build-{name}.log" for name in (kept, live, building, "v99")}


def test_builds_that_failed_leave_their_last_logs_for_inspection(releases: Releases) -> None:
    """They have no files that retention could count."""
    names = [releases.failed() for _ in range(4)]
    assert releases.clean_up(keep_failed=2) == []
    assert releases.logs() == {f"build-{name}.log" for name in names[2:]}


def test_logs_of_rollouts_are_kept_up_to_a_number(releases: Releases) -> None:
    """Those that were written to last, whatever their numbers: state.db may have been begun anew."""
    for number in range(1, ROLLOUT_LOGS + 4):
        path = releases.layout.rollout_log(number)
        path.touch()
        os.utime(path, (1000 - number, 1000 - number))
    assert releases.clean_up() == []
    assert releases.logs() == {f"rollout-{number}.log" for number in range(1, ROLLOUT_LOGS + 1)}


def test_a_log_that_cannot_be_removed_is_a_warning(releases: Releases) -> None:
    """The others go all the same."""
    stuck, other = releases.failed(), releases.failed()
    path = releases.layout.build_log(stuck)
    path.unlink()
    path.mkdir()
    (warning,) = releases.clean_up(keep_failed=0)
    assert warning == f"the log {path} could not be removed: Is a directory"
    assert releases.logs() == {path.name}
    assert not releases.layout.build_log(other).exists()
