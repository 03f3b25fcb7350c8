"""Fetches an artifact over https into a file without a name: nothing is left of it, however this ends."""

from __future__ import annotations

import base64
import hashlib
import http.client
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from deployer import __version__
from deployer.errors import SourceError
from deployer.releases.sources.base import Progress
from deployer.releases.sources.tokens import Secret, is_loopback, is_safe
from deployer.units import format_size

SILENCE_S = 30.0  # without a byte: the server is gone
DEADLINE_S = 900.0  # of the whole transfer; the 15 minutes that a fetch from git gets
SIZE_MAX = 4 << 30  # bytes
CHUNK = 1 << 18
PROGRESS_S = 2.0


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
        with _opener(secret.url).open(_request(secret.url), timeout=SILENCE_S) as answer:
            digest = _copy(answer, file, secret, progress)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        file.close()
        raise _failed(secret, error) from None  # the cause's own text may hold the secret
    except BaseException:
        file.close()
        raise
    file.seek(0)
    return file, digest


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not is_safe(newurl):
            raise urllib.error.URLError(f"it sends on to {newurl}, which is not https")
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is not None and urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
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
    began = told = time.monotonic()
    size = 0
    expected = answer.headers.get("Content-Length")
    while chunk := answer.read(CHUNK):
        size += len(chunk)
        now = time.monotonic()
        if size > SIZE_MAX:
            raise SourceError(f"{secret.shown} is larger than {format_size(SIZE_MAX)}")
        if now - began > DEADLINE_S:
            raise TimeoutError(f"it took longer than {DEADLINE_S:g} s")
        if now - told > PROGRESS_S:
            told = now
            progress(f"downloaded {format_size(size)}" + (f" of {format_size(int(expected))}" if expected else ""))
        value.update(chunk)
        file.write(chunk)
    if expected is not None and size < int(expected):
        raise http.client.IncompleteRead(b"", int(expected) - size)
    file.flush()
    return value.hexdigest()


def _failed(secret: Secret, error: Exception) -> SourceError:
    if isinstance(error, urllib.error.HTTPError):
        why = f"the server answers {error.code} {error.reason}"
    elif isinstance(error, http.client.IncompleteRead):
        why = f"the connection ended {format_size(error.expected or 0)} too early"
    else:
        why = str(getattr(error, "reason", None) or error) or type(error).__name__
    return SourceError(f"cannot download {secret.shown}", cause=secret.mask(why), hint=f"curl -fLO {secret.shown}")
