"""What of a release's behaviour only gunicorn's own hooks can do. Copied as gunicorn.conf.py, read from the cwd."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

import behaviour

KIND = behaviour.BEHAVIOUR
if KIND == "exits_zero":
    sys.exit(0)


def when_ready(server: Any) -> None:
    if KIND == "ignores_sigterm":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def post_worker_init(worker: Any) -> None:
    if KIND == "ignores_sigterm":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if KIND == "crash_in_soak":
        # 3 is what gunicorn takes for "failed to boot": the master gives up, as it should here.
        threading.Timer(0.3, os._exit, [3]).start()
