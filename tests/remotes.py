"""Servers that releases come from, on the loopback: https with a certificate made here, git over http with its LFS
server, sshd. Each is a context manager that leaves no thread, process or port."""

from __future__ import annotations

import base64
import contextlib
import functools
import http.server
import json
import os
import pwd
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import free_port, wait_until

SSHD = "/usr/sbin/sshd"
PRIVILEGE_SEPARATION = Path("/run/sshd")
BIND_ATTEMPTS = 5
LFS_JSON = "application/vnd.git-lfs+json"


def need(program: str, what: str) -> None:
    """Skip loudly where the program is missing; CI must have it."""
    if shutil.which(program) is None:
        assert os.environ.get("CI") != "true", f"CI must have {program}: .ci/run installs it"
        pytest.skip(f"NOT TESTED: {what}; {program} is not installed")


# Certificates


@dataclass(frozen=True)
class Authority:
    """Signs certificates of servers; who trusts it says so by SSL_CERT_FILE = `file`."""

    directory: Path
    file: Path

    def certificate(self, name: str, *, holds: str = "IP:127.0.0.1,DNS:localhost", days: int = 2) -> Path:
        """Key and certificate in one file; with `days` below 0 it has expired."""
        made = self.directory / f"{name}.pem"
        key, request, extensions = (self.directory / f"{name}.{kind}" for kind in ("key", "csr", "ext"))
        extensions.write_text(f"subjectAltName={holds}\n")
        _openssl("req", *_NEW_KEY, "-keyout", str(key), "-subj", f"/CN={name}", "-out", str(request))
        signer = ("-CA", str(self.file), "-CAkey", str(self.directory / "ca.key"), "-CAcreateserial")
        more = ("-extfile", str(extensions), "-days", str(days), "-out", str(made))
        _openssl("x509", "-req", "-in", str(request), *signer, *more)
        made.write_bytes(key.read_bytes() + made.read_bytes())
        return made


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def authority(directory: Path) -> Authority:
    directory.mkdir()
    made = Authority(directory, directory / "ca.pem")
    names = ("-subj", "/CN=Authority of a test", "-days", "2", "-out", str(made.file))
    _openssl("req", "-x509", *_NEW_KEY, "-keyout", str(directory / "ca.key"), *names)
    return made


def _openssl(*words: str) -> None:
    done = subprocess.run(["openssl", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Web servers


class Server(http.server.ThreadingHTTPServer):
    """With `certificate` it speaks TLS, each connection's handshake in its own thread."""

    daemon_threads = False  # closing waits for every answer's thread
    certificate: Path | None = None

    def __init__(self, handler: Any) -> None:
        self.over = threading.Event()  # ends those that keep a client waiting
        self.errors: list[BaseException | None] = []
        super().__init__(("127.0.0.1", 0), handler)

    def get_request(self) -> tuple[Any, Any]:
        connection, address = super().get_request()
        if self.certificate is None:
            return connection, address
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate)
        return context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that refuses the certificate, or leaves, is what is tested: not into the tests' output."""
        self.errors.append(sys.exc_info()[1])


@contextlib.contextmanager
def serve(handler: Any, certificate: Path | None = None) -> Iterator[tuple[Server, str]]:
    """The running server and its URL, without a slash at the end."""
    with Server(handler) as server:
        server.certificate = certificate
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server, f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_port}"
        finally:
            server.over.set()
            server.shutdown()
            thread.join()


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of a directory."""

    server: Server

    def log_message(self, *args: object) -> None:
        """Not into the tests' output."""


def files(directory: Path) -> Any:
    """A handler for `serve`: what lies in the directory."""
    return functools.partial(Handler, directory=str(directory))


@dataclass
class Repositories:
    """Bare repositories by git's own http backend, each with a Git LFS server (batch API, basic transfer)."""

    directory: Path
    objects: dict[str, bytes] = field(default_factory=dict)
    login: str | None = None  # "user:password" that every request must bring
    batches: list[dict[str, Any]] = field(default_factory=list)
    downloads: list[str] = field(default_factory=list)

    def handler(self) -> Any:
        return functools.partial(_GitHandler, self)


