"""Around the application of a dev release: its HTML loads the script with which an open page refreshes itself.

Only where DEPLOYER_RELOAD names a listening `deployer watch --browser`; nothing else imports this. Pages are changed on
their way, with no more held back than what may turn out to be their end; every other answer passes as it is.
"""

from __future__ import annotations

from html import escape
from typing import Any

END = b"</body>"
TAIL = 4096  # bytes after </body>: what is further from the end of a page is not its end
_BODILESS = (204, 206, 304)  # 206 has one, but of a part of the page
_VALIDATORS = (b"etag", b"last-modified")  # of the page without the script: a 304 would bring back an old release's
_UNLIKE_ASCII = (b"utf-16", b"utf-32")
_SCRIPT = (b"script-src-elem", b"script-src", b"default-src")  # who decides, the first there is: CSP Level 3, 6.8
_CONNECT = (b"connect-src", b"default-src")
Headers = list[tuple[bytes, bytes]]


class Reload:
    """The application with a script in its pages, from `url` (http://127.0.0.1:41235)."""

    def __init__(self, app: Any, url: str, release: str) -> None:
        self._app = app
        self._origin = url.encode()
        self._tag = f'<script src="{escape(url)}/reload.js" data-release="{escape(release)}" async></script>'.encode()

    @property
    def moved(self) -> int:
        """As of the WSGI application inside, if it is one."""
        moved: int = getattr(self._app, "moved", 0)
        return moved

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["method"] != "HEAD" and not _is_fetched(scope["headers"]):
            scope, send = _unencoded(scope), self._into_pages(send)
        await self._app(scope, receive, send)

    def _into_pages(self, send: Any) -> Any:
        page: Page | None = None

        async def sent(message: Any) -> None:
            nonlocal page
            if message["type"] == "http.response.start":
                headers = changed(message["status"], list(message.get("headers", ())), self._origin, len(self._tag))
                if headers is not None:
                    page, message = Page(self._tag), {**message, "headers": headers}
            elif page is not None and message["type"] == "http.response.body":
                body = message.get("body", b"")
                if not message.get("more_body", False):
                    body = page.end(body)
                elif not (body := page.feed(body)):
                    return
                message = {**message, "body": body}
            await send(message)

        return sent


class Page:
    """The bytes of one page: the tag goes before the last </body>, or to the end. The same however they are cut."""

    def __init__(self, tag: bytes) -> None:
        self._tag, self._held = tag, b""

    def feed(self, data: bytes) -> bytes:
        """What may go on its way now."""
        data = self._held + data
        at = _last_end(data)
        if at is None:
            at = len(data) - _begun(data)
        self._held = data[at:]
        return data[:at]

    def end(self, data: bytes) -> bytes:
        """The rest, with the tag."""
        data = self._held + data
        at = _last_end(data)
        if at is None:
            at = len(data)
        return data[:at] + self._tag + data[at:]


def _last_end(data: bytes) -> int | None:
    tail = data[-TAIL:].lower()
    at = tail.rfind(END)
    return None if at < 0 else len(data) - len(tail) + at


def _begun(data: bytes) -> int:
    """How many bytes of END the data ends with; the rest may follow."""
    tail = data[-len(END) :].lower()
    return next((count for count in range(len(END) - 1, 0, -1) if tail.endswith(END[:count])), 0)


def changed(status: int, headers: Headers, origin: bytes, more: int) -> Headers | None:
    """Pure. The headers of the page with a script of `more` bytes; None: this answer is to be left alone."""
    names = {name.lower(): value.lower() for name, value in headers}
    kind = names.get(b"content-type", b"")
    if (
        status < 200
        or status in _BODILESS
        or kind.partition(b";")[0].strip() != b"text/html"
        or any(charset in kind for charset in _UNLIKE_ASCII)
        or names.get(b"content-encoding", b"identity") != b"identity"
        or names.get(b"content-disposition", b"").startswith(b"attachment")
    ):
        return None
    found: Headers = []
    for name, value in headers:
        match name.lower():
            case b"content-length":
                found.append((name, b"%d" % (int(value) + more)))
            case b"content-security-policy":
                allowed = [allowing(policy, origin) for policy in value.split(b",")]
                if None in allowed:
                    return None
                found.append((name, b", ".join(policy for policy in allowed if policy is not None)))
            case lower if lower not in _VALIDATORS:
                found.append((name, value))
    return found


def allowing(policy: bytes, origin: bytes) -> bytes | None:
    """Pure. A Content-Security-Policy under which a script of `origin` also runs, and connects to where it is from;
    None: one that trusts by nonce and hash alone ('strict-dynamic')."""
    directives: dict[bytes, list[bytes]] = {}
    for text in policy.split(b";"):
        if words := text.split():
            directives.setdefault(words[0].lower(), words[1:])  # the first of a name counts
    for names in (_SCRIPT, _CONNECT):
        decides = next((name for name in names if name in directives), None)
        if decides is None:
            continue
        sources = directives[decides]
        if names is _SCRIPT and b"'strict-dynamic'" in [source.lower() for source in sources]:
            return None
        more = [source for source in sources if source.lower() != b"'none'"] + [origin]
        directives[names[-2] if decides == b"default-src" else decides] = more
    return b"; ".join(b" ".join([name, *sources]) for name, sources in directives.items())


def _is_fetched(headers: Headers) -> bool:
    """By a script: what it asks for is a fragment of a page that is open already."""
    return any(name == b"sec-fetch-dest" and value == b"empty" for name, value in headers)


def _unencoded(scope: Any) -> Any:
    """The request of a page without its Accept-Encoding: into what is compressed no script can go."""
    if not any(name == b"accept" and b"text/html" in value for name, value in scope["headers"]):
        return scope
    return {**scope, "headers": [pair for pair in scope["headers"] if pair[0] != b"accept-encoding"]}
