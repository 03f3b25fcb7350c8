"""Sessions that every worker of every release shares: a visitor keeps his through deploys, rollbacks and crashes.

REDIS_URL set      Redis, for as many hosts as there are: redis://127.0.0.1:6379/0 or unix:///run/redis/redis.sock
otherwise          SQLite: sessions/sessions.sqlite3, where `sessions` is a shared path ([release] of deployer.toml), so
                   that the file outlives the release that made it

Nothing is guessed: a Redis that happens to run on this machine is somebody else's. The libraries do the work:
starsessions the cookie and the middleware, redis-py and peewee the storing.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

from peewee import BlobField, CharField, FloatField, Model, SqliteDatabase
from starlette.middleware import Middleware
from starsessions import SessionMiddleware, SessionStore

LIFETIME = timedelta(days=14)
FILE = Path(__file__).parent / "sessions" / "sessions.sqlite3"
# Workers of two releases write at once: with a write-ahead log readers wait for nobody, writers for each other.
DATABASE = SqliteDatabase(None, pragmas={"journal_mode": "wal", "synchronous": "normal"}, timeout=5)


class Session(Model):
    key = CharField(primary_key=True)
    data = BlobField()
    expires = FloatField(index=True)  # seconds since 1970

    class Meta:
        database = DATABASE


class SqliteStore(SessionStore):
    """peewee behind starsessions' interface. SQLite blocks, so it is asked in threads."""

    def create(self) -> None:
        FILE.parent.mkdir(exist_ok=True)  # it is there already where the path is shared
        DATABASE.init(FILE)
        DATABASE.create_tables([Session])

    async def read(self, session_id: str, lifetime: int) -> bytes:
        return await asyncio.to_thread(self._read, session_id)

    def _read(self, session_id: str) -> bytes:
        found = Session.get_or_none(Session.key == session_id, Session.expires > time.time())
        return bytes(found.data) if found else b""

    async def write(self, session_id: str, data: bytes, lifetime: int, ttl: int) -> str:
        await asyncio.to_thread(self._write, session_id, data, time.time() + ttl)
        return session_id

    def _write(self, session_id: str, data: bytes, expires: float) -> None:
        with DATABASE.atomic("IMMEDIATE"):
            Session.replace(key=session_id, data=data, expires=expires).execute()
            Session.delete().where(Session.expires < time.time()).execute()

    async def remove(self, session_id: str) -> None:
        await asyncio.to_thread(Session.delete_by_id, session_id)


def chosen() -> SessionStore:
    """The one that the environment asks for."""
    url = os.environ.get("REDIS_URL")
    if not url:
        return SqliteStore()
    from redis.asyncio import Redis
    from starsessions.stores.redis import RedisStore

    return RedisStore(connection=Redis.from_url(url), prefix="sample.session.")


STORE = chosen()


@asynccontextmanager
async def lifespan(app: object) -> AsyncIterator[None]:
    """The store is tried before the worker says that it is ready: a release that cannot reach it never goes live."""
    if isinstance(STORE, SqliteStore):
        await asyncio.to_thread(STORE.create)
    await STORE.read("nobody", 0)
    yield


def middleware() -> Middleware:
    """Sessions by cookie, for the routes that want them. Behind TLS leave out `cookie_https_only`."""
    return Middleware(SessionMiddleware, store=STORE, lifetime=LIFETIME, rolling=True, cookie_https_only=False)
