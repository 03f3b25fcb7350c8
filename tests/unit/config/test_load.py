"""Reading deployer.toml: what is found, what it means, and the words for every fault."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deployer.config import load as module
from deployer.config.load import find, load, overlay
from deployer.config.model import Config, Ready
from deployer.errors import ConfigError, Exit

WHAT_STARTS_IT = (
    'write what starts your app, e.g. app = "module:object" for a WSGI or ASGI application, '
    'or command = "node server.js"'
)
VALID = """\
name = "shop"

[worker]
command = "serve {fd}"

[[listen]]
address = "tcp://127.0.0.1:8000"
"""
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "deployer.toml"
        path.write_text(text)
        return path

    return write


def refusal(path: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert caught.value.exit_code == Exit.CONFIG
    return caught.value


def test_a_valid_file_gives_its_values_and_absolute_places(write: Write, tmp_path: Path) -> None:
    loaded = load(write(VALID))
    assert loaded.config.name == "shop"
    assert loaded.config.worker.readiness is Ready.LISTEN
    assert loaded.path == tmp_path / "deployer.toml"
    assert loaded.directory == tmp_path
    assert loaded.root == tmp_path / ".deployer"
    assert loaded.source_dir == tmp_path


def test_a_relative_file_and_a_byte_order_mark_are_accepted(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("\ufeff" + VALID)
    monkeypatch.chdir(tmp_path)
    assert load(Path("deployer.toml")).directory == tmp_path


def test_root_and_source_are_relative_to_the_file(write: Write, tmp_path: Path) -> None:
    loaded = load(write('root = "../state"\n' + VALID + '[source]\npath = "app"\n'))
    assert loaded.root == tmp_path.parent / "state"
    assert loaded.source_dir == tmp_path / "app"


def test_a_git_source_has_no_source_directory(write: Write) -> None:
    loaded = load(write(VALID + '[source]\ngit = "https://example.com/shop.git"\nref = "main"\n'))
    assert loaded.source_dir is None


@pytest.mark.parametrize(
    ("text", "what", "hint"),
    [
        (VALID.replace("command", "comand"), "4: unknown key `comand` in [worker]", "did you mean `command`?"),
        (VALID + "backlogg = 1\n", "8: unknown key `backlogg` in [[listen]]", "did you mean `backlog`?"),
        (VALID + "[wroker]\n", "8: unknown table [wroker]", "did you mean `worker`?"),
        ("nme = 1\n" + VALID, "1: unknown key `nme`", "did you mean `name`?"),
        (VALID + "soak = 1\n", "8: unknown key `soak` in [[listen]]", "`soak` belongs in [rollout]"),
        (
            VALID + "root = 'x'\n",
            "8: unknown key `root` in [[listen]]",
            "`root` belongs at the top of the file, before the first [table]",
        ),
        (
            VALID + "[source]\nzzzzz = 1\n",
            "9: unknown key `zzzzz` in [source]",
            "known here: path, git, ref, submodules, lfs, artifact, sha256, package, index_url, include, exclude, link",
        ),
        (
            'name = "a"\n',
            " the table [worker] is missing",
            'add [worker] with app = "module:object" or command = "..."',
        ),
        ('name = "a"\n[worker]\n', "2: neither `command` nor `app` is in [worker]", WHAT_STARTS_IT),
        (
            VALID.replace("name", "#"),
            " the key `name` is missing in the top level",
            'add name = "shop" to the top level',
        ),
        (
            VALID + "[[listen]]\n",
            "8: the key `address` is missing in [[listen]]",
            'add address = "tcp://127.0.0.1:8000" to [[listen]]',
        ),
    ],
)
def test_an_unknown_or_missing_key_is_named_with_the_nearest(write: Write, text: str, what: str, hint: str) -> None:
    error = refusal(write(text))
    assert (error.what, error.hint) == (f"deployer.toml:{what}", hint)


@pytest.mark.parametrize(
    ("line", "what", "hint"),
    [
        ("command = 7", "`command` in [worker]: expected a text in quotes, got the number 7", None),
        (
            'count = "four"',
            '`count` in [worker]: expected a whole number from 1 to 512 or "auto", got the text "four"',
            None,
        ),
        ("count = 0", '`count` in [worker]: expected a whole number from 1 to 512 or "auto", got the number 0', None),
        ("nice = 20", "`nice` in [worker]: expected a whole number from -20 to 19, got the number 20", None),
        ("nice = 1.5", "`nice` in [worker]: expected a whole number from -20 to 19, got the number 1.5", None),
        (
            'ready = "lisen"',
            '`ready` in [worker]: expected one of "notify", "http", "listen", "delay", got the text "lisen"',
            "did you mean `listen`?",
        ),
        (
            "ready_timeout = 60",
            '`ready_timeout` in [worker]: expected a duration such as "3s", got the number 60',
            None,
        ),
        ("user = true", "`user` in [worker]: expected a text in quotes, got true", None),
        ("umask = 1979-05-27", "`umask` in [worker]: expected a text in quotes, got a date or time", None),
        ('env_file = ".env"', '`env_file` in [worker]: expected an array of texts, got the text ".env"', None),
        ("env_file = ['a', 2]", "item 2 of `env_file` in [worker]: expected a text in quotes, got the number 2", None),
        ("env = []", "`env` in [worker]: expected a table of names and texts, got an array", None),
        (
            "env = { PORT = 8000 }",
            "`env.PORT` in [worker]: expected a text in quotes, got a number",
            'put the value in quotes: PORT = "..."',
        ),
        (
            "rlimits = { nofile = '1' }",
            '`rlimits.nofile` in [worker]: expected a whole number, got the text "1"',
            None,
        ),
        (f"nice = {'9' * 400}", "`nice` in [worker]: expected a whole number from -20 to 19, got a number", None),
    ],
)
def test_a_wrong_type_is_told_in_words(write: Write, line: str, what: str, hint: str | None) -> None:
    kept = "" if line.startswith("command") else 'command = "serve"\n'
    error = refusal(write(f'name = "a"\n[worker]\n{line}\n{kept}'))
    assert (error.what, error.hint) == (f"deployer.toml:3: {what}", hint)


@pytest.mark.parametrize(
    ("text", "what", "hint"),
    [
        ("worker = 3\n", "3: `worker`: expected a table, got the number 3", None),
        (
            "[[worker]]\n",
            "3: `worker`: expected a table, got an array of tables",
            "write [worker] with single brackets",
        ),
        (
            "[worker]\ncommand='a'\n[listen]\n",
            "5: `listen`: expected [[listen]] tables, got a table",
            "write [[listen]] with double brackets",
        ),
        ("listen = [1]\n[worker]\ncommand='a'\n", "3: [[listen]]: expected a table, got the number 1", None),
        (
            "[worker]\ncommand='a'\n[rollout]\npreflight = 1\n",
            "6: `preflight` in [rollout]: expected true or false, got the number 1",
            None,
        ),
        (
            "[worker]\ncommand='a'\n[rollout]\nbatch = 0\n",
            "6: `batch` in [rollout]: expected a whole number of at least 1, got the number 0",
            None,
        ),
    ],
)
def test_tables_of_the_wrong_shape_are_told_in_words(write: Write, text: str, what: str, hint: str | None) -> None:
    error = refusal(write('name = "a"\n\n' + text))
    assert (error.what, error.hint) == (f"deployer.toml:{what}", hint)


def test_the_value_of_an_environment_variable_is_never_shown(write: Write) -> None:
    error = refusal(write('name = "a"\n[worker]\ncommand = "serve"\nenv.KEY = 123456\n'))
    assert "123456" not in f"{error.what}{error.cause}{error.hint}"


@pytest.mark.parametrize(
    ("text", "what", "hint"),
    [
        ("a = 1\nname = shop\n", "2: not valid TOML: invalid value", 'a text needs quotes: name = "shop"'),
        ("name\n", "1: not valid TOML: expected '=' after a key in a key/value pair", None),
        ("a = 1\na = 2\n", "2: not valid TOML: cannot overwrite a value", "the key is written twice: remove one"),
        (
            "[worker]\n[worker]\n",
            "2: not valid TOML: cannot declare ('worker',) twice",
            "write [worker] once, with all its keys below it",
        ),
        ('a = 1\nb = """x\n', "2: not valid TOML: unterminated string", None),
        (
            "a = 1\n\n=\n",
            "3: not valid TOML: invalid statement",
            'write KEY = VALUE, [table], or start a comment with "#"',
        ),
    ],
)
def test_a_toml_error_has_its_line(write: Write, text: str, what: str, hint: str | None) -> None:
    error = refusal(write(text))
    assert (error.what, error.hint) == (f"deployer.toml:{what}", hint)


