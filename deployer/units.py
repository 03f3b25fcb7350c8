"""Durations ("250ms", "3s", "5m", "1h") and sizes ("512M", "2G") to numbers and back."""

from __future__ import annotations

import re

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_DURATION_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGT]?)")
_SIZE_UNIT = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


def parse_duration(text: str) -> float:
    """Seconds of a duration such as "250ms"; ValueError names the form expected."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f'{text!r} is not a duration: write "250ms", "3s", "5m" or "1h"')
    return float(match[1]) * _DURATION_UNIT_S[match[2]]


def parse_size(text: str) -> int:
    """Bytes of a size such as "512M" (powers of 1024); ValueError names the form expected."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f'{text!r} is not a size: write "512M" or "2G"')
    return int(float(match[1]) * _SIZE_UNIT[match[2]])


def format_duration(seconds: float) -> str:
    """A duration for people: 0.3s, 42s, 5m 3s, 2h 10m, 3d 4h."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60}m"
    return f"{whole // 86400}d {whole % 86400 // 3600}h"


def format_size(count: int) -> str:
    """A size for people: 512 B, 41 KB, 12 MB, 1.5 GB."""
    if count < 1024:
        return f"{count} B"
    value = float(count)
    unit = "B"
    for unit in ("KB", "MB", "GB", "TB"):  # noqa: B007  # the unit it stops at is the result
        value /= 1024
        if value < 1024:
            break
    return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
