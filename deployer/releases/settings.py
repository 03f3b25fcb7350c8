"""What differs in the settings of two releases, and what of them may be shown. Pure.

Values of the environment are secrets: they leave this module in no form.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from deployer.config.model import Config
from deployer.wire.schema import Changes

HIDDEN = "***"
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+(?=@)")


def compare_env(old: Mapping[str, str], new: Mapping[str, str]) -> Changes:
    return _compare(old, new)


def compare_config(old: Config | None, new: Config) -> Changes:
    """Dotted keys ("worker.count"); variables are told of by `compare_env`."""
    return _compare({} if old is None else _flat(old), _flat(new))


def shown(config: Config) -> dict[str, Any]:
    """The configuration without what may be secret: values of [worker] env, credentials in URLs."""
    tables: dict[str, Any] = _without_credentials(msgspec.to_builtins(config))
    tables["worker"]["env"] = dict.fromkeys(config.worker.env, HIDDEN)
    return tables


def _compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> Changes:
    return Changes(
        added=sorted(new.keys() - old.keys()),
        removed=sorted(old.keys() - new.keys()),
        changed=sorted(key for key in old.keys() & new.keys() if old[key] != new[key]),
    )


def _flat(config: Config) -> dict[str, Any]:
    return dict(_dotted(msgspec.to_builtins(config), ""))


def _dotted(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if f"{prefix}{key}" == "worker.env":
            continue
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def masked(text: str) -> str:
    """Without user and password in a URL."""
    return _CREDENTIALS.sub(HIDDEN, text)


def _without_credentials(value: Any) -> Any:
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, dict):
        return {key: _without_credentials(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_credentials(item) for item in value]
    return value
