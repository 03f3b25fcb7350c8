"""Pages of a real worker that load the script of `deployer watch --browser`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.rawclient import Client
from tests.runtimekit import Workers

URL = "http://127.0.0.1:41235"
TAG = f'<script src="{URL}/reload.js" data-release="dev-42" async></script>'.encode()
APPS = """
import sys

PARTS = [b"<body>hello", b"</bo", b"dy></html>"]


def found():
    return b"found" if any(name.endswith("runtime.reload") for name in sys.modules) else b"none"


async def asgi(scope, receive, send):
    page = scope["path"] == "/"
    kind = b"text/html" if page else b"text/plain"
    headers = [(b"content-type", kind)]
    parts = PARTS if page else [found()]
    if scope["query_string"]:
        headers.append((b"content-length", b"%d" % sum(map(len, parts))))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for part in parts:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def wsgi(environ, start_response):
    page = environ["PATH_INFO"] == "/"
    headers = [("Content-Type", "text/html" if page else "text/plain")]
    parts = PARTS if page else [found()]
    if environ["QUERY_STRING"]:
        headers.append(("Content-Length", str(sum(map(len, parts)))))
    start_response("200 OK", headers)
    return iter(parts)
"""


@pytest.mark.parametrize("app", ["asgi", "wsgi"])
@pytest.mark.parametrize("query", ["", "?length"])
def test_a_page_is_whole_and_has_the_script(
    serve: Callable[..., Workers], engine: dict[str, Any], tmp_path: Path, app: str, query: str
) -> None:
    (tmp_path / "pages.py").write_text(APPS)
    env = {"DEPLOYER_RELOAD": URL}
    workers = serve(f"pages:{app}", 0, directory=tmp_path, **engine, env=env)
    workers.until_serving(workers.start("dev-42"))
    with Client(workers) as client:
        for _ in range(2):  # on the same connection: the length was right
            assert client.get(f"/{query}").body == b"<body>hello" + TAG + b"</body></html>"
            assert client.get(f"/modules{query}").body == b"found"
        client.send("/?length", "HEAD")
        assert b"content-length: 25\r\n" in client.read_until(b"\r\n\r\n").lower()


@pytest.mark.parametrize("app", ["asgi", "wsgi"])
def test_without_a_watch_the_page_is_the_applications(serve: Callable[..., Workers], tmp_path: Path, app: str) -> None:
    (tmp_path / "pages.py").write_text(APPS)
    with Client(serve(f"pages:{app}", directory=tmp_path)) as client:
        assert client.get("/").body == b"<body>hello</body></html>"
        assert client.get("/modules").body == b"none"