def test_values_that_break_the_parser_itself_are_refused(write: Write) -> None:
    assert refusal(write("a = " + "[" * 5000)).what == "deployer.toml: not usable: values are nested too deep"
    assert refusal(write("a = " + "1" * 5000)).what.startswith("deployer.toml: not usable: Exceeds the limit")
    assert refusal(write("nice = 0x" + "f" * 5000 + "\n" + VALID)).what == "deployer.toml:1: unknown key `nice`"


def test_a_nul_character_is_refused_where_it_stands(write: Write) -> None:
    error = refusal(write('name = "a"\n[worker]\ncommand = "x\\u0000"\n'))
    assert error.what == "deployer.toml:3: `command` in [worker] has a NUL character in it"


def test_a_file_that_is_not_utf8_is_refused_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "deployer.toml"
    path.write_bytes(b"name = 'a'\n# \xff\n")
    error = refusal(path)
    assert (error.what, error.hint) == ("deployer.toml:2: not UTF-8 text", "save the file as UTF-8")


def test_a_missing_file_a_directory_and_an_unreadable_file_are_told_apart(tmp_path: Path) -> None:
    missing = refusal(tmp_path / "x.toml")
    assert missing.what == f"cannot read {tmp_path}/x.toml: there is no such file"
    assert missing.hint == "deployer init"
    directory = refusal(tmp_path)
    assert directory.what == f"cannot read {tmp_path}: it is a directory"
    assert directory.hint == f"name the file: {tmp_path}/deployer.toml"
    below_file = tmp_path / "file"
    below_file.touch()
    assert refusal(below_file / "deployer.toml").what.endswith("deployer.toml: not a directory")


