"""A short run of the judge (tests/e2e/watching/judge.py); the full one: python -m tests.e2e.watching.judge

DEPLOYER_JUDGE_SAVES and DEPLOYER_JUDGE_SEED for others.
"""

from __future__ import annotations

import os

import pytest

from tests.e2e.watching.judge import judge

SAVES = int(os.environ.get("DEPLOYER_JUDGE_SAVES", "60"))
SEED = int(os.environ.get("DEPLOYER_JUDGE_SEED", "0")) or None


@pytest.mark.serial
@pytest.mark.timeout(120 + 3 * SAVES)
@pytest.mark.parametrize("kills", [False, True], ids=["saves", "saves and kills"])
def test_random_saves_under_load(kills: bool) -> None:
    """Nothing lost, what is served is what was saved, nothing grows, nothing is left."""
    assert judge(SAVES, kills=kills, seed=SEED).wrong == []
