"""More odd habits: uploads, idling, HTTP's corners, websockets, and those who do not read."""

from __future__ import annotations

import base64
import os
import time

from habits import BIG, DEAF_HABITS, HABITS, LATE_HABITS, MB, WEBSOCKET_HABITS, Visit, expect, get, last

from tests.rawclient import Client

# Uploads


def continues(visit: Visit, size: int, *, before: bool) -> None:
    client = visit.client()
    if not before:
        visit.drain()
    client.send("/upload", "POST", f"Content-Length: {size}", "Expect: 100-continue")
    assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
    if before:
        client.sock.sendall(b"x" * (size // 2))
        visit.drain()
        client.sock.sendall(b"x" * (size - size // 2))
    else:
        client.sock.sendall(b"x" * size)
    last(client, str(size).encode())


@HABITS.append
def waits_for_100_continue(visit: Visit) -> None:
    continues(visit, 5, before=False)


@HABITS.append
def waits_for_100_continue_across_the_drain(visit: Visit) -> None:
    continues(visit, 6, before=True)


@HABITS.append
def waits_for_100_continue_with_10_mb(visit: Visit) -> None:
    continues(visit, 10 * MB, before=False)


@HABITS.append
def waits_for_100_continue_with_10_mb_across_the_drain(visit: Visit) -> None:
    continues(visit, 10 * MB, before=True)


@HABITS.append
def does_not_wait_for_the_100_that_it_asked_for(visit: Visit) -> None:
    client = visit.client()
    client.sock.sendall(get("/upload", "Content-Length: 5", "Expect: 100-continue", method="POST") + b"12345")
    visit.drain()
    answer = client.answer()
    expect(answer, b"5")


@HABITS.append
def is_told_417_or_413_instead_of_100(visit: Visit) -> None:
    client = visit.client()
    visit.drain()
    client.send("/refuse", "POST", "Content-Length: 10000000", "Expect: 100-continue")
    answer = client.answer()
    assert (answer.status, answer.closes) == (413, True)
    client.half_close()
    assert client.ends()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@HABITS.append
def uploads_in_chunks(visit: Visit) -> None:
    client = visit.client()
    client.send("/upload", "POST", "Transfer-Encoding: chunked", body=chunk(b"x" * 70_000) + b"111")
    visit.drain()
    client.sock.sendall(b"70\r\n" + b"x" * 0x11170 + b"\r\n")
    client.sock.sendall(b"".join(chunk(b"y" * 7) for _ in range(1000)) + b"0\r\n")
    time.sleep(0.2)
    client.sock.sendall(b"\r\n")
    last(client, str(70_000 + 0x11170 + 7000).encode())


@HABITS.append
def uploads_what_nobody_reads(visit: Visit) -> None:
    """The answer is there before the upload is."""
    client = visit.client()
    visit.drain()
    client.send("/", "POST", f"Content-Length: {BIG}", body=b"x" * BIG)
    last(client, b"hello")


# Idle


@HABITS.append
def is_idle_for_four_seconds(visit: Visit) -> None:
    client = visit.client()
    expect(client.get("/"), b"hello", closes=False)
    visit.drain()
    time.sleep(4)
    client.send("/slow?s=0.2")
    last(client, b"slow")


@HABITS.append
def is_silent_at_first(visit: Visit) -> None:
    client = visit.client()
    visit.drain()
    time.sleep(2)
    client.send("/")
    last(client, b"hello")


@LATE_HABITS.append
def asks_again_at_once_after_a_long_answer(visit: Visit) -> None:
    """It ends after the linger time, and did not say that it was the last."""
    client = visit.client()
    client.send(f"/drip?s={visit.after_linger}")
    client.read_until(b"\r\n\r\n")
    visit.drain()
    client.read_until(b"end\r\n0\r\n\r\n")
    time.sleep(0.3)
    expect(client.get("/"), b"hello", closes=True)
    assert client.ends()


# HTTP's corners


@HABITS.append
def speaks_http_1_0(visit: Visit) -> None:
    client = visit.client()
    visit.drain()
    client.sock.sendall(get("/slow?s=0.2", version="1.0"))
    last(client, b"slow")


@HABITS.append
def speaks_http_1_0_and_keeps_alive(visit: Visit) -> None:
    client = visit.client()
    client.sock.sendall(get("/held", "Connection: keep-alive", version="1.0"))
    visit.drain()
    last(client, b"held")


@HABITS.append
def asks_for_heads_only(visit: Visit) -> None:
    client = visit.client()
    visit.drain()
    client.sock.sendall(get("/big?bytes=1000000", method="HEAD") + get("/?n=1"))
    head = client.read_until(b"\r\n\r\n").lower()
    assert b"content-length: 1000000" in head
    last(client, b"1")


@HABITS.append
def asks_for_one_head(visit: Visit) -> None:
    client = visit.client()
    client.get("/")
    visit.drain()
    client.sock.sendall(get("/big?bytes=1000000", method="HEAD"))
    assert b"connection: close" in client.read_until(b"\r\n\r\n").lower()
    assert client.ends()


def without_a_body(visit: Visit, code: int) -> None:
    client = visit.client()
    visit.drain()
    client.sock.sendall(get(f"/status?code={code}") + get("/?n=1") + get(f"/status?code={code}"))
    assert client.answer().status == code
    expect(client.answer(), b"1", closes=False)
    answer = client.answer()
    assert (answer.status, answer.closes) == (code, True)
    assert client.ends()


@HABITS.append
def is_answered_204(visit: Visit) -> None:
    without_a_body(visit, 204)


@HABITS.append
def is_answered_304(visit: Visit) -> None:
    without_a_body(visit, 304)


@HABITS.append
def sends_a_long_head(visit: Visit) -> None:
    client = visit.client()
    head = get("/?n=long", *[f"X-{n}: {'z' * 100}" for n in range(120)])
    client.sock.sendall(head[:7000])
    visit.drain()
    time.sleep(0.2)
    client.sock.sendall(head[7000:])
    last(client, b"long")


@HABITS.append
def offers_http_2(visit: Visit) -> None:
    """As curl does; the answer is HTTP/1.1."""
    client = visit.client()
    upgrade = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA")
    expect(client.get("/", *upgrade), b"hello")
    visit.drain()
    client.send("/?n=2", "GET", *upgrade)
    last(client, b"2")


# Websockets

WEBSOCKET = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")


def upgrade(client: Client, path: str = "/") -> None:
    client.send(path, "GET", *WEBSOCKET, f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}")


def is_greeted_and_sent_away(client: Client) -> None:
    """The handshake, and the close frame with 1012 before the connection ends."""
    assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
    assert client.read_until(b"\x88\x02\x03\xf4").endswith(b"\x88\x02\x03\xf4")


def answer_close(client: Client) -> None:
    client.sock.sendall(b"\x88\x82\0\0\0\0\x03\xf4")
    assert client.ends()


@WEBSOCKET_HABITS.append
def upgrades_in_the_drain(visit: Visit) -> None:
    client = visit.client()
    visit.drain()
    upgrade(client)
    is_greeted_and_sent_away(client)
    answer_close(client)


@WEBSOCKET_HABITS.append
def upgrades_slowly_across_the_drain(visit: Visit) -> None:
    client = visit.client()
    upgrade(client, "/held")
    visit.drain()
    is_greeted_and_sent_away(client)
    answer_close(client)


@WEBSOCKET_HABITS.append
def upgrades_slowly_in_the_drain(visit: Visit) -> None:
    client = visit.client()
    client.get("/")
    visit.drain()
    upgrade(client, "/held")
    is_greeted_and_sent_away(client)
    answer_close(client)


@WEBSOCKET_HABITS.append
def upgrades_where_it_is_unwelcome(visit: Visit) -> None:
    client = visit.client()
    visit.drain()
    upgrade(client, "/unwelcome")
    assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 403 ")


@WEBSOCKET_HABITS.append
def upgrades_badly(visit: Visit) -> None:
    client = visit.client()
    visit.drain()
    client.send("/", "GET", *WEBSOCKET)  # without a key
    assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 400 ")


@WEBSOCKET_HABITS.append
def upgrades_in_the_drain_and_never_says_goodbye(visit: Visit) -> None:
    client = visit.client()
    visit.drain()
    upgrade(client)
    is_greeted_and_sent_away(client)
    assert client.ends()


@WEBSOCKET_HABITS.append
def has_a_websocket_and_never_says_goodbye(visit: Visit) -> None:
    client = visit.client()
    upgrade(client)
    assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
    visit.drain()
    assert client.read_until(b"\x88\x02\x03\xf4")
    assert client.ends()


# Those who do not read


@DEAF_HABITS.append
def sleeps_before_a_stream_of_events(visit: Visit) -> None:
    client = visit.client()
    client.send("/flood")
    visit.drain()
    visit.until_gone()


@DEAF_HABITS.append
def sleeps_before_a_websocket(visit: Visit) -> None:
    client = visit.client()
    upgrade(client, "/flood")
    visit.drain()
    visit.until_gone()


def sleeps_before_an_answer(visit: Visit) -> None:
    """The kernel has all of it, and delivers it also when the worker has gone."""
    client = visit.client()
    client.send("/big?bytes=100000")
    visit.until_answered()
    visit.drain()
    visit.until_gone()
    expect(client.answer(), 100_000, closes=False)
