"""env_files beside the code: secrets that have no place in a release."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from stagekit import CONFIG, Done, Repository, Stager

from deployer.config.model import Config, Release, Worker
from deployer.releases.digest import walk
from deployer.releases.request import Directory, Git

SECRET = "TOKEN=hunter2-never-shipped\n"


def config(*env_files: str, shared: list[str] | None = None) -> Config:
    worker = Worker(command="serve {fd}", env_file=list(env_files))
    return msgspec.structs.replace(CONFIG, worker=worker, release=Release(shared=shared or []))


def write(path: Path, text: str = SECRET) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o600)
    return path


def secrets_in(directory: Path) -> list[str]:
    return [name.decode() for name, entry in walk(bytes(directory)) if is_secret(Path(entry.path.decode()))]


def is_secret(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and SECRET in path.read_text()


def warnings(done: Done) -> list[str]:
    assert done.result is not None, done.told
    found: list[str] = done.result["warnings"]
    return found


@pytest.mark.parametrize("name", ["app.env", "conf/[a-z]*?.env", "conf/deep/.env", "{x},!y .env"])
def test_an_env_file_in_the_source_is_left_out_by_its_name_alone(stager: Stager, name: str) -> None:
    """Whatever its name means as a glob; it is told, and the release has its variables all the same."""
    write(stager.directory / name)
    others = [write(stager.directory / path, "x") for path in ("conf/a1.env", "conf/app.env", "other/.env", "a.py")]
    done = stager.run(Directory(path="."), host_config=config(name))
    assert done.result is not None, done.told
    assert done.result["env"]["TOKEN"] == "hunter2-never-shipped"
    assert [line for line in done.progress if "left out" in line] == [f"left out {name}: it is an env_file"]
    assert secrets_in(stager.release()) == []
    assert all((stager.release() / path.relative_to(stager.directory)).is_file() for path in others)


def test_it_is_known_through_links_on_both_ways(stager: Stager, tmp_path: Path) -> None:
    """The source is named by a link, the env_file by another; what they lead to is what counts."""
    write(tmp_path / "real" / "conf" / "secrets")
    (tmp_path / "source").symlink_to(tmp_path / "real")
    (tmp_path / "env").symlink_to(tmp_path / "real" / "conf" / "secrets")
    done = stager.run(Directory(path="../source"), host_config=config(str(tmp_path / "env")))
    assert done.result is not None, done.told
    assert secrets_in(stager.release()) == []


def test_the_sources_own_configuration_names_env_files_too(stager: Stager) -> None:
    """Relative to the host's deployer.toml, as they are read."""
    write(stager.directory / "app" / "own.env")
    write(stager.directory / "app" / "deployer.toml", '[worker]\nenv_file = ["app/own.env"]\n')
    done = stager.run(Directory(path="app"), host_config=config())
    assert done.result is not None, done.told
    assert done.result["env"] == {"TOKEN": "hunter2-never-shipped"}
    assert secrets_in(stager.release()) == []


def test_one_in_root_is_not_told(stager: Stager) -> None:
    """ROOT is left out as a whole."""
    inside = Stager(stager.directory, stager.directory / ".deployer")
    write(inside.layout.shared / "app.env")
    done = inside.run(Directory(path="."), host_config=config(".deployer/shared/app.env"))
    assert done.exit == 0
    assert not [line for line in done.progress if "left out" in line]


@pytest.mark.parametrize("shared", ["conf", "conf/app.env"])
def test_one_that_is_shared_is_seeded_and_does_not_stay_in_the_release(stager: Stager, shared: str) -> None:
    """[release] shared moves it to ROOT/shared, where the app finds it, with its mode."""
    write(stager.directory / "conf" / "app.env")
    done = stager.run(Directory(path="."), host_config=config("conf/app.env", shared=[shared]))
    assert done.exit == 0, done.told
    seeded = stager.layout.shared / "conf" / "app.env"
    assert (seeded.read_text(), seeded.stat().st_mode & 0o777) == (SECRET, 0o600)
    assert (stager.release() / "conf" / "app.env").samefile(seeded)
    assert secrets_in(stager.release()) == []


def test_one_that_is_committed_is_taken_with_a_warning(stager: Stager, repository: Repository) -> None:
    """Of the same content: a template of the same name is none of it."""
    write(stager.directory / "app.env")
    write(stager.directory / "other.env")
    repository.commit("Secrets", app__env=SECRET, other__env="TOKEN=change-me\n")
    settings = config("app.env", "other.env")
    done = stager.run(Git(url=str(repository.path)), host_config=settings)
    assert (stager.release() / "app.env").is_file()
    (warning,) = warnings(done)
    assert warning == "env_file app.env is committed, so that every release holds it: git rm --cached app.env"
    repository.git("rm", "--quiet", "app.env")
    repository.git("commit", "--quiet", "--message", "Out")
    assert warnings(stager.run(Git(url=str(repository.path)), "v2", host_config=settings)) == []


def test_one_in_the_repository_that_is_deployed_is_known_from_anywhere(stager: Stager, repository: Repository) -> None:
    """deployer.toml lies elsewhere, and names the file in the work tree."""
    write(repository.path / "conf" / "app.env")
    repository.commit("Secrets")
    done = stager.run(Git(url="../repository"), host_config=config("../repository/conf/app.env"))
    (warning,) = warnings(done)
    assert "env_file conf/app.env is committed" in warning
