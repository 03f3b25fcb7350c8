"""What becomes of an answer on its way to a page that refreshes itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployer.runtime.reload import TAIL, Page, Reload, allowing

URL = "http://127.0.0.1:41235"
TAG = b'<script src="http://127.0.0.1:41235/reload.js" data-release="dev-42" async></script>'
HTML = b"<html><body><p>hello</p></body></html>"
WITH_TAG = b"<html><body><p>hello</p>" + TAG + b"</body></html>"
Pairs = Sequence[tuple[bytes, bytes]]


class Answer:
    def __init__(self, messages: list[Any]) -> None:
        self.messages = messages
        self.headers = dict(messages[0]["headers"])
        self.parts = [message["body"] for message in messages[1:]]
        self.body = b"".join(self.parts)


def answer(
    *parts: bytes,
    headers: Pairs = (),
    kind: bytes = b"text/html; charset=utf-8",
    status: int = 200,
    method: str = "GET",
    request: Pairs = (),
    seen: Callable[[Any], None] = lambda scope: None,
) -> Answer:
    """What a client gets of an application that answers in `parts`."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen(scope)
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind), *headers]})
        for part in parts[:-1]:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": parts[-1]})

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "headers": list(request)}
    asyncio.run(Reload(app, URL, "dev-42")(scope, None, send))
    return Answer(sent)


def length(body: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"content-length", b"%d" % len(body))]


def test_a_page_loads_the_script_at_its_end() -> None:
    found = answer(HTML, headers=length(HTML))
    assert found.body == WITH_TAG
    assert found.headers[b"content-length"] == b"%d" % len(WITH_TAG)


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        (b"<body>x</BoDy>", b"<body>x" + TAG + b"</BoDy>"),
        (b"a</body>b</body>c", b"a</body>b" + TAG + b"</body>c"),  # one in a text, say: the last it is
        (b"no end, </bod", b"no end, </bod" + TAG),
        (b"", TAG),
        (b"</body>" + b"x" * TAIL, b"</body>" + b"x" * TAIL + TAG),
    ],
)
def test_where_the_end_of_a_page_is(page: bytes, expected: bytes) -> None:
    assert answer(page).body == expected


def test_an_error_page_too_is_refreshed_once_the_fix_is_live() -> None:
    assert answer(HTML, status=500).body == WITH_TAG


def test_a_stream_goes_on_its_way_as_it_comes() -> None:
    """Only what may be the end of the page is held back."""
    found = answer(b"<body>", b"one <", b"b>two</b", b">", b"</bo", b"dy></html>", b"")
    assert found.parts == [b"<body>", b"one ", b"<b>two", b"</b>", TAG + b"</body></html>"]
    assert [message.get("more_body", False) for message in found.messages[1:]] == [True] * 4 + [False]


def test_no_more_than_a_bounded_end_of_a_stream_is_held_back() -> None:
    page = Page(TAG)
    passed = page.feed(b"<body></body>")
    most = 0
    for number in range(1, 3 * TAIL):
        passed += page.feed(b"x")
        most = max(most, len(b"<body></body>") + number - len(passed))
    assert most == TAIL
    assert passed + page.end(b"") == b"<body></body>" + b"x" * (3 * TAIL - 1) + TAG


BITS = st.sampled_from(
    [
        b"</body>",
        b"</BODY>",
        b"</bo",
        b"dy>",
        b"<",
        b"/",
        b"</",
        b"</html>",
        b"text",
        b" ",
        b"x" * (TAIL - 7),
        b"y" * 500,
    ]
)


@given(st.lists(BITS, max_size=12), st.data())
def test_the_result_is_the_same_however_the_page_is_cut(bits: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(bits)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=30)))
    parts = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    expected = Page(TAG).end(whole)
    assert expected.replace(TAG, b"", 1) == whole
    page = Page(TAG)
    assert b"".join(map(page.feed, parts)) + page.end(b"") == expected
    page = Page(TAG)
    assert b"".join(map(page.feed, parts[:-1])) + page.end(parts[-1]) == expected


