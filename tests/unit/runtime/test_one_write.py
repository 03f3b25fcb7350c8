"""uvicorn's protocols on a transport that holds back the head of an answer: what is written when, in how many parts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from deployer.runtime.connections import be_gentle, http_class, untaken
from deployer.runtime.counting import Counting
from deployer.runtime.transport import JOINED_MAX, Transport

GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
CLOSING = b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
LENGTH = (b"content-length", b"5")


class Loops:
    """The transport of an event loop, as far as uvicorn knows it."""

    def __init__(self) -> None:
        self.writes: list[Any] = []
        self.closed = False

    def write(self, data: Any) -> None:
        assert not self.closed
        if data:
            self.writes.append(data)

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def get_write_buffer_size(self) -> int:
        return 0

    def can_write_eof(self) -> bool:
        return False

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading


class Visit:
    """One connection to an application."""

    def __init__(self, base: Any, app: Any) -> None:
        counting = Counting()
        counting.serve(app, lambda inner: inner, None)
        config = uvicorn.Config(counting, interface="asgi3", proxy_headers=False, log_config=None)
        config.load()
        self.connection = http_class(base, lambda: None)(config=config, server_state=ServerState(), app_state={})
        self.connection.accepted = None
        self.loops = Loops()
        self.connection.connection_made(self.loops)

    async def until_idle(self) -> None:
        """All that is due has had its turn; the keep-alive's timer is left."""
        for _ in range(10):
            await asyncio.sleep(0)
        self.connection._unset_keepalive_if_required()


def answers(*parts: bytes, headers: Any = (LENGTH,), status: int = 200) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": list(headers)})
        for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": part is not parts[-1]})

    return app


@pytest.fixture(params=[HttpToolsProtocol, H11Protocol])
def base(request: pytest.FixtureRequest) -> Any:
    return request.param


def visit(base: Any, app: Any, act: Callable[[Visit], Awaitable[None]]) -> list[Any]:
    """What was written."""

    async def run() -> list[Any]:
        one = Visit(base, app)
        await act(one)
        return one.loops.writes

    return asyncio.run(run())


def asks(request: bytes) -> Callable[[Visit], Awaitable[None]]:
    async def act(one: Visit) -> None:
        one.connection.data_received(request)
        await one.until_idle()

    return act


def test_a_small_answer_is_one_write(base: Any) -> None:
    (only,) = visit(base, answers(b"hello"), asks(GET))
    assert only.startswith(b"HTTP/1.1 200 OK\r\n")
    assert only.endswith(b"\r\n\r\nhello")


def test_so_is_one_that_is_the_last_and_the_connection_is_closed_after_it(base: Any) -> None:
    async def act(one: Visit) -> None:
        await asks(CLOSING)(one)
        assert one.loops.closed

    (only,) = visit(base, answers(b"hello"), act)
    assert b"connection: close\r\n" in only.lower()
    assert only.endswith(b"\r\n\r\nhello")


def test_each_of_pipelined_requests_has_its_own(base: Any) -> None:
    one, two, three = visit(base, answers(b"hello"), asks(GET * 3))
    assert all(answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"hello") for answer in (one, two, three))


def test_the_first_of_many_parts_comes_with_the_head(base: Any) -> None:
    first, *rest = visit(base, answers(b"hel", b"lo"), asks(GET))
    assert first.endswith(b"\r\n\r\nhel")
    assert rest == [b"lo"]


def test_a_part_without_a_length_comes_with_the_head_too(base: Any) -> None:
    written = visit(base, answers(b"hello", headers=()), asks(GET))
    assert b"\r\n\r\n5\r\nhello\r\n" in written[0]
    assert b"".join(written).endswith(b"hello\r\n0\r\n\r\n")


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_without_a_body(base: Any, status: int) -> None:
    (only,) = visit(base, answers(b"", headers=(), status=status), asks(GET))
    assert only.endswith(b"\r\n\r\n")


def test_to_head_there_is_only_a_head_and_it_comes_before_the_end(base: Any) -> None:
    (only,) = visit(base, answers(b"hello"), asks(CLOSING.replace(b"GET", b"HEAD")))
    assert only.endswith(b"\r\n\r\n")


def test_a_head_does_not_wait_for_an_application_that_does(base: Any) -> None:
    """An event stream says so at once, and its first event whenever there is one."""
    event = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [LENGTH]})
        await event.wait()
        await send({"type": "http.response.body", "body": b"hello"})

    async def act(one: Visit) -> None:
        one.connection.data_received(GET)
        await asyncio.sleep(0)  # the application has begun
        assert one.loops.writes == []
        assert untaken(one.connection) > 0
        await asyncio.sleep(0)
        (head,) = one.loops.writes
        assert head.endswith(b"\r\n\r\n")
        assert untaken(one.connection) == 0
        event.set()
        await one.until_idle()
        assert one.loops.writes == [head, b"hello"]

    visit(base, app, act)


def test_100_continue_is_not_held_back(base: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await answers(b"hello")(scope, receive, send)

    async def act(one: Visit) -> None:
        head = b"POST / HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
        one.connection.data_received(head)
        await asyncio.sleep(0)
        (only,) = one.loops.writes
        assert only.startswith(b"HTTP/1.1 100")
        one.connection.data_received(b"hi")
        await one.until_idle()

    _, answer = visit(base, app, act)
    assert answer.endswith(b"\r\n\r\nhello")


def test_a_large_part_is_not_copied(base: Any) -> None:
    part = b"x" * (JOINED_MAX + 1)
    length = (b"content-length", str(len(part)).encode())
    head, body = visit(base, answers(part, headers=[length]), asks(GET))
    assert head.endswith(b"\r\n\r\n")
    assert body == part


def test_what_was_answered_goes_before_the_connection_ends() -> None:
    """A client that has closed its half, a close of ours, and one in a drain."""

    async def ends(end: Callable[[Visit], object]) -> None:
        one = Visit(HttpToolsProtocol, answers(b"hello"))
        one.connection.data_received(GET.replace(b"GET", b"HEAD"))
        await asyncio.sleep(0)
        assert one.loops.writes == []
        end(one)
        (head,) = one.loops.writes
        assert head.endswith(b"\r\n\r\n")
        await one.until_idle()
        assert one.loops.writes == [head]

    def gently(one: Visit) -> None:
        be_gentle(one.connection)
        one.connection.transport.close()

    async def run() -> None:
        await ends(lambda one: one.connection.eof_received())
        await ends(lambda one: one.connection.transport.close())
        await ends(gently)

    asyncio.run(run())


def test_to_a_client_that_is_gone_nothing_is_written() -> None:
    async def act(one: Visit) -> None:
        one.connection.data_received(GET.replace(b"GET", b"HEAD"))
        await asyncio.sleep(0)
        one.connection.transport.abort()
        await one.until_idle()

    assert visit(HttpToolsProtocol, answers(b"hello"), act) == []


def test_a_head_that_could_not_be_made_leaves_nothing_held() -> None:
    async def run() -> None:
        loops = Loops()
        transport = Transport(loops, asyncio.get_running_loop(), None)  # type: ignore[arg-type]
        transport.hold()
        transport.close()
        assert (loops.writes, loops.closed) == ([], True)

    asyncio.run(run())
