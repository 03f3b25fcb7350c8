"""The frame around the verbs: words that are wrong, errors, imports, and how long it takes to start."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from time import perf_counter

import pytest
from cli_shop import ENV, Shop
from scripted_manager import ScriptedManager, status

from deployer import __version__
from deployer.cli.app import VERBS

HEAVY = {
    "asyncio",
    "git",
    "httpx",
    "psutil",
    "pydantic",
    "rich",
    "ssl",
    "starlette",
    "structlog",
    "uvicorn",
    "watchdog",
}
IMPORTS = """\
import sys
from deployer.cli.app import main
code = main(sys.argv[1:])
print("\\n" + " ".join(sorted(sys.modules)), file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize(
    "words",
    [["--help"], ["status"], ["status", "--help"], ["releases"], ["history"], ["logs"], ["events"], ["scale", "2"]],
    ids=" ".join,
)
def test_quick_commands_import_nothing_heavy(manager: ScriptedManager, shop: Shop, words: list[str]) -> None:
    manager.answers["GET /v1/status"] = 200, status()
    manager.answers["GET /v1/releases"] = manager.answers["GET /v1/rollouts"] = 200, []
    manager.streams["/v1/logs"] = lambda query: iter([])
    manager.answers["POST /v1/scale"] = 409, {"error": {"what": "busy", "exit": 75}}

    result = subprocess.run(
        [sys.executable, "-c", IMPORTS, *words], cwd=shop.directory, env=ENV, capture_output=True, text=True, timeout=30
    )

    loaded = set(result.stderr.splitlines()[-1].split())
    assert "deployer.cli.app" in loaded
    assert loaded & HEAVY == set()
    assert loaded & {f"deployer.cli.{part}" for part in ("watch", "developing", "browser", "healing")} == set()


def test_start_up_is_quick(manager: ScriptedManager, shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    """The goal is 150 ms; a machine that runs other tests at the same time is only held to 2 s."""
    manager.answers["GET /v1/status"] = 200, status()
    for words in (["--help"], ["status"]):
        best = min(_timed(shop, words) for _ in range(3))
        with capsys.disabled():
            print(f"\ndeployer {' '.join(words)}: {best * 1000:.0f} ms")
        assert best < 2


def _timed(shop: Shop, words: list[str]) -> float:
    start = perf_counter()
    assert shop.run(*words).code == 0
    return perf_counter() - start


def test_help_lists_every_verb_with_what_its_own_help_says(shop: Shop) -> None:
    result = shop.run("--help", env={"COLUMNS": "120"})

    assert result.code == 0
    for verb, summary in VERBS.items():
        assert f"  {verb} " in result.out
        if verb != "up":  # needs the daemon's side
            run = importlib.import_module(f"deployer.cli.{verb}").run
            assert run.__doc__.splitlines()[0] == summary


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "up"])
def test_every_verb_explains_itself_and_takes_the_global_options(shop: Shop, verb: str) -> None:
    result = shop.run(verb, "--help")

    assert (result.code, result.err) == (0, "")
    for option in ("--config", "--json", "--quiet", "-q", "--verbose", "-v"):
        assert option in result.out


def test_version(shop: Shop) -> None:
    assert shop.run("--version").out == f"deployer {__version__}\n"


def test_without_a_verb_the_help_is_shown_and_the_usage_is_wrong(shop: Shop) -> None:
    result = shop.run()

    assert result.code == 2
    assert "Commands:" in result.out


@pytest.mark.parametrize(
    ("words", "err"),
    [
        (
            ["stauts"],
            'error: there is no command "stauts"\ncause: the nearest one is "status"\nhint: deployer status\n',
        ),
        (["zzz"], 'error: there is no command "zzz"\nhint: deployer --help\n'),
        (
            ["deploy", "--forse"],
            'error: no such option: --forse\ncause: the nearest one is "--force"\nhint: deployer deploy --help\n',
        ),
        (["scale"], "error: missing argument 'N'\nhint: deployer scale --help\n"),
        (["-q", "history"], "error: -q stands after the command's name\nhint: deployer history -q\n"),
        (
            ["follow", "x"],
            "error: invalid value for '[ROLLOUT]': 'x' is not a valid int\nhint: deployer follow --help\n",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_words_are_explained_with_exit_2(shop: Shop, words: list[str], err: str) -> None:
    result = shop.run(*words)

    assert (result.code, result.out, result.err) == (2, "", err)


def test_scale_to_none_is_refused(shop: Shop) -> None:
    result = shop.run("scale", "0")

    assert result.code == 2
    assert result.err.startswith("error: invalid value for 'N': 0 is not in the range 1<=x<=512\n")


def test_no_configuration_says_how_to_make_one(shop: Shop) -> None:
    (shop.directory / "deployer.toml").unlink()

    result = shop.run("status")

    assert result.code == 78
    assert result.err.startswith("error: no deployer.toml in ")
    assert result.err.endswith("hint: deployer init\n")


def test_config_names_the_file_or_its_directory(manager: ScriptedManager, shop: Shop) -> None:
    manager.answers["GET /v1/status"] = 200, status()
    elsewhere = Shop(shop.directory / "deep", shop.layout)
    elsewhere.directory.mkdir()

    for config in ("..", "../deployer.toml", str(shop.directory)):
        assert elsewhere.run("status", "-q", "--config", config).out == "v7\n"


def test_the_nearest_configuration_upwards_is_used(manager: ScriptedManager, shop: Shop) -> None:
    manager.answers["GET /v1/status"] = 200, status()
    (shop.directory / "a" / "b").mkdir(parents=True)

    assert Shop(shop.directory / "a" / "b", shop.layout).run("status", "-q").out == "v7\n"


def test_our_own_fault_is_called_a_bug_without_a_traceback(manager: ScriptedManager, shop: Shop) -> None:
    manager.streams["/v1/logs"] = lambda query: iter([b"not json\n"])

    short, long = shop.run("logs"), shop.run("logs", env={"DEPLOYER_DEBUG": "1"})

    assert (short.code, long.code) == (1, 1)
    assert short.err.startswith("error: DecodeError: ")
    assert "(a bug)" in short.err
    assert "Traceback" not in short.err
    assert "Traceback" in long.err


def test_a_fault_of_the_supervisor_points_at_its_own_log(manager: ScriptedManager, shop: Shop) -> None:
    manager.answers["GET /v1/status"] = 500, "no answer that a manager gives"
    result = shop.run("status")
    assert result.code == 1
    assert "error: the supervisor answered HTTP 500" in result.err
    assert re.search(r"hint: tail -n 20 /.*/logs/deployer\.log\n", result.err)


def test_errors_are_json_too(shop: Shop) -> None:
    result = shop.run("status", "--json")

    problem = json.loads(result.out)["error"]
    assert (problem["exit"], problem["reason"], problem["hint"]) == (69, "unavailable", "deployer up")
    assert result.err.startswith("error: no supervisor runs for ")
