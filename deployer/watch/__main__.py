"""`python -P -m deployer.watch`: watches a directory for the manager, and stages what was saved.

The words of both are in protocol.py. A process of its own: the manager imports neither what stages nor what watches,
and waits for no disk. It ends with its manager, or with the pipe of its orders.
"""

from __future__ import annotations

import gc
import os
import sys

from deployer.releases import process
from deployer.watch.protocol import ToManager, encode
from deployer.watch.watcher import EndedError, Orders, Watcher


def main() -> int:
    process.prepare_environment()
    process.die_with_parent()
    orders = Orders(0)
    try:
        watcher = Watcher(orders.first(), orders, _tell)
        gc.freeze()  # what was imported stays, in each fork too
        watcher.run()
    except (EndedError, BrokenPipeError):
        pass
    return 0


def _tell(word: ToManager) -> None:
    """One write a line, past any buffer."""
    rest = memoryview(encode(word))
    while rest:
        rest = rest[os.write(1, rest) :]


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)
