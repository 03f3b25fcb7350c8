"""The manager asks how a worker ended that died while no manager looked."""

from __future__ import annotations

import json
import socket
import threading

from deployer.keeper.link import KeeperLink


def test_an_exit_that_is_told_a_moment_later_is_waited_for() -> None:
    ours, keepers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, keepers:
        link = KeeperLink(ours)
        link.starts = 2
        messages = [{"op": "exited", "pid": pid, "status": 9, "at": 0.0} for pid in (6, 7)]
        later = threading.Timer(0.1, lambda: [keepers.send(json.dumps(message).encode()) for message in messages])
        later.start()
        assert link.exit_of(7) == 9
        later.join()
        assert link.exits == {6: 9, 7: 9}


def test_a_keeper_that_is_newer_than_the_process_knows_nothing() -> None:
    ours, keepers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, keepers:
        assert KeeperLink(ours).exit_of(7) is None
