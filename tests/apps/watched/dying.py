"""An end by the application's own hand. Its last words, a line of JSON in a file, say whose connections it held: what
was asked on those nobody can answer. Copied into a source tree.

All of it happens in the thread of the event loop, so that no connection is taken between the words and the end.
"""

import json
import os
import signal
import socket
import time


def soon(seconds, words):
    """Within so many seconds, whatever the loop does then."""
    signal.signal(signal.SIGALRM, lambda *_: now(words))
    signal.setitimer(signal.ITIMER_REAL, seconds)


def now(words):
    ports = peers()
    line = json.dumps({"pid": os.getpid(), "at": time.time(), "ports": ports}) + "\n"
    out = os.open(words, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
    os.write(out, line.encode())
    os._exit(3)


def peers():
    """The ports of those that are connected to this process."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(name))) as sock:
                if sock.family in (socket.AF_INET, socket.AF_INET6):
                    found.append(sock.getpeername()[1])
        except OSError:
            pass  # no socket, or one that listens
    return found
