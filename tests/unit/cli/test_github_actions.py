"""Inside a GitHub job: annotations at the right line, folded staging, and no command from a worker's log."""

from __future__ import annotations

import re

import pytest
import rollout_stories as stories
from cli_shop import Shop
from scripted_manager import ScriptedManager, rollout_info

from deployer.cli.github import source_line

GITHUB = {"GITHUB_ACTIONS": "true", "CI": "true", "GITHUB_ACTOR": "ana", "GITHUB_RUN_ID": "881"}


@pytest.fixture
def manager(manager: ScriptedManager) -> ScriptedManager:
    manager.answers["POST /v1/deploy"] = 202, rollout_info()
    return manager


def test_a_halt_is_annotated_at_the_line_that_raised(manager: ScriptedManager, shop: Shop) -> None:
    manager.events = stories.canary_halt()

    result = shop.run("deploy", env=GITHUB)

    assert result.code == 3
    assert result.err.endswith(
        "::error file=app/pricing.py,line=12,title=shop v7::v7 does not start: exit code 1"
        "%0AModuleNotFoundError: No module named 'vendor.pricing'"
        "%0AHALTED at slot 1 of 2. Nothing was replaced; v6 serves.\n"
    )
    assert manager.bodies("POST /v1/deploy")[0]["who"] == "ana (GitHub run 881)"


def test_staging_is_folded(manager: ScriptedManager, shop: Shop) -> None:
    manager.events = stories.promoted()

    lines = shop.run("deploy", env=GITHUB).err.splitlines()

    start, end = lines.index("::group::stage the release"), lines.index("::endgroup::")
    assert [line[13:] for line in lines[start + 1 : end]] == [
        "phase: staging",
        "stage: copied 213 files",
        'staged v7 41d09e7 "Fix cart rounding" (213 files) 0.4s',
    ]


def test_a_workers_output_cannot_command_the_runner(manager: ScriptedManager, shop: Shop) -> None:
    manager.events = stories.canary_halt()
    evil = ["::add-path::/tmp/evil", "##[add-path]/tmp/evil", "::stop-commands::x"]
    for line in manager.events:
        if "tail" in line:
            line["tail"] = evil
    manager.events[-1]["problem"]["cause"] = "two lines\n::set-output name=x::y"
    manager.events[3]["subject"] = "fix\n::add-path::/tmp/evil"

    err = shop.run("deploy", env=GITHUB).err

    stopped = None
    for line in err.splitlines():
        start = re.fullmatch(r"::stop-commands::([0-9a-f]{32})", line)
        if stopped is not None:
            stopped = None if line == f"::{stopped}::" else stopped
        elif start:
            stopped = start[1]
        elif line.lstrip().startswith("::"):
            assert line.startswith(("::group::stage", "::endgroup::", "::error title=shop v7::")), line
        else:
            assert "##[" not in line
    assert stopped is None


def test_the_summary_tells_how_it_went(manager: ScriptedManager, shop: Shop) -> None:
    manager.events = stories.canary_halt()
    summary = shop.directory / "summary.md"

    shop.run("deploy", env={**GITHUB, "GITHUB_STEP_SUMMARY": str(summary)})

    text = summary.read_text()
    assert text.startswith("### ❌ deploy of shop: HALTED at slot 1 of 2. Nothing was replaced; v6 serves.\n")
    assert "| result | failed (exit 3) |" in text
    assert "ModuleNotFoundError: No module named 'vendor.pricing'" in text
    assert "\x1b" not in text


def test_a_summary_that_cannot_be_written_changes_no_exit_code(manager: ScriptedManager, shop: Shop) -> None:
    manager.events = stories.promoted()

    result = shop.run("deploy", env={**GITHUB, "GITHUB_STEP_SUMMARY": "/nonexistent/x"})

    assert result.code == 0
    assert "the job summary /nonexistent/x cannot be written: No such file or directory\n" in result.err


def test_a_mistake_in_the_configuration_is_annotated_at_its_line(shop: Shop) -> None:
    (shop.directory / "deployer.toml").write_text('name = "shop"\n\n[worker]\ncommandd = "true"\n')

    result = shop.run("check", env=GITHUB)

    assert result.code == 78
    assert "::error file=deployer.toml,line=" in result.err


@pytest.mark.parametrize(
    ("tail", "where"),
    [
        (stories.TRACEBACK, ("app/pricing.py", 12)),
        (['  File "<frozen importlib>", line 5, in f', '  File "wsgi.py", line 3, in <module>'], ("wsgi.py", 3)),
        (['  File "/usr/lib/python3.11/json/decoder.py", line 355, in raw_decode'], None),
        (
            [
                "Error: no such table",
                "    at open (/srv/.deployer/releases/v9/db.js:7:11)",
                "    at main (/srv/.deployer/releases/v9/server.js:3:1)",
            ],
            ("db.js", 7),
        ),
        (["Segmentation fault"], None),
    ],
)
def test_the_innermost_line_of_the_application_is_found(tail: list[str], where: tuple[str, int] | None) -> None:
    assert source_line(tail) == where
