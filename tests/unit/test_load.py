"""The load generator sees every loss and invents none: servers here misbehave on purpose."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from tests import load as load_module
from tests.load import REPO, BrokenAnswerError, Load, LoadProcess, LoadReport, LoadThread, parse_answer, percentile

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Release: v1\r\nX-Worker: 2\r\nX-Pid: 77\r\n\r\nok"
CLOSING = WHOLE.replace(b"X-Pid", b"Connection: close\r\nX-Pid")


async def request_of(reader: asyncio.StreamReader) -> bytes:
    """One request head, or b"" when the client has gone."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""


async def serve_well(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while request := await request_of(reader):
        closing = b"Connection: close" in request
        writer.write(CLOSING if closing else WHOLE)
        if closing:
            return


def answering(answer: bytes, *, reset: bool = False) -> Handler:
    """Answer every request with these bytes, then end the connection."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await request_of(reader):
            writer.write(answer)
            await writer.drain()
        if reset:
            linger = struct.pack("ii", 1, 0)  # close sends RST, whatever was sent before stays in the peer's queue
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    return handle


@contextlib.asynccontextmanager
async def server(handler: Handler) -> AsyncIterator[str]:
    async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    listening = await asyncio.start_server(guarded, "127.0.0.1", 0)
    async with listening:
        yield f"tcp://127.0.0.1:{listening.sockets[0].getsockname()[1]}"


def run(handler: Handler, *, wanted: int = 20, **clients: int | float | str) -> LoadReport:
    """The report on clients that made `wanted` requests of such a server."""

    async def main() -> LoadReport:
        async with server(handler) as address:
            options = {"keepalive": 0, "fresh": 0, "slow": 0, "think_s": 0.001} | clients
            async with Load(address, **options) as load:  # type: ignore[arg-type]
                async with asyncio.timeout(10):
                    while load.report().requests < wanted:
                        await asyncio.sleep(0.005)
            return load.report()

    return asyncio.run(main())


def test_a_good_server_loses_nothing() -> None:
    """Every kind of client, whole answers: no loss, no error, and the worker is recognised."""
    report = run(serve_well, wanted=200, keepalive=3, fresh=3, slow=1, slow_keepalive=1, idle=1)
    assert report.lost == 0, report
    assert report.errors == 0
    assert {kind for kind, tally in report.by_kind.items() if tally.requests} == {
        "keepalive", "fresh", "slow", "slow_keepalive", "idle",
    }  # fmt: skip
    (seen,) = report.releases_seen
    assert (seen.release, seen.worker, seen.pid, seen.requests) == ("v1", "2", "77", report.requests)
    assert report.started_at <= seen.first <= seen.last
    assert 0 < report.p50_s <= report.p99_s <= report.max_s


def test_a_reset_in_the_body_is_lost() -> None:
    """Half a body, then RST."""
    half = WHOLE.replace(b"Length: 2", b"Length: 200")
    report = run(answering(half, reset=True), keepalive=2, fresh=2)
    assert report.lost == report.requests > 0
    assert {loss.what for loss in report.losses} <= {"ECONNRESET", load_module.CLOSED_EARLY}
    assert report.lost_keepalive_race == 0


@pytest.mark.parametrize("kind", ["keepalive", "fresh"])
def test_a_close_without_an_answer_is_lost(kind: str) -> None:
    """On a new connection it is a plain loss, never a keep-alive race."""
    report = run(answering(b""), **{kind: 2})
    assert report.lost == report.requests > 0
    assert report.lost_keepalive_race == 0
    loss = report.losses[0]
    assert loss.kind == kind
    assert loss.what == load_module.CLOSED_EARLY
    assert (loss.sent > 0, loss.received, loss.at > 0) == (True, 0, True)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\n\r\nno length",
        b"not http at all\r\n\r\n",
        WHOLE + b"too much",
    ],
)
def test_an_answer_that_is_not_whole_is_lost(answer: bytes) -> None:
    """Truncated chunks, a short body, half a head, no length, rubbish, bytes too many."""
    report = run(answering(answer), fresh=2)
    assert report.lost == report.requests > 0
    assert report.losses[0].received == len(answer)


def test_refused_connections_are_lost_and_do_not_spin() -> None:
    """Nobody listens: each try is a loss, at a bounded rate."""

    async def main() -> LoadReport:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
            async with Load(address, keepalive=1, fresh=1, slow=0) as load:
                await asyncio.sleep(0.2)
            return load.report()

    began = time.monotonic()
    report = asyncio.run(main())
    spent = time.monotonic() - began
    assert 2 <= report.lost == report.requests <= 2 * (1 + spent / load_module.AFTER_LOSS_PAUSE_S)
    assert {loss.what for loss in report.losses} == {"cannot connect: ECONNREFUSED"}


def test_a_missing_unix_socket_is_lost(tmp_path: Path) -> None:
    """A socket file that was unlinked refuses visitors as surely as a closed port."""

    async def main() -> LoadReport:
        async with Load(f"unix:{tmp_path}/gone.sock", keepalive=0, fresh=1, slow=0) as load:
            await asyncio.sleep(0.02)
        return load.report()

    report = asyncio.run(main())
    assert report.lost == report.requests > 0
    assert {loss.what for loss in report.losses} == {"cannot connect: ENOENT"}


def test_a_full_unix_queue_is_waited_for(tmp_path: Path) -> None:
    """EAGAIN of a full accept queue is a wait, as it is for TCP; then the request is answered."""

    async def main() -> LoadReport:
        path = str(tmp_path / "full.sock")
        with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as plug:
            listening.bind(path)
            listening.listen(0)
            plug.connect(path)  # the queue of 0 + 1 is full now
            async with Load(f"unix:{path}", keepalive=0, fresh=2, slow=0) as load:
                await asyncio.sleep(0.05)
                assert load.answered == 0
                listening.setblocking(False)
                async with await asyncio.start_unix_server(_closing(serve_well), sock=listening) as accepting:
                    await load.more(20)
                    await load.stop()
                    plug.close()
                    accepting.close()
                    async with asyncio.timeout(5):
                        while len(asyncio.all_tasks()) > 1:
                            await asyncio.sleep(0.005)
            return load.report()

    report = asyncio.run(main())
    assert report.lost == 0, report


def _closing(handler: Handler) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await handler(reader, writer)
        writer.close()

    return handle


def test_a_close_that_was_announced_is_honoured() -> None:
    """`Connection: close` on every answer: keep-alive clients connect anew and lose nothing."""
    report = run(answering(CLOSING), wanted=60, keepalive=3, fresh=1)
    assert report.lost == 0, report
    assert report.idle_closes == 0


def test_a_close_while_idle_loses_nothing() -> None:
    """The server closes after each answer without a word; the client sees it before it sends again."""
    report = run(answering(WHOLE), keepalive=2, wanted=20, think_s=0.05)
    assert report.lost - report.lost_keepalive_race == 0, report
    assert report.idle_closes > 0


def test_the_keepalive_race_has_its_own_label() -> None:
    """The second request on a connection is met by its close: lost, and known as the classical race."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(WHOLE)
        await request_of(reader)

    report = run(handle, keepalive=2)
    assert report.lost == report.lost_keepalive_race > 0
    assert report.losses[0].pid == "77"


def test_half_an_answer_on_a_reused_connection_is_no_race() -> None:
    """Once a byte of the answer came, nothing excuses the server."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(WHOLE)
        await request_of(reader)
        writer.write(WHOLE[:20])

    report = run(handle, keepalive=2)
    assert report.lost > 0
    assert report.lost_keepalive_race == 0


def test_an_answer_that_never_comes_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request is given up after its time, and the loss says so."""
    monkeypatch.setattr(load_module, "REQUEST_TIMEOUT_S", 0.05)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await request_of(reader):
            pass

    report = run(silent, wanted=4, keepalive=2)
    assert report.lost == report.requests
    assert {loss.what for loss in report.losses} == {"no whole answer in time"}


def test_errors_are_answers() -> None:
    """A whole 503 is not lost; it is counted apart."""
    report = run(answering(CLOSING.replace(b"200 OK", b"503 No")), fresh=2)
    assert report.lost == 0
    assert report.errors == report.requests > 0


def test_stopping_waits_for_the_answers_under_way() -> None:
    """A request in flight when the load ends is still answered, and counted."""

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await request_of(reader):
            await asyncio.sleep(0.2)
            writer.write(WHOLE)

    async def main() -> LoadReport:
        async with server(late) as address, Load(address, keepalive=4, fresh=0, slow=0) as load:
            while load.report().requests < 4:
                await asyncio.sleep(0.001)
            await load.stop()
            return load.report()

    report = asyncio.run(main())
    assert (report.requests, report.lost) == (4, 0)
    assert load_answered(report) == 4


def load_answered(report: LoadReport) -> int:
    return sum(sum(tally.releases.values()) for tally in report.by_kind.values())


def test_steps_have_counts_of_their_own() -> None:
    """mark() begins a step; the sum of the steps is the whole."""

    async def main() -> LoadReport:
        async with server(serve_well) as address, Load(address, keepalive=2, fresh=0, slow=0) as load:
            load.mark("before")
            await load.more(20)
            load.mark("during")
            await load.more(30)
            await load.stop()
            return load.report()

    report = asyncio.run(main())
    assert set(report.by_step) >= {"before", "during"}
    assert report.by_step["before"].requests >= 20
    assert report.by_step["during"].requests >= 30 - 2  # 2 may have been under way
    assert sum(tally.requests for tally in report.by_step.values()) == report.requests
    assert report.by_step["during"].releases == {"v1": report.by_step["during"].requests}


def test_more_gives_up_in_time() -> None:
    """Waiting for answers that do not come ends with an error that says what did."""

    async def main() -> None:
        async with Load("tcp://127.0.0.1:1", keepalive=0, fresh=1, slow=0) as load:
            with pytest.raises(TimeoutError, match="0 of 5 answers"):
                await load.more(5, timeout_s=0.05)

    asyncio.run(main())


@contextlib.contextmanager
def server_process() -> Iterator[str]:
    """A good server in a process of its own, for the synchronous drivers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        listening.set_inheritable(True)
        program = SERVE_WELL.format(fd=listening.fileno(), answer=WHOLE, closing=CLOSING)
        process = subprocess.Popen([sys.executable, "-c", program], pass_fds=[listening.fileno()])
        try:
            yield f"tcp://127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait()


SERVE_WELL = """
import asyncio, socket
async def serve(reader, writer):
    try:
        while request := await reader.readuntil(b"\\r\\n\\r\\n"):
            closing = b"Connection: close" in request
            writer.write({closing!r} if closing else {answer!r})
            if closing:
                break
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    writer.close()
async def main():
    async with await asyncio.start_server(serve, sock=socket.socket(fileno={fd})) as server:
        await server.serve_forever()
asyncio.run(main())
"""


def test_the_thread_reports_the_same_way() -> None:
    """Synchronous tests get marks, a bounded wait and the report, during the load and after it."""
    with server_process() as address:
        with LoadThread(address, keepalive=2, fresh=1, slow=0) as load:
            load.mark("first")
            load.more(20)
            assert load.report().by_step["first"].requests >= 20 - 3  # 3 may have been under way
        report = load.report()
    assert report.lost == 0, report
    assert load.stop() == report


def test_the_process_reports_the_same_way() -> None:
    """Marks and reports cross the pipes; the report comes back as it was made."""
    with server_process() as address:
        with LoadProcess(address, keepalive=2, fresh=1, slow=0) as load:
            load.mark("a step")
            load.more(20)
        report = load.report()
    assert report.lost == 0, report
    assert report.by_step["a step"].requests >= 20 - 3
    assert LoadReport.from_json(report.to_json()) == report


def test_the_command_prints_json() -> None:
    """`python -m tests.load` for a demo or a bench: one JSON object, exit 0 when nothing was lost."""
    with server_process() as address:
        command = [
            sys.executable,
            "-m",
            "tests.load",
            "--address",
            address,
            "--seconds",
            "0.3",
            "--json",
            "--slow",
            "0",
        ]
        done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=30, check=True)
    assert json.loads(done.stdout)["lost"] == 0


def test_chunks_come_in_pieces() -> None:
    """Only the last byte makes a chunked answer whole, wherever it is cut."""
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=1\r\nhello\r\n1\r\n!\r\n0\r\n\r\n"
    assert [parse_answer(answer[:cut]) for cut in range(len(answer))] == [None] * len(answer)
    whole = parse_answer(answer + b"rest")
    assert whole is not None
    assert (whole.body, whole.size) == (b"hello!", len(answer))


def test_bad_chunks_are_refused() -> None:
    """A chunk that lies about its size is not an answer."""
    for body in (b"zz\r\n", b"2\r\nhello\r\n"):
        with pytest.raises(BrokenAnswerError):
            parse_answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body)


def test_http_1_0_closes_unless_it_says_otherwise() -> None:
    """An old server's answer ends its connection."""
    old = parse_answer(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert old is not None
    assert old.closes


def test_percentiles() -> None:
    """Of nothing 0, of one value that value."""
    assert percentile([], 0.99) == 0.0
    assert percentile([3.0], 0.5) == 3.0
    assert percentile([float(n) for n in range(100)], 0.99) == 99.0
