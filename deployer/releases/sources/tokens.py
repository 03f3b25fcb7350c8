"""${VARIABLE} in a URL of deployer.toml: filled in from the environment, and masked wherever the URL is told."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

from deployer.errors import SourceError
from deployer.releases.sources.credentials import mask

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


class Secret:
    """A URL with its secrets in it, and how to keep them out of messages."""

    def __init__(self, text: str, key: str) -> None:
        self._written = text
        self._values: list[str] = []
        self.url = _VARIABLE.sub(lambda match: self._value(match[1], key), text)

    @property
    def shown(self) -> str:
        """As it was written: with the variables' names in the place of their values."""
        return mask(self._written)

    def mask(self, text: str) -> str:
        for value in sorted(self._values, key=len, reverse=True):
            text = text.replace(value, "***")
        return mask(text)

    def _value(self, name: str, key: str) -> str:
        value = os.environ.get(name)
        if not value:
            raise SourceError(
                f"`{key}` in [source] needs the variable {name}, which is not set",
                cause="the supervisor reads it from its own environment",
                hint=f"export {name}=... before `deployer up`, or set it in the service's unit",
            )
        self._values.append(value)
        return value


def is_safe(url: str) -> bool:
    """Whether nobody on the way can change what comes: https, or this machine itself."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False  # [ without ]
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))


def is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or re.fullmatch(r"127\.\d+\.\d+\.\d+", host) is not None
