"""What names one version of a package: "shop==1.2". The same words are the same release on every host."""

from __future__ import annotations

import re

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_PINNED = re.compile(rf"{_NAME}(?:\[[A-Za-z0-9._,-]+\])? ?== ?[A-Za-z0-9][A-Za-z0-9.!+_-]*")


def is_pinned(text: str) -> bool:
    """Whether it is NAME==VERSION, with extras or without; a range or a bare name is not."""
    return _PINNED.fullmatch(text) is not None
