"""Following a rollout through broken connections: no event lost, none twice, no waiting for ever."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic

import pytest
from scripted_manager import ScriptedManager, event

from deployer.client.client import Client
from deployer.client.follow import Follower, FollowTimeout, decode_event, flatten, past_events
from deployer.errors import DeployerError, UnavailableError
from deployer.paths import Layout

EVENTS = [
    event(3, "rollout.started", kind="deploy"),
    event(4, "rollout.phase", phase="staging"),
    event(6, "slot.moved", slot=1),
    event(9, "rollout.finished", outcome="promoted", exit_code=0),
]


def test_events_come_in_order_and_the_stream_ends_with_the_rollout(manager: ScriptedManager, layout: Layout) -> None:
    manager.events = [*EVENTS, event(10, "rollout.started", rollout=13)]

    assert [found.seq for found in Follower(Client(layout), rollout=12)] == [3, 4, 6, 9]


@pytest.mark.parametrize("cuts", [[3], [4], [9], [3, 4, 6, 9]])
def test_a_broken_connection_is_taken_up_where_it_broke(
    manager: ScriptedManager, layout: Layout, cuts: list[int]
) -> None:
    manager.events, manager.cut_after = list(EVENTS), list(cuts)
    breaks: list[bool] = []

    found = [found.seq for found in Follower(Client(layout), rollout=12, waiting=breaks.append)]

    assert found == [3, 4, 6, 9]
    assert manager.cut_after == []
    assert breaks == [True, False] * len(cuts)


def test_a_stream_that_repeats_events_is_seen_through(manager: ScriptedManager, layout: Layout) -> None:
    lines = [b'{"seq":3,"ts":1,"event":"a","rollout":12}\n'] * 2
    lines.append(b'{"seq":4,"ts":1,"event":"rollout.finished","rollout":12}\n')
    manager.streams["/v1/events"] = lambda query: iter(lines)

    assert [found.seq for found in Follower(Client(layout), rollout=12)] == [3, 4]


def test_a_manager_that_never_comes_back_is_given_up(layout: Layout) -> None:
    with pytest.raises(UnavailableError, match="did not come back") as caught:
        list(Follower(Client(layout), rollout=12, reconnect_limit=0.2))

    assert caught.value.hint == "deployer up"


def test_who_is_patient_waits_at_first_too_and_who_only_listens_is_told_at_once(layout: Layout) -> None:
    with pytest.raises(UnavailableError, match="did not come back"):
        list(Follower(Client(layout), patient=True, reconnect_limit=0.2))
    with pytest.raises(UnavailableError, match="no supervisor runs"):
        list(Follower(Client(layout)))


def test_a_manager_that_hangs_up_again_and_again_is_given_up(manager: ScriptedManager, layout: Layout) -> None:
    manager.streams["/v1/events"] = lambda query: iter([])

    with pytest.raises(UnavailableError, match="did not come back"):
        list(Follower(Client(layout), rollout=12, reconnect_limit=0.3))


def test_a_connection_on_which_nothing_comes_is_made_anew_and_is_no_break(
    manager: ScriptedManager, layout: Layout
) -> None:
    calls: list[dict[str, str]] = []
    breaks: list[bool] = []

    def stream(query: dict[str, str]) -> Iterator[bytes]:
        calls.append(query)
        if len(calls) < 8:  # longer in all than the limit for a manager that is gone
            manager.hold.wait(0.3)
            return
        yield b'{"seq":4,"ts":1,"event":"rollout.finished","rollout":12}\n'

    manager.streams["/v1/events"] = stream

    follower = Follower(Client(layout), rollout=12, reconnect_limit=0.3, silence_limit=0.1, waiting=breaks.append)

    assert [found.seq for found in follower] == [4]
    assert breaks == []


def test_who_only_listens_is_told_at_once_that_nobody_is_there(layout: Layout) -> None:
    with pytest.raises(UnavailableError) as caught:
        list(Follower(Client(layout)))

    assert caught.value.hint == "deployer up"


def test_a_refusal_is_no_reason_to_try_again(manager: ScriptedManager, layout: Layout) -> None:
    manager.answers["GET /v1/events"] = 404, {"error": {"what": "no rollout 12", "exit": 2}}

    with pytest.raises(DeployerError, match="no rollout 12"):
        list(Follower(Client(layout), rollout=12))

    assert len(manager.requests) == 1


def test_the_deadline_ends_the_wait_between_events(manager: ScriptedManager, layout: Layout) -> None:
    manager.events = EVENTS[:2]
    started = monotonic()
    events = iter(Follower(Client(layout), rollout=12, deadline=started + 0.3))

    assert [next(events).seq, next(events).seq] == [3, 4]
    with pytest.raises(FollowTimeout):
        next(events)
    assert monotonic() - started >= 0.3


def test_the_deadline_ends_the_wait_for_a_manager_too(layout: Layout) -> None:
    with pytest.raises(FollowTimeout):
        list(Follower(Client(layout), rollout=12, deadline=monotonic() + 0.2))


def test_past_events_are_read_without_waiting(manager: ScriptedManager, layout: Layout) -> None:
    manager.events = EVENTS[:3]

    assert [found.seq for found in past_events(Client(layout), 12)] == [3, 4, 6]
    assert manager.queries("GET /v1/events") == [{"after": "0", "rollout": "12"}]


def test_the_flat_form_survives_the_way_there_and_back() -> None:
    line = b'{"seq":1,"ts":2.5,"event":"worker.ready","rollout":null,"slot":1,"pid":7}'

    found = decode_event(line)

    assert found.data == {"slot": 1, "pid": 7}
    assert flatten(found) == {"seq": 1, "ts": 2.5, "event": "worker.ready", "rollout": None, "slot": 1, "pid": 7}
