"""Removal as the catalog journals it: what retention took is gone for good, at whatever line the manager died."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from deployer.config.model import Config, Worker
from deployer.paths import Layout
from deployer.releases.catalog import Catalog, NoSuchReleaseError
from deployer.releases.request import StageResult
from deployer.state.store import Store


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    layout = Layout(tmp_path)
    layout.releases.mkdir()
    store = Store(layout.database)
    made = Catalog(store, layout)
    for number, commit in enumerate(("aaaa1111", "aaaa2222", "bbbb3333"), 1):
        stage(made, layout, commit, f"tree {number}")
        made.promoted(f"v{number}", f"v{number - 1}" if number > 1 else None, back=False)
    yield made
    store.close()


def stage(catalog: Catalog, layout: Layout, commit: str, digest: str, environment: str | None = None) -> str:
    name = catalog.open(source="x", origin="git x", who="ana", message=None)
    layout.release(name).mkdir()
    catalog.staged(
        StageResult(
            outcome="staged",
            name=name,
            source="git x",
            tree_digest=digest,
            settings_digest="s",
            commit=commit,
            subject=None,
            author=None,
            ref=None,
            files=1,
            bytes=10,
            config=Config(name="shop", worker=Worker(command="true", env={"A": "1"})),
            env={"A": "secret"},
            seconds=0.1,
            environment=environment,
        )
    )
    return name


def environment(layout: Layout, name: str) -> Path:
    """One that looks whole; its interpreter."""
    python = layout.envs / name / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch(mode=0o755)
    return python


def test_what_goes_is_no_target_from_the_moment_it_is_journaled(catalog: Catalog, tmp_path: Path) -> None:
    """The manager may die before the files go: the next one removes them, or retention does."""
    assert catalog.last_good("v3") == "v2"
    catalog.condemn(["v2"])
    assert catalog.last_good("v3") == "v1"
    for question in (lambda: catalog.target("v2"), lambda: catalog.of_commit("aaaa2222")):
        with pytest.raises(NoSuchReleaseError):
            question()
    with pytest.raises(NoSuchReleaseError):
        catalog.pin("v2", pinned=True)
    assert catalog.condemned() == ["v2"]
    (tmp_path / "releases" / "v2").rename(tmp_path / "releases" / ".v2.removing")
    assert catalog.condemned() == ["v2"], "half removed is not removed"
    assert catalog.sweep() == []
    assert catalog.condemned() == []
    assert [kept.name for kept in catalog.kept()] == ["v1", "v3"]


def test_a_commit_is_found_by_its_first_digits_when_they_are_its_own(catalog: Catalog) -> None:
    assert catalog.of_commit("aaaa2") == "v2"
    for prefix, why in (("aaaa", "start of several"), ("aaa", "is not a commit"), ("cccc", "no release of")):
        with pytest.raises(NoSuchReleaseError, match=why):
            catalog.of_commit(prefix)
    catalog.end("v2", "bad", "worker_exit")
    with pytest.raises(NoSuchReleaseError):
        catalog.of_commit("aaaa2222")


def test_an_identical_release_is_passed_over(catalog: Catalog, tmp_path: Path) -> None:
    name = stage(catalog, Layout(tmp_path), "bbbb3333", "tree 3")
    catalog.promoted(name, "v3", back=False)
    assert catalog.last_good(name) == "v2"
    catalog.condemn(["v1", "v2"])
    with pytest.raises(NoSuchReleaseError) as refused:
        catalog.last_good(name)
    assert "v3: the same files and settings as v4" in str(refused.value.cause)


def test_going_forward_again_leaves_the_older_release_good(catalog: Catalog) -> None:
    catalog.promoted("v2", "v3", back=True)
    states = {info.name: info.state for info in catalog.infos()}
    assert states == {"v1": "superseded", "v2": "live", "v3": "reverted"}
    catalog.promoted("v3", "v2", back=True)
    states = {info.name: info.state for info in catalog.infos()}
    assert states == {"v1": "superseded", "v2": "superseded", "v3": "live"}


def test_a_detail_has_the_names_of_variables_and_no_values(catalog: Catalog) -> None:
    detail = catalog.detail("v1", [])
    assert detail.env_keys == ["A"]
    assert "secret" not in repr(detail)
    assert detail.config["worker"]["env"] == {"A": "***"}


def test_the_size_to_expect_is_that_of_the_last_release_of_the_source(catalog: Catalog) -> None:
    assert catalog.expected_bytes("git x") == 10
    assert catalog.expected_bytes("git y") is None


def test_a_release_without_its_python_environment_is_no_target(catalog: Catalog, tmp_path: Path) -> None:
    """The default passes over it, who names it is told what is missing and how to get it back; it may be pinned."""
    layout = Layout(tmp_path)
    python = environment(layout, "e")
    fourth, fifth = stage(catalog, layout, "cccc4444", "tree 4", "e"), stage(catalog, layout, "dddd5555", "tree 5")
    catalog.promoted(fourth, "v3", back=False)
    catalog.promoted(fifth, fourth, back=False)
    assert (catalog.last_good(fifth), catalog.target(fourth), catalog.of_commit("cccc")) == ("v4", "v4", "v4")
    python.unlink()
    gone = f"its Python environment is gone ({layout.envs / 'e'})"
    assert catalog.last_good(fifth) == "v3"
    with pytest.raises(NoSuchReleaseError, match="v4 cannot be rolled back to") as refused:
        catalog.target(fourth)
    assert refused.value.cause == gone
    assert refused.value.hint == "deployer deploy --ref cccc4444  # builds the environment anew"
    with pytest.raises(NoSuchReleaseError, match="no release of commit cccc") as refused:
        catalog.of_commit("cccc")
    assert refused.value.cause == f"v4: {gone}"
    catalog.condemn(["v1", "v2", "v3"])
    with pytest.raises(NoSuchReleaseError, match="no release to roll back to") as refused:
        catalog.last_good(fifth)
    assert refused.value.cause == f"v4: {gone}"
    catalog.pin(fourth, pinned=True)
