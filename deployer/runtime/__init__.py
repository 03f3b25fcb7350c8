"""deployer's own worker runtime, and what it offers the application that it serves.

    import deployer.runtime as runtime

    runtime.release()            "v7"; None where deployer did not start this process
    runtime.slot()               1, 2, ...
    runtime.peers()              the other workers of the application, old release and new
    runtime.on_drain(callback)   called, or awaited, once this worker is told to stop
    runtime.broadcast(message)   to every worker of the application: anything that JSON can hold
    runtime.on_message(callback) called, or awaited, with each of these
    runtime.report("text")       shown by `deployer status` beside the worker

The import works inside a worker of `[worker] app` although deployer is not installed there; of deployer itself
nothing but this package comes with it. It needs the standard library and imports nothing of the rest of deployer:
it runs on the application's interpreter. `deployer.runtime.scoreboard` is what the manager reads.

Imports in this package are relative on purpose: in a worker it is loaded under a private name, since an application
may well have a package called `deployer` of its own.
"""

from __future__ import annotations

from .api import Peer, broadcast, on_drain, on_message, peers, release, report, slot

__all__ = ["Peer", "broadcast", "on_drain", "on_message", "peers", "release", "report", "slot"]
