"""What must agree in [source]: one place that a release comes from, and only the keys that go with it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from deployer.config.model import Source
from deployer.config.package import is_pinned
from deployer.config.problem import Problem

KINDS = ("path", "git", "artifact", "package")
GOES_WITH = {"ref": "git", "sha256": "artifact", "index_url": "package"}

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_EXAMPLES = {
    "ref": 'add git = "URL or path", or remove `ref`',
    "sha256": 'add artifact = "FILE or https://URL", or remove `sha256`',
    "index_url": 'add package = "shop==1.2", or remove `index_url`',
}


def source_problems(source: Source) -> Iterator[Problem]:
    given = [kind for kind in KINDS if getattr(source, kind) is not None]
    if len(given) > 1:
        text = f"`{given[0]}` and `{given[1]}` in [source] exclude each other"
        yield Problem(("source", given[1]), text, "keep one of them")
    for key, kind in GOES_WITH.items():
        if getattr(source, key) is not None and getattr(source, kind) is None:
            yield Problem(("source", key), f"`{key}` in [source] needs `{kind}`", _EXAMPLES[key])
    if source.ref is not None and source.ref.startswith("-"):
        yield Problem(("source", "ref"), f'`ref` in [source]: "{source.ref}" starts with "-"', "name a branch or tag")
    yield from _artifact(source)
    if source.package is not None and not is_pinned(source.package):
        text = f'`package` in [source]: "{source.package}" is not one version'
        yield Problem(("source", "package"), text, 'for example package = "shop==1.2"')


def _artifact(source: Source) -> Iterator[Problem]:
    if source.sha256 is not None and _SHA256.fullmatch(source.sha256) is None:
        text = f'`sha256` in [source]: "{source.sha256[:70]}" is not 64 hexadecimal digits'
        yield Problem(("source", "sha256"), text, "`deployer pack` and `sha256sum FILE` print them")
    if source.artifact is None or "://" not in source.artifact:
        return
    if not source.artifact.startswith(("https://", "http://")):
        text = "`artifact` in [source]: only https:// is fetched"
        yield Problem(("source", "artifact"), text, "use an https:// address, or a path")
    elif source.sha256 is None:
        text = "`artifact` in [source]: what comes from a URL needs `sha256`"
        yield Problem(("source", "artifact"), text, "`deployer pack` prints it: add sha256 = ...")