def test_a_file_without_permission_is_told_so(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    path = write(VALID)
    monkeypatch.setattr(Path, "read_bytes", deny)
    error = refusal(path)
    assert (error.what, error.hint) == (f"cannot read {path}: permission denied", f"ls -l {path}")


def test_the_nearest_file_upward_is_found(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEPLOYER_CONFIG", raising=False)
    path = write(VALID)
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    assert find(None, below) == path


def test_the_option_wins_over_the_variable_and_both_over_the_search(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(VALID)
    (tmp_path / "env.toml").touch()
    monkeypatch.setenv("DEPLOYER_CONFIG", "env.toml")
    assert find(Path("option.toml"), tmp_path) == tmp_path / "option.toml"
    assert find(None, tmp_path) == tmp_path / "env.toml"


def test_a_variable_that_names_no_file_is_blamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOYER_CONFIG", "gone.toml")
    with pytest.raises(ConfigError) as caught:
        find(None, tmp_path)
    assert caught.value.what == f"cannot read {tmp_path}/gone.toml: there is no such file"
    assert caught.value.cause == "DEPLOYER_CONFIG names it"


def test_without_a_file_init_is_the_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOYER_CONFIG", "")
    monkeypatch.setattr(module, "FILE_NAME", "no-such-file.toml")
    with pytest.raises(ConfigError) as caught:
        find(None, tmp_path)
    assert caught.value.what == f"no no-such-file.toml in {tmp_path} or above it"
    assert caught.value.hint == "deployer init"


def test_the_copy_inside_a_release_is_passed_over(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DEPLOYER_CONFIG", raising=False)
    path = write(VALID)
    release = tmp_path / ".deployer" / "releases" / "v1"
    release.mkdir(parents=True)
    (release / "deployer.toml").write_text(VALID)
    (tmp_path / ".deployer" / "state.db").touch()
    assert find(None, release) == path


def test_a_release_may_change_from_a_command_to_an_app_and_back(host: Config, tmp_path: Path) -> None:
    release = tmp_path / "release.toml"
    release.write_text('[worker]\napp = "shop:app"\n')
    served = overlay(host, release)
    assert (served.worker.command, served.worker.app) == (None, "shop:app")
    assert served.worker.readiness is Ready.NOTIFY
    release.write_text('[worker]\ncommand = "serve"\n')
    assert (overlay(served, release).worker.command, overlay(served, release).worker.app) == ("serve", None)


@pytest.fixture
def host(write: Write) -> Config:
    return load(write(VALID + '[health]\nhttp = "/up"\n[rollout]\nsoak = "1s"\n')).config


def test_a_release_overrides_its_sections_key_by_key(host: Config, tmp_path: Path) -> None:
    release = tmp_path / "release.toml"
    release.write_text("name = 7\nlisten = 3\n[worker]\ncount = 2\n[rollout]\nbatch = 3\n[source]\nodd = 1\n")
    merged = overlay(host, release)
    assert (merged.worker.count, merged.worker.command) == (2, "serve {fd}")
    assert (merged.rollout.batch, merged.rollout.soak) == (3, "1s")
    assert (merged.name, merged.listen, merged.source, merged.health) == ("shop", host.listen, host.source, host.health)


def test_a_table_of_variables_is_replaced_whole(write: Write, tmp_path: Path) -> None:
    host = load(write(VALID.replace("[[", "env = { A = '1', B = '2' }\n[["))).config
    release = tmp_path / "release.toml"
    release.write_text("[worker.env]\nB = '3'\n")
    assert overlay(host, release).worker.env == {"B": "3"}


def test_a_release_without_the_file_runs_on_the_hosts(host: Config, tmp_path: Path) -> None:
    assert overlay(host, tmp_path / "gone.toml") is host


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[worker]\ncomand = 1\n", "2: unknown key `comand` in [worker]"),
        ("\n[wroker]\n", "2: unknown table [wroker]"),
        ("[worker]\ncount = 'x'\n", "2: `count` in [worker]: expected a whole number from 1 to 512"),
        ("[rollout]\nsoak = 'x'\n", "2: `soak` in [rollout]: 'x' is not a duration"),
        ("[worker]\ncommand = 'x {fd:web}'\n", "2: `command` in [worker]: {fd:web} names no [[listen]]"),
        ("worker = 1\n", "1: `worker`: expected a table, got the number 1"),
        ("x", "1: not valid TOML"),
    ],
)
def test_a_fault_in_a_release_has_its_line_and_names_the_file(
    host: Config, tmp_path: Path, text: str, what: str
) -> None:
    release = tmp_path / "deployer.toml"
    release.write_text(text)
    with pytest.raises(ConfigError) as caught:
        overlay(host, release)
    assert caught.value.what.startswith(f"deployer.toml:{what}")
    assert caught.value.cause == f"it is the release's own configuration: {release}"


def test_importing_the_loader_is_cheap() -> None:
    code = "import sys, deployer.config.load; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": ""}
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert not {"asyncio", "rich", "typer", "structlog", "git", "subprocess"} & set(modules.stdout.split())