class _GitHandler(http.server.BaseHTTPRequestHandler):
    server: Server

    def __init__(self, repositories: Repositories, *arguments: Any) -> None:
        self.repositories = repositories
        super().__init__(*arguments)

    def log_message(self, *args: object) -> None:
        """Not into the tests' output."""

    def do_GET(self) -> None:
        if not self._may():
            return
        if self.path.startswith("/lfs-objects/"):
            oid = self.path.rpartition("/")[2]
            self.repositories.downloads.append(oid)
            self._answer(200, "application/octet-stream", self.repositories.objects[oid])
        else:
            self._backend(b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self._may():
            return
        if self.path.endswith("/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        else:
            self._backend(body)

    def _may(self) -> bool:
        login = self.repositories.login
        if login is None or self.headers.get("Authorization") == f"Basic {base64.b64encode(login.encode()).decode()}":
            return True
        self._answer(401, "text/plain", b"who are you?", ("WWW-Authenticate", 'Basic realm="git"'))
        return False

    def _batch(self, asked: dict[str, Any]) -> None:
        self.repositories.batches.append(asked)
        assert asked["operation"] == "download"
        told = [self._object(wanted["oid"], wanted["size"]) for wanted in asked["objects"]]
        self._answer(200, LFS_JSON, json.dumps({"transfer": "basic", "objects": told}).encode())

    def _object(self, oid: str, size: int) -> dict[str, Any]:
        if oid not in self.repositories.objects:
            return {"oid": oid, "size": size, "error": {"code": 404, "message": "Object does not exist"}}
        href = f"http://{self.headers['Host']}/lfs-objects/{oid}"
        return {"oid": oid, "size": size, "actions": {"download": {"href": href}}}

    def _backend(self, body: bytes) -> None:
        path, _, query = self.path.partition("?")
        env = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self.repositories.directory),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_NOSYSTEM": "1",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type") or "",
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding") or "",
            "HTTP_GIT_PROTOCOL": self.headers.get("Git-Protocol") or "",
        }
        done = subprocess.run(["git", "http-backend"], env=env, input=body, capture_output=True, check=False)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().splitlines())
        status = int(headers.pop("Status", "200").split()[0])
        self._answer(status, headers.pop("Content-Type", "text/plain"), content)

    def _answer(self, status: int, kind: str, body: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (("Content-Type", kind), ("Content-Length", str(len(body))), *headers):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


# sshd


@dataclass(frozen=True)
class Sshd:
    """A running sshd that lets in who has `key`. `host_key` is its public one."""

    port: int
    key: Path
    host_key: Path
    log: Path

    @property
    def host(self) -> str:
        return f"{pwd.getpwuid(os.geteuid()).pw_name}@127.0.0.1:{self.port}"

    def known(self) -> str:
        """Its line of a known_hosts."""
        return f"[127.0.0.1]:{self.port} {self.host_key.read_text()}"


def ssh_key(path: Path) -> Path:
    """A new private key, its public one beside it."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)], check=True)
    return path


@contextlib.contextmanager
def sshd(directory: Path) -> Iterator[Sshd]:
    """Debian's own, unprivileged or as root. Root's needs /run/sshd, which the package's service would make: it is
    made here when it is missing, and stays, as another test's sshd may be using it."""
    need(SSHD, "git over ssh")
    if os.geteuid() == 0 and not PRIVILEGE_SEPARATION.exists():
        print(f"{PRIVILEGE_SEPARATION} was missing: made for sshd, and left there")
        PRIVILEGE_SEPARATION.mkdir(mode=0o755, exist_ok=True)
    directory.mkdir()
    host_key, key, log = ssh_key(directory / "host_key"), ssh_key(directory / "id"), directory / "log"
    shutil.copy(directory / "id.pub", directory / "authorized_keys")
    config = directory / "sshd_config"
    process = None
    try:
        for _ in range(BIND_ATTEMPTS):  # somebody may take the port between the look and the bind
            port = free_port()
            config.write_text(_settings(directory, host_key, port))
            process = _start_sshd(config, log)
            if process.poll() is None:
                break
            assert "Address already in use" in log.read_text(), log.read_text()
        assert process is not None
        assert process.poll() is None, log.read_text()
        yield Sshd(port, key, directory / "host_key.pub", log)
    finally:
        if process is not None:
            process.terminate()
            process.wait(10)
            wait_until(lambda: not _writers(log), "the sshd of each connection has ended")


def _settings(directory: Path, host_key: Path, port: int) -> str:
    settings = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": host_key,
        "AuthorizedKeysFile": directory / "authorized_keys",
        "StrictModes": "no",  # the tests' directories lie in /tmp
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "PermitRootLogin": "prohibit-password",
        "UsePAM": "no",
        "PidFile": "none",
    }
    return "".join(f"{key} {value}\n" for key, value in settings.items())


def _start_sshd(config: Path, log: Path) -> subprocess.Popen[bytes]:
    """It listens when this returns, or it has ended."""
    with open(log, "wb") as output:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(config)], stdin=subprocess.DEVNULL, stderr=output)
    try:
        listening = "Server listening on"
        wait_until(lambda: process.poll() is not None or listening in log.read_text(), "sshd listens", pause=0.01)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return process


def _writers(log: Path) -> list[str]:
    """Processes that write into the log: sshd's children have titles of their own."""
    wanted, found = os.stat(log), []
    for path in Path("/proc").glob("[0-9]*/fd/2"):
        with contextlib.suppress(OSError):
            there = os.stat(path)
            if (there.st_dev, there.st_ino) == (wanted.st_dev, wanted.st_ino):
                found.append(str(path))
    return found
