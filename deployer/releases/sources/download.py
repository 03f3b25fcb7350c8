"""Fetches an artifact over https into a file without a name: nothing is left of it, however this ends."""

from __future__ import annotations

import base64
import hashlib
import http.client
import signal
import ssl
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any, NoReturn
from urllib.parse import unquote, urlsplit

from deployer import __version__
from deployer.errors import SourceError
from deployer.releases.sources.base import Progress, shown
from deployer.releases.sources.tokens import Secret, is_loopback, is_safe
from deployer.units import format_size

SILENCE_S = 30.0  # without a byte: the server is gone
DEADLINE_S = 900.0  # of the whole transfer; the 15 minutes that a fetch from git gets
SIZE_MAX = 4 << 30  # bytes
CHUNK = 1 << 18
PROGRESS_S = 2.0
AGAIN_S = 1.0  # the deadline's signal is repeated: an exception out of a handler may be swallowed where it falls

_EXPIRED = 10  # OpenSSL's X509_V_ERR_...
_OTHER_NAME = (62, 64)


class _LateError(TimeoutError):
    """The whole transfer took too long."""


def download(secret: Secret, into: Path, progress: Progress) -> tuple[IO[bytes], str]:
    """The open file, at its beginning, and its sha256; `into` says on which file system. Raises SourceError."""
    if not is_safe(secret.url):
        raise SourceError(
            f"will not fetch {secret.shown}",
            cause="only https:// is fetched: on http:// anybody on the way could look on or change it",
            hint="use the https:// address",
        )
    progress(f"downloading {secret.shown}")
    file = tempfile.TemporaryFile(dir=into)  # noqa: SIM115  # the caller closes it
    try:
        with _deadline():
            with _explained(secret):
                answer = _opener(secret.url).open(_request(secret.url), timeout=SILENCE_S)
            with answer:
                digest = _copy(answer, file, secret, progress)
    except _LateError as error:
        file.close()
        raise _failed(secret, error) from None
    except BaseException:
        file.close()
        raise
    file.seek(0)
    return file, digest


@contextmanager
def _deadline() -> Iterator[None]:
    """Raises _LateError in a block that takes too long: a server that gives a byte now and then is never silent."""
    before = signal.signal(signal.SIGALRM, _late)
    signal.setitimer(signal.ITIMER_REAL, DEADLINE_S, AGAIN_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _late(number: int, frame: FrameType | None) -> NoReturn:
    raise _LateError(f"it took longer than {DEADLINE_S:g} s")


@contextmanager
def _explained(secret: Secret) -> Iterator[None]:
    """What the network or the server does wrong, told as SourceError; writing to the disk stays outside."""
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a name or address that is none
        raise _failed(secret, error) from None  # the cause's own text may hold the secret


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        here, there = urlsplit(req.full_url), urlsplit(newurl)
        if there.scheme != "https" and (here.scheme == "https" or not is_safe(newurl)):
            # Its path and query may hold a signature, and whoever reads this needs the host.
            raise urllib.error.URLError(f"it sends on to {there.scheme}://{there.hostname}, which is not https")
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is not None and there.netloc != here.netloc:
            new.remove_header("Authorization")  # meant for the host that was named
        return new


def _opener(url: str) -> urllib.request.OpenerDirector:
    handlers: list[urllib.request.BaseHandler] = [_SafeRedirects()]
    if is_loopback(urlsplit(url).hostname or ""):
        handlers.append(urllib.request.ProxyHandler({}))
    return urllib.request.build_opener(*handlers)


def _request(url: str) -> urllib.request.Request:
    parts = urlsplit(url)
    headers = {"User-Agent": f"deployer/{__version__}", "Accept-Encoding": "identity"}
    if "@" in parts.netloc:
        login = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
        url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return urllib.request.Request(url, headers=headers)  # noqa: S310  # `is_safe` has seen it


def _copy(answer: Any, file: IO[bytes], secret: Secret, progress: Progress) -> str:
    value = hashlib.sha256()
    told = time.monotonic()
    size, expected = 0, answer.length
    while chunk := _read(answer, secret):
        size += len(chunk)
        if size > SIZE_MAX:
            raise SourceError(f"{secret.shown} is larger than {format_size(SIZE_MAX)}")
        if time.monotonic() - told > PROGRESS_S:
            told = time.monotonic()
            progress(f"downloaded {format_size(size)}" + (f" of {format_size(expected)}" if expected else ""))
        value.update(chunk)
        file.write(chunk)
        if size == expected:
            break  # read1 of older Pythons would wait for the server to close
    if expected is not None and size < expected:
        raise _failed(secret, http.client.IncompleteRead(b"", expected - size))
    file.flush()
    return value.hexdigest()


def _read(answer: Any, secret: Secret) -> bytes:
    """What came by now, at most a chunk: `read` would wait for a whole one, however slowly it comes."""
    with _explained(secret):
        chunk: bytes = answer.read1(CHUNK)
        return chunk


def _failed(secret: Secret, error: Exception) -> SourceError:
    hint = f"curl -fLO {secret.shown}"
    reason = getattr(error, "reason", error) if isinstance(error, urllib.error.URLError) else error
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        why = f"the server answers {error.code} {error.reason}"
    elif isinstance(error, http.client.IncompleteRead):
        missing = f"{format_size(error.expected)} too early" if error.expected else "before the answer did"
        why = f"the connection ended {missing}"
    elif isinstance(reason, ssl.SSLCertVerificationError):
        why, hint = _distrust(reason)
    elif isinstance(reason, TimeoutError) and reason.errno is None and not isinstance(reason, _LateError):
        why = f"nothing came from the server for {SILENCE_S:g} s"
    else:
        why = (isinstance(reason, OSError) and reason.strerror) or str(reason) or type(reason).__name__
    told = shown(" ".join(secret.mask(why).split()))
    return SourceError(f"cannot download {secret.shown}", cause=told, hint=hint)


def _distrust(error: ssl.SSLCertVerificationError) -> tuple[str, str]:
    """Why the server's certificate is not taken, and what to do about it."""
    if error.verify_code == _EXPIRED:
        hint = "renew it on the server, or look at this machine's clock: date"
    elif error.verify_code in _OTHER_NAME:
        hint = "use a host name that is in the certificate"
    else:
        hint = (
            "of your own authority? export SSL_CERT_FILE=/path/to/ca.pem before `deployer up`, or in the service's unit"
        )
    return f"the server's certificate is refused: {error.verify_message}", hint
