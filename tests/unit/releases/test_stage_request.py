"""Requests and lines survive the pipe; wrong ones are refused."""

from __future__ import annotations

import msgspec
import pytest

from deployer.config.model import Config, Worker
from deployer.releases.request import (
    Directory,
    Git,
    StageLine,
    StageRequest,
    StageResult,
    decode_line,
    decode_request,
    encode_request,
)
from deployer.wire.schema import Problem

CONFIG = Config(name="shop", worker=Worker(command="serve {fd}", env={"A": "1"}))


@pytest.mark.parametrize(
    "source", [Directory(path=".", exclude=["*.log"]), Git(url="https://host/x.git", ref="main"), Git(url="../x")]
)
def test_a_request_is_the_same_after_the_pipe(source: Directory | Git) -> None:
    """Both kinds of source, told apart by their tag, and the configuration whole."""
    request = StageRequest(
        root="/srv/.deployer", name="v7", source=source, directory="/srv", host_config=CONFIG, parent=12
    )
    assert decode_request(encode_request(request)) == request


@pytest.mark.parametrize("name", ["7", "v0", "v01", "../v1", "v1/..", "v7\n", ""])
def test_a_name_that_is_no_release_is_refused(name: str) -> None:
    """The name becomes a path."""
    good = StageRequest(root="/r", name="v7", source=Directory(path="."), directory="/srv", host_config=CONFIG)
    data = encode_request(good).replace(b'"v7"', msgspec.json.encode(name))
    with pytest.raises(msgspec.ValidationError):
        decode_request(data)


def test_lines_are_told_apart() -> None:
    """Progress, error and result."""
    result = StageResult(
        outcome="staged",
        name="v7",
        source="path /srv",
        tree_digest="d",
        settings_digest="s",
        commit=None,
        subject=None,
        author=None,
        ref=None,
        files=1,
        bytes=2,
        config=CONFIG,
        env={"A": "1"},
        seconds=0.1,
    )
    assert decode_line(b'{"progress": "copying"}') == StageLine(progress="copying")
    assert decode_line(msgspec.json.encode({"result": result})) == StageLine(result=result)
    assert decode_line(b'{"error": {"what": "no", "exit": 6}}') == StageLine(error=Problem(what="no", exit=6))
    with pytest.raises(msgspec.DecodeError):
        decode_line(b"Traceback")
