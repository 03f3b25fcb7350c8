"""Kills a manager at one of its commits, without a hook in the product: found by Python on PYTHONPATH.

`KILL_ORDER` names a file. While it is there, every transaction on state.db is named after the events that it adds
("hook.started before_stage"), or else after the tables that it changes, and noted in FILE.seen. The file's content is
`where how turn name`: the transaction that is the turn-th of that name is killed right `before` its COMMIT, or `after`
it, at the next statement of any kind, when what follows from the commit has been begun. `how` is `manager`, or `keeper`
for both of them. The file is removed before that: the next manager lives.

SQLite tells its statements to a trace callback, just before it carries them out.

What a manager sends to a worker of an `app` has points of the same kind: `send serve`, sockets for the preflight's
worker, which becomes the canary, `send become`, to the process that becomes a template, and `send fork`, to that.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sqlite3
import sys
import threading
from typing import Any

CONNECT = sqlite3.connect
SEND_FDS = socket.send_fds
EVENT = re.compile(r"INSERT INTO events \(.*?\) VALUES \([^,]*, *'([\w.]+)'(?:.*?\"(?:stage|phase)\":\"(\w+)\")?", re.S)
SENT = re.compile(rb'{"op":"(serve|fork|become)"')
CHANGE = re.compile(r"(INSERT(?: OR REPLACE)? INTO|UPDATE|DELETE FROM) (\w+)")


class Killer:
    def __init__(self, order: str) -> None:
        self._order = order
        self._parts: list[str] = []
        self._done: str | None = None  # the transaction that was committed last, until the next statement

    def connect(self, *args: Any, **options: Any) -> sqlite3.Connection:
        db = CONNECT(*args, **options)
        if threading.current_thread() is threading.main_thread():  # back-ups are made by another
            db.set_trace_callback(self.statement)
        return db

    def statement(self, sql: str) -> None:
        done, self._done = self._done, None
        if done is not None:
            self._at("after", done)
        if sql.startswith("BEGIN"):
            self._parts.clear()
        elif sql.startswith("COMMIT"):
            self._done = " + ".join(self._parts)
            self._at("before", self._done)
        elif match := EVENT.match(sql):
            self._parts.append(" ".join(filter(None, match.groups())))
        elif match := CHANGE.match(sql):
            self._parts.append(f"({match[2]})")

    def send_fds(self, sock: socket.socket, buffers: list[bytes], *rest: Any) -> int:
        match = SENT.match(buffers[0])
        name = f"send {match[1].decode()}" if match else None
        if name:
            self._at("before", name)
        sent = SEND_FDS(sock, buffers, *rest)
        if name:
            self._at("after", name)
        return sent

    def _at(self, where: str, name: str) -> None:
        try:
            with open(self._order) as file:
                wanted = file.read()
        except FileNotFoundError:
            return
        with open(f"{self._order}.seen", "a+") as file:
            file.write(f"{where} {name}\n")
            file.seek(0)
            turn = file.read().splitlines().count(f"{where} {name}")
        how = wanted.split(" ", 2)[1]
        if wanted != f"{where} {how} {turn} {name}":
            return
        os.unlink(self._order)
        if how == "keeper":
            os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


def _install() -> None:
    if "KILL_ORDER" not in os.environ or "deployer.daemon" not in sys.orig_argv:
        return
    order = os.environ.pop("KILL_ORDER")
    del os.environ["PYTHONPATH"]  # workers, hooks and builds know nothing of this
    killer = Killer(order)
    sqlite3.connect, socket.send_fds = killer.connect, killer.send_fds


_install()
