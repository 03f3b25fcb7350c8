"""Keeps the credentials of URLs out of what people read."""

from __future__ import annotations

import re

_CREDENTIALS = re.compile(r"(\bhttps?://)[^\s/'\"]*@")
_PASSWORD = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s/:@'\"]*):[^\s/'\"]*@")


def mask(text: str) -> str:
    """Credentials in URLs replaced; a plain ssh user name stays, it is no secret."""
    return _PASSWORD.sub(r"\1:***@", _CREDENTIALS.sub(r"\1***@", text))
