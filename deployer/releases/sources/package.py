"""`package = "shop==1.2"`: a wheel and what it needs, from an index, installed into the release.

By `pip install --target` with the Python that deployer runs on. Wheels only: building a source distribution would run
code of strangers on the server. pip is given the index by its environment, so that a token is in no process list.
"""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import msgspec

from deployer.config.package import is_pinned
from deployer.errors import SourceError
from deployer.releases.packaged import MARK
from deployer.releases.process import die_with_parent
from deployer.releases.request import Package
from deployer.releases.sources.base import Origin, Progress, shown
from deployer.releases.sources.tokens import Secret, is_safe
from deployer.releases.sources.writer import Read, TreeWriter

TIMEOUT_S = 900.0  # the 15 minutes of every transfer


def install(source: Package, aside: Path, writer: TreeWriter, progress: Progress) -> Origin:
    """Fill the empty tree of `writer`; pip works in `aside`, which is removed. Raises SourceError, and OSError."""
    requirement = source.requirement.replace(" ", "")
    if not is_pinned(requirement):
        raise SourceError(f"{source.requirement!r} is not NAME==VERSION", hint="deployer deploy shop==1.2")
    index = Secret(source.index_url, "index_url") if source.index_url is not None else None
    if index is not None and not (is_safe(index.url) or index.url.startswith("file://")):
        raise SourceError(
            f"will not install from {index.shown}",
            cause="on http:// anybody on the way could change the package or read the token",
            hint='use index_url = "https://..."',
        )
    place = f" from {index.shown}" if index is not None else ""
    progress(f"installing {requirement}{place}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        _pip(requirement, index, aside)
        _take(aside, "", writer)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    data = msgspec.json.encode({"package": requirement})
    writer.file(MARK, False, 0, len(data), io.BytesIO(data).read)
    return Origin(description=f"package {requirement}{place}")


def _pip(requirement: str, index: Secret | None, aside: Path) -> None:
    if importlib.util.find_spec("pip") is None:
        raise SourceError(
            "pip is not installed beside deployer",
            cause=f"{sys.executable} has no module pip",
            hint=f"{sys.executable} -m ensurepip",
        )
    command = [sys.executable, "-P", "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-compile", "--only-binary=:all:", "--target", str(aside), "--", requirement]
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PIP_TARGET", "PIP_PREFIX")}
    if index is not None:
        env |= {"PIP_INDEX_URL": index.url, "PIP_EXTRA_INDEX_URL": ""}  # one index: no public name can step in
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=env,
        preexec_fn=die_with_parent,
    )
    try:
        output, _ = child.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise SourceError(f"cannot install {requirement}", cause=f"pip was not done after {TIMEOUT_S:g} s") from None
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
    if child.returncode != 0:
        text = output.decode("utf-8", "replace")
        raise _failed(requirement, index.mask(text) if index is not None else text, index)


def _failed(requirement: str, output: str, index: Secret | None) -> SourceError:
    errors = [line.removeprefix("ERROR:").strip() for line in output.splitlines() if line.startswith("ERROR:")]
    told = errors or [line for line in output.splitlines() if line.strip()] or ["pip gave no reason"]
    if "No space left on device" in output:
        raise OSError(28, os.strerror(28), "pip")
    name = requirement.partition("==")[0]
    where = f" --index-url {index.shown}" if index is not None else ""
    return SourceError(
        f"cannot install {requirement} (wheels only)",
        cause="\n".join(told[:3]),
        hint=f"pip index versions {name}{where}",
    )


def _take(directory: Path, prefix: str, writer: TreeWriter) -> None:
    with os.scandir(directory) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        path = f"{prefix}{entry.name}"
        if entry.is_symlink():
            raise SourceError(f"the package holds a link: {shown(path)}")  # no wheel can
        if entry.is_dir():
            writer.directory(path)
            _take(Path(entry.path), f"{path}/", writer)
            continue
        found = entry.stat(follow_symlinks=False)
        if stat.S_ISREG(found.st_mode):
            with open(entry.path, "rb", buffering=0) as file:
                writer.file(path, bool(found.st_mode & 0o100), found.st_mtime, found.st_size, _reader(file.fileno()))


def _reader(fd: int) -> Read:
    return lambda count: os.read(fd, count)
