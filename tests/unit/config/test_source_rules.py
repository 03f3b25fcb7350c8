"""[source]: one kind, with the keys that go with it."""

from __future__ import annotations

from typing import Any

import pytest

from deployer.config.model import Source
from deployer.config.source import source_problems

DIGEST = "a" * 64


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"path": ".", "git": "x"}, "exclude each other"),
        ({"artifact": "a.zip", "package": "shop==1"}, "exclude each other"),
        ({"ref": "main"}, "`ref` in [source] needs `git`"),
        ({"path": ".", "sha256": DIGEST}, "`sha256` in [source] needs `artifact`"),
        ({"index_url": "https://x"}, "`index_url` in [source] needs `package`"),
        ({"artifact": "https://x/a.zip"}, "needs `sha256`"),
        ({"artifact": "ftp://x/a.zip", "sha256": DIGEST}, "only https:// is fetched"),
        ({"artifact": "a.zip", "sha256": "abc"}, "is not 64 hexadecimal digits"),
        ({"package": "shop>=1.2"}, "is not one version"),
        ({"package": "shop"}, "is not one version"),
        ({"git": "x", "ref": "-x"}, 'starts with "-"'),
    ],
)
def test_what_does_not_agree(keys: dict[str, Any], text: str) -> None:
    """Each names the key."""
    assert any(text in problem.text for problem in source_problems(Source(**keys)))


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"git": "x", "ref": "main"},
        {"artifact": "a.zip"},
        {"artifact": "https://x/a.zip", "sha256": DIGEST},
        {"package": "shop==1.2", "index_url": "https://${TOKEN}@host/simple"},
    ],
)
def test_what_agrees(keys: dict[str, Any]) -> None:
    """Nothing is said."""
    assert list(source_problems(Source(**keys))) == []
