"""Artifacts over https: a real TLS server with certificates of its own, trusted or not."""

from __future__ import annotations

import base64
import functools
import hashlib
import http.server
import io
import os
import re
import socket
import tarfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from stagekit import Done, Stager

from deployer.errors import SourceError
from deployer.releases.request import Artifact
from deployer.releases.sources import download
from deployer.releases.sources.tokens import Secret
from tests import remotes

LOGIN = "ci:s3cret"
DRIP_S = 0.05  # far below every silence that is tested


def archive() -> bytes:
    """More than fits into the buffers between the two."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        for name, data in (("app.py", b"1"), ("noise", os.urandom(3 << 20))):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return made.getvalue()


@dataclass
class Site:
    """What the server gives, and what it was asked for."""

    body: bytes = field(default_factory=archive)
    elsewhere: str = ""
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # path, Authorization

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.body).hexdigest()


class _Handler(http.server.BaseHTTPRequestHandler):
    """Each path is a way to go right or wrong."""

    server: remotes.Server

    def __init__(self, site: Site, *arguments: Any) -> None:
        self.site = site
        super().__init__(*arguments)

    def log_message(self, *args: object) -> None:
        """Not into the tests' output."""

    def do_GET(self) -> None:
        self.site.asked.append((self.path, self.headers.get("Authorization")))
        getattr(self, f"do_{self.path.strip('/').partition('.')[0]}", self.do_nothing)()

    def start(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def do_shop(self) -> None:
        self.start(200, Content_Length=len(self.site.body))
        self.wfile.write(self.site.body)

    def do_chunks(self) -> None:
        """Without a length, and the last chunk never comes."""
        self.protocol_version = "HTTP/1.1"
        self.start(200, Transfer_Encoding="chunked")
        self.wfile.write(b"100000\r\n" + self.site.body[: 1 << 20] + b"\r\n")
        self.close_connection = True

    def do_private(self) -> None:
        if self.headers.get("Authorization") == f"Basic {base64.b64encode(LOGIN.encode()).decode()}":
            self.do_shop()
        else:
            self.start(401, WWW_Authenticate="Basic", Content_Length=0)

    def do_away(self) -> None:
        self.start(302, Location=self.site.elsewhere, Content_Length=0)

    def do_cut(self) -> None:
        self.start(200, Content_Length=len(self.site.body))
        self.wfile.write(self.site.body[:-100_000])

    def do_reset(self) -> None:
        """Cut below TLS, without its farewell."""
        self.do_cut()
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def do_silent(self) -> None:
        self.server.over.wait()

    def do_stall(self) -> None:
        self.do_cut()
        self.server.over.wait()

    def do_drip(self) -> None:
        """Never silent, never done."""
        self.start(200, Content_Length=len(self.site.body))
        for position in range(len(self.site.body)):
            self.wfile.write(self.site.body[position : position + 1])
            if self.server.over.wait(DRIP_S):
                return

    def do_headers(self) -> None:
        """The same before the answer has begun."""
        self.wfile.write(b"HTTP/1.0 200 OK\r\nX-Long: ")
        while not self.server.over.wait(DRIP_S):
            self.wfile.write(b"x")

    def do_nothing(self) -> None:
        self.start(404, Content_Length=0)


class Sites:
    """Servers by the certificate they show; `trusted` signed that of most."""

    def __init__(self, authority: remotes.Authority, stack: ExitStack) -> None:
        self.authority = authority
        self.site = Site()
        self._stack = stack

    def start(self, certificate: Path | None) -> str:
        """Its URL."""
        handler = functools.partial(_Handler, self.site)
        return self._stack.enter_context(remotes.serve(handler, certificate))[1]

    @functools.cached_property
    def good(self) -> str:
        return self.start(self.authority.certificate("good"))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> remotes.Authority:
    return remotes.authority(tmp_path_factory.mktemp("authority") / "ca")


@pytest.fixture
def sites(authority: remotes.Authority, stager: Stager, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sites]:
    """The stager, and this process, trust the authority."""
    stager.env["SSL_CERT_FILE"] = str(authority.file)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    with ExitStack() as stack:
        yield Sites(authority, stack)


def stage(stager: Stager, sites: Sites, url: str, name: str = "v1") -> Done:
    return stager.run(Artifact(location=url, sha256=sites.site.sha256), name)


def refused(stager: Stager, done: Done, *texts: str) -> None:
    assert done.exit == 6, done
    assert (done.error or {})["reason"] == "source"
    assert (done.error or {})["hint"]
    for text in texts:
        assert text in done.told
    stager.assert_nothing_left()


def given_up(stager: Stager, url: str) -> SourceError:
    """Downloaded in this process, where the test has shortened the limits."""
    stager.layout.releases.mkdir(exist_ok=True)
    began = time.monotonic()
    with pytest.raises(SourceError) as caught:
        download.download(Secret(url, "artifact"), stager.layout.releases, lambda text: None)
    assert time.monotonic() - began < 10
    stager.assert_nothing_left()
    return caught.value


def test_a_server_whose_certificate_is_trusted(stager: Stager, sites: Sites) -> None:
    """By SSL_CERT_FILE in the supervisor's environment, with the login of the URL, which is told nowhere."""
    done = stage(stager, sites, f"{sites.good.replace('https://', f'https://{LOGIN}@')}/private.tar.gz")
    assert done.result is not None, done.error
    assert (stager.release() / "app.py").read_text() == "1"
    assert re.fullmatch(r"artifact https://\*\*\*@127\.0\.0\.1:\d+/private\.tar\.gz", done.result["source"])
    assert "s3cret" not in str(done)


def test_a_certificate_of_an_authority_that_nobody_here_knows(stager: Stager, sites: Sites, tmp_path: Path) -> None:
    """The hint says how one's own authority is made known; the server was asked for nothing."""
    stranger = remotes.authority(tmp_path / "stranger").certificate("theirs")
    done = stage(stager, sites, f"{sites.start(stranger)}/shop.tar.gz")
    refused(stager, done, "the server's certificate is refused: unable to get local issuer", "SSL_CERT_FILE=")
    del stager.env["SSL_CERT_FILE"]
    done = stage(stager, sites, f"{sites.good}/shop.tar.gz")
    refused(stager, done, "the server's certificate is refused", "SSL_CERT_FILE=")
    assert sites.site.asked == []


def test_a_certificate_of_another_host(stager: Stager, sites: Sites) -> None:
    url = sites.start(sites.authority.certificate("other", holds="DNS:elsewhere.example.org"))
    done = stage(stager, sites, f"{url}/shop.tar.gz")
    refused(stager, done, "IP address mismatch", "'127.0.0.1'", "use a host name that is in the certificate")
    done = stage(stager, sites, f"{url.replace('127.0.0.1', 'localhost')}/shop.tar.gz")
    refused(stager, done, "Hostname mismatch", "'localhost'")
    assert sites.site.asked == []


def test_a_certificate_that_has_expired(stager: Stager, sites: Sites) -> None:
    url = sites.start(sites.authority.certificate("old", days=-1))
    refused(stager, stage(stager, sites, f"{url}/shop.tar.gz"), "certificate has expired", "renew it")
    assert sites.site.asked == []


def test_https_on_a_port_that_speaks_http(stager: Stager, sites: Sites) -> None:
    url = sites.start(None).replace("http://", "https://")
    refused(stager, stage(stager, sites, f"{url}/shop.tar.gz"), "cannot download https://", "SSL")


def test_another_file_than_was_meant(stager: Stager, sites: Sites) -> None:
    """Both digests are told."""
    done = stager.run(Artifact(location=f"{sites.good}/shop.tar.gz", sha256="0" * 64))
    refused(stager, done, "is not the artifact that was meant", sites.site.sha256, "0" * 64)


def test_https_never_sends_on_to_http(stager: Stager, sites: Sites) -> None:
    """Not even to this machine, where plain http by itself is taken; and the secret of the address is not told."""
    sites.site.elsewhere = f"{sites.start(None)}/shop.tar.gz?signature=s3cret"
    done = stage(stager, sites, f"{sites.good}/away.tar.gz")
    refused(stager, done, "it sends on to http://127.0.0.1, which is not https")
    assert "s3cret" not in str(done)
    assert [path for path, _ in sites.site.asked] == ["/away.tar.gz"]


def test_https_sends_on_to_https_without_the_login(stager: Stager, sites: Sites) -> None:
    """As release pages of forges do; the login is meant for the host that was named."""
    other = sites.start(sites.authority.certificate("mirror"))
    sites.site.elsewhere = f"{other}/shop.tar.gz"
    done = stage(stager, sites, f"{sites.good.replace('https://', f'https://{LOGIN}@')}/away.tar.gz")
    assert done.result is not None, done.error
    (first, second) = sites.site.asked
    assert first[1] is not None
    assert second == ("/shop.tar.gz", None)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("cut", "too early"),
        ("chunks", "the connection ended before the answer did"),
        ("reset", "EOF occurred in violation of protocol|too early|[Cc]onnection reset"),
        ("none", "the server answers 404 Not Found"),
    ],
)
def test_a_body_that_is_not_whole_or_not_there(stager: Stager, sites: Sites, path: str, text: str) -> None:
    """A source that failed, never a disk: nothing was wrong here."""
    done = stage(stager, sites, f"{sites.good}/{path}.tar.gz")
    refused(stager, done, f"cannot download {sites.good}/{path}.tar.gz", f"curl -fLO {sites.good}")
    assert re.search(text, done.told), done.told


