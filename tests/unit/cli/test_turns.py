"""Waiting for a turn that can never come: a hook that would wait for its own rollout."""

from __future__ import annotations

from pathlib import Path

import pytest
import rollout_stories as stories
from cli_shop import Shop
from scripted_manager import ScriptedManager, rollout_info, status


def hook_of(root: Path, rollout: int = 12) -> dict[str, str]:
    """What a hook finds in its environment."""
    return {"DEPLOYER_STAGE": "after_build", "DEPLOYER_ROLLOUT": str(rollout), "DEPLOYER_ROOT": str(root)}


@pytest.mark.parametrize(
    "words",
    [
        ("deploy", "--queue"),
        ("deploy", "--supersede"),
        ("deploy", "--supersede", "--detach"),
        ("rollback", "--queue"),
        ("rollback", "v6", "--supersede"),
    ],
    ids=" ".join,
)
def test_a_hook_may_not_wait_for_its_own_rollout(manager: ScriptedManager, shop: Shop, words: tuple[str, ...]) -> None:
    """Refused before anything is asked for, with what to do instead."""
    manager.answers["GET /v1/status"] = 200, status(rollout=rollout_info(id=12))
    result = shop.run(*words, env=hook_of(shop.layout.root))
    assert result.code == 75
    what, cause, hint = result.err.splitlines()
    option = "--queue" if "--queue" in words else "--supersede"
    assert what == f"error: {option} is refused in the after_build hook of rollout 12, which is running"
    assert cause.startswith("cause: it would wait for the end of that rollout")
    assert hint.startswith("hint: ")
    assert {name for name, _, _ in manager.requests} == {"GET /v1/status"}


@pytest.mark.parametrize("case", ["another rollout", "no rollout", "another cluster", "detached", "no hook"])
def test_who_does_not_wait_for_itself_may_wait(manager: ScriptedManager, shop: Shop, case: str) -> None:
    """A service that a hook left behind keeps the hook's environment; a hook may deploy elsewhere, or not wait."""
    running = {"another rollout": rollout_info(id=13), "no rollout": None}.get(case, rollout_info(id=12))
    manager.answers["GET /v1/status"] = 200, status(rollout=running)
    manager.answers["POST /v1/deploy"] = 202, rollout_info(id=14, place=1)
    manager.events = stories.promoted()
    for event in manager.events:
        event["rollout"] = 14
    env = hook_of(shop.layout.root.parent if case == "another cluster" else shop.layout.root)
    words = ("deploy", "--queue", "--quiet", *(["--detach"] if case == "detached" else []))
    result = shop.run(*words, env={} if case == "no hook" else env)
    assert result.code == 0, result.err
    assert [body["queue"] for body in manager.bodies("POST /v1/deploy")] == [True]
