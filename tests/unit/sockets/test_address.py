"""Addresses as people write them, and the sentence each wrong one gets."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployer.sockets.address import Address, parse

BASE = Path("/srv/shop")


@pytest.mark.parametrize(
    ("text", "address", "canonical"),
    [
        ("tcp://127.0.0.1:8000", Address("tcp", "127.0.0.1", 8000), "tcp://127.0.0.1:8000"),
        ("tcp://[::]:80", Address("tcp", "::", 80), "tcp://[::]:80"),
        ("tcp://[2001:DB8:0:0::1]:80", Address("tcp", "2001:db8::1", 80), "tcp://[2001:db8::1]:80"),
        ("tcp://LocalHost:065", Address("tcp", "localhost", 65), "tcp://localhost:65"),
        ("unix:/run/shop.sock", Address("unix", path="/run/shop.sock"), "unix:/run/shop.sock"),
        ("unix:run/../shop.sock", Address("unix", path="/srv/shop/shop.sock"), "unix:/srv/shop/shop.sock"),
        ("unix:///run/shop.sock", Address("unix", path="/run/shop.sock"), "unix:/run/shop.sock"),
    ],
)
def test_an_address_is_parsed_and_printed_in_its_canonical_form(text: str, address: Address, canonical: str) -> None:
    assert parse(text, BASE) == address
    assert str(address) == canonical
    assert parse(canonical, BASE) == address


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", 'not an address: write "tcp://HOST:PORT" or "unix:/path/to/socket"'),
        ("http://localhost:80", 'not an address: write "tcp://HOST:PORT" or "unix:/path/to/socket"'),
        ("8000", 'the "tcp://" is missing: write "tcp://127.0.0.1:8000"'),
        ("localhost:8000", 'the "tcp://" is missing: write "tcp://localhost:8000"'),
        ("tcp:localhost:80", 'write "tcp://localhost:80", with two slashes'),
        ("/run/shop.sock", 'the "unix:" is missing: write "unix:/run/shop.sock"'),
        ("tcp://localhost", 'the port is missing: write "tcp://localhost:8000"'),
        ("tcp://[::1]", 'the port is missing: write "tcp://[::1]:8000"'),
        ("tcp://:80", 'the host is missing: write "tcp://0.0.0.0:80" to listen on every interface'),
        ("tcp://*:80", 'the host is missing: write "tcp://0.0.0.0:80" to listen on every interface'),
        ("tcp://h:http", '"http" is not a port: write a number from 1 to 65535'),
        ("tcp://h:-1", '"-1" is not a port: write a number from 1 to 65535'),
        ("tcp://h:65536", "port 65536 is too high: the highest is 65535"),
        ("tcp://h:0", "port 0 would be another port at every start: write the port that visitors use"),
        ("tcp://::1:80", 'an IPv6 address needs brackets: write "tcp://[::1]:80"'),
        ("tcp://[::g]:80", '"::g" is not an IPv6 address'),
        ("tcp://1.2.3.400:80", '"1.2.3.400" is not an IPv4 address'),
        ("tcp://a b:80", '"a b" is not a host name'),
        ("unix:", 'the path is missing: write "unix:/path/to/socket"'),
        ("unix://run/x", 'write "unix:/run/x", or "unix:run/x" beside deployer.toml: one slash or none'),
        ("unix:@shop", "a socket without a file is open to every user: write a path"),
        ("unix:/run/", "the path must name a file"),
    ],
)
def test_a_wrong_address_is_refused_with_what_to_write(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        parse(text, BASE)
    assert str(caught.value) == message


def test_a_unix_path_may_have_107_bytes_and_no_more() -> None:
    longest = "/" + "x" * 106
    assert parse(f"unix:{longest}", BASE).path == longest
    with pytest.raises(ValueError, match=r"^the path is 108 bytes long and the kernel allows 107: /xxx"):
        parse(f"unix:{longest}x", BASE)


def test_the_length_of_a_unix_path_is_counted_in_bytes_with_its_base() -> None:
    with pytest.raises(ValueError, match="the path is 110 bytes long"):
        parse("unix:" + "é" * 50, BASE)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text() | st.from_regex(r"(tcp://|unix:)[\[\]:./a-z0-9@*-]*", fullmatch=True))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    try:
        address = parse(text, BASE)
    except ValueError:
        return
    assert parse(str(address), BASE) == address