@pytest.mark.parametrize(
    "how",
    [
        {"kind": b"application/json"},
        {"kind": b"text/html-like"},
        {"kind": b"text/html; charset=UTF-16"},
        {"kind": b"text/event-stream"},
        {"status": 204},
        {"status": 206, "headers": [(b"content-range", b"bytes 0-9/100")]},
        {"status": 304, "headers": [(b"etag", b'"1"')]},
        {"method": "HEAD", "headers": [(b"content-length", b"999")]},
        {"headers": [(b"content-encoding", b"gzip")]},
        {"headers": [(b"content-disposition", b'attachment; filename="a.html"')]},
        {"headers": [(b"content-security-policy", b"script-src 'strict-dynamic' 'nonce-abc'")]},
        {"request": [(b"sec-fetch-dest", b"empty")]},  # a fragment that a script has asked for
    ],
)
def test_what_is_no_page_to_refresh_is_left_alone(how: dict[str, Any]) -> None:
    found = answer(b"one </body", b"> two", b"", **how)
    assert found.parts == [b"one </body", b"> two", b""]
    assert list(found.headers.items())[1:] == how.get("headers", [])


def test_the_page_with_the_script_is_not_what_its_validators_stand_for() -> None:
    """Or a browser would be told 304 and show the page that it has, which is of an old release."""
    found = answer(HTML, headers=[(b"ETag", b'"1"'), (b"last-modified", b"now"), (b"x-own", b"1")])
    assert list(found.headers) == [b"content-type", b"x-own"]


def test_an_application_that_compresses_is_not_asked_to_for_a_page() -> None:
    scopes: list[Any] = []
    encoding = (b"accept-encoding", b"gzip")
    page = [(b"accept", b"text/html,*/*;q=0.8"), encoding, (b"cookie", b"a=b")]
    answer(HTML, request=page, seen=scopes.append)
    answer(b"{}", kind=b"application/json", request=[(b"accept", b"*/*"), encoding], seen=scopes.append)
    assert [encoding in scope["headers"] for scope in scopes] == [False, True]
    assert scopes[0]["headers"] == [page[0], page[2]]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (b"", b""),
        (b"img-src 'self'", b"img-src 'self'"),
        (b"script-src 'self'", b"script-src 'self' ORIGIN"),
        (b"Script-Src 'NONE'; connect-src 'none';", b"script-src ORIGIN; connect-src ORIGIN"),
        (
            b"default-src 'self'; img-src *",
            b"default-src 'self'; img-src *; script-src 'self' ORIGIN; connect-src 'self' ORIGIN",
        ),
        (
            b"script-src-elem 'nonce-a'; script-src 'self'; connect-src x.example",
            b"script-src-elem 'nonce-a' ORIGIN; script-src 'self'; connect-src x.example ORIGIN",
        ),
        (b"script-src a; script-src b", b"script-src a ORIGIN"),
        (b"connect-src 'self'; script-src 'Strict-Dynamic' 'nonce-a'", None),
        (b"default-src 'strict-dynamic'", None),
    ],
)
def test_a_content_security_policy_allows_the_script_and_nothing_else(policy: bytes, expected: bytes | None) -> None:
    assert allowing(policy, b"ORIGIN") == expected


def test_each_policy_of_an_answer_must_allow_the_script() -> None:
    policies = (b"content-security-policy", b"default-src 'self', script-src 'none'")
    found = answer(HTML, headers=[policies, (b"content-security-policy-report-only", b"script-src 'none'")])
    assert found.body == WITH_TAG
    origin = URL.encode()
    assert found.headers[b"content-security-policy"] == (
        b"default-src 'self'; script-src 'self' %b; connect-src 'self' %b, script-src %b" % (origin, origin, origin)
    )
    assert found.headers[b"content-security-policy-report-only"] == b"script-src 'none'"


def test_websockets_and_the_lifespan_pass() -> None:
    scopes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append((scope, receive, send))

    async def nothing(_: Any = None) -> None:
        raise AssertionError

    around = Reload(app, URL, "dev-42")
    for kind in ("websocket", "lifespan"):
        scope = {"type": kind}
        asyncio.run(around(scope, nothing, nothing))
        assert scopes.pop() == (scope, nothing, nothing)


def test_what_a_wsgi_application_has_moved_is_still_seen() -> None:
    class Wsgi:
        moved = 7

    assert Reload(Wsgi(), URL, "dev-42").moved == 7
    assert Reload(object(), URL, "dev-42").moved == 0