def test_a_wrong_login_is_not_told(stager: Stager, sites: Sites) -> None:
    """Written into the URL, or by a variable."""
    stager.env["STORE_LOGIN"] = "ci:wr0ng"
    for login in ("ci:wr0ng", "${STORE_LOGIN}"):
        done = stage(stager, sites, f"{sites.good.replace('https://', f'https://{login}@')}/private.tar.gz")
        refused(stager, done, "the server answers 401 Unauthorized", "https://***@127.0.0.1")
        assert "wr0ng" not in str(done)
    sent = base64.b64encode(b"ci:wr0ng").decode()
    assert [login for _, login in sites.site.asked] == [f"Basic {sent}"] * 2


@pytest.mark.parametrize("path", ["silent", "stall"])
def test_a_server_that_falls_silent(stager: Stager, sites: Sites, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Before its answer or in the middle of it."""
    monkeypatch.setattr(download, "SILENCE_S", 0.3)
    error = given_up(stager, f"{sites.good}/{path}.tar.gz")
    assert error.cause == "nothing came from the server for 0.3 s"
    assert error.hint == f"curl -fLO {sites.good}/{path}.tar.gz"


def test_a_server_that_says_nothing_to_a_tls_client(stager: Stager, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection stands, the handshake is never answered."""
    monkeypatch.setattr(download, "SILENCE_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        error = given_up(stager, f"https://127.0.0.1:{mute.getsockname()[1]}/shop.tar.gz")
    assert error.cause == "nothing came from the server for 0.3 s"


@pytest.mark.parametrize("path", ["drip", "headers"])
def test_a_server_that_gives_a_byte_now_and_then(
    stager: Stager, sites: Sites, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """It is never silent: the limit of the whole transfer ends it, in the body and before."""
    monkeypatch.setattr(download, "DEADLINE_S", 0.5)
    error = given_up(stager, f"{sites.good}/{path}.tar.gz")
    assert error.cause == "it took longer than 0.5 s"


def test_a_server_that_is_not_there(stager: Stager, sites: Sites) -> None:
    """Nobody listens; no such name; no name at all; no address at all."""
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))  # and does not listen: nobody else does there either
        url = f"https://127.0.0.1:{mute.getsockname()[1]}/a.tar.gz"
        refused(stager, stage(stager, sites, url), "Connection refused")
    for url in ("https://nothing.invalid/a.tar.gz", "https://no..name/a.tar.gz"):
        refused(stager, stage(stager, sites, url), f"cannot download {url}")
    refused(stager, stage(stager, sites, "https://[no/a.tar.gz"), "will not fetch")
