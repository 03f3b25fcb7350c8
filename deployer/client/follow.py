"""Events of a rollout to its end, or of everything, whatever becomes of the manager meanwhile.

Events have numbers and are kept in state.db: when the connection breaks, the next manager is asked for
what comes after the last number seen, so none is lost and none is told twice.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from time import monotonic, sleep
from typing import Any

import msgspec

from deployer.client.client import Client
from deployer.client.transport import Stream
from deployer.errors import DeployerError, Exit, UnavailableError
from deployer.wire.schema import Event

RECONNECT_LIMIT_S = 30.0
"""The keeper starts a new manager within a second; one that needs longer than this does not come."""
RETRY_PAUSE_S = 0.1
SILENCE_LIMIT_S = 25.0
"""An empty line comes each 10 s: two missed, and the manager hangs or the connection is dead."""

FINISHED = "rollout.finished"


class FollowTimeout(Exception):  # noqa: N818 - not an error: the rollout goes on
    """The time that the caller gave is over; what was followed goes on."""


class Follower:
    """Iterate over it for events; `after` is the number of the last one seen.

    `deadline` is a point of `monotonic()`, where `FollowTimeout` is raised. `waiting` is called once for
    each break, with True when the connection is lost and False when it is back. `patient`: also at first a manager
    that is not there is waited for.
    """

    def __init__(
        self,
        client: Client,
        *,
        rollout: int | None = None,
        after: int = 0,
        deadline: float | None = None,
        waiting: Callable[[bool], None] = lambda _: None,
        reconnect_limit: float = RECONNECT_LIMIT_S,
        silence_limit: float = SILENCE_LIMIT_S,
        patient: bool = False,
    ) -> None:
        self.client = client
        self.rollout = rollout
        self.after = after
        self._deadline = deadline
        self._waiting = waiting
        self._limit = reconnect_limit
        self._silence = silence_limit
        self._patient = patient or rollout is not None
        self._give_up: float | None = None  # set while the connection is broken
        self._silent = False  # whether the last connection ended because nothing came over it

    def __iter__(self) -> Generator[Event, None, None]:
        while True:
            with closing(self._connect()) as stream:
                for event in self._read(stream):
                    self._alive()
                    if event is None:
                        continue
                    yield event
                    if self.rollout is not None and event.event == FINISHED:
                        return
            if self._silent:
                self._alive()  # it answered us and then had nothing to say: not the same as not being there
            else:
                self._broken()
            self._pause()

    # Private.

    def _connect(self) -> Stream:
        """A stream from the next event on.

        Who follows a rollout has just heard of it from a manager that lived: an absent one is waited for.
        Who only wants to listen is told at once that nobody is there.
        """
        while True:
            try:
                return self.client.events(after=self.after, rollout=self.rollout, follow=True)
            except DeployerError as error:
                if error.exit_code != Exit.UNAVAILABLE or (not self._patient and self._give_up is None):
                    raise
                self._broken(error)
            self._pause()

    def _broken(self, error: DeployerError | None = None) -> None:
        """A manager that answers and hangs up without a word must not keep us here for ever either: only
        what comes over a connection (`_alive`) ends the count."""
        if self._give_up is None:
            self._give_up = monotonic() + self._limit
            self._waiting(True)
        elif monotonic() >= self._give_up:
            raise self._lost(error) from error

    def _alive(self) -> None:
        if self._give_up is not None:
            self._give_up = None
            self._waiting(False)

    def _read(self, stream: Stream) -> Iterator[Event | None]:
        """Events not seen before, None for a sign of life; ends where the stream ends."""
        self._silent = False
        while True:
            try:
                line = stream.readline(self._patience())
            except TimeoutError:
                self._check_deadline()
                self._silent = True
                return
            if line is None:
                return
            if not line.strip():
                yield None
                continue
            event = decode_event(line)
            if event.seq > self.after:
                self.after = event.seq
                yield event

    def _patience(self) -> float:
        if self._deadline is None:
            return self._silence
        self._check_deadline()
        return max(0.001, min(self._silence, self._deadline - monotonic()))

    def _check_deadline(self) -> None:
        if self._deadline is not None and monotonic() >= self._deadline:
            raise FollowTimeout

    def _pause(self) -> None:
        self._check_deadline()
        sleep(RETRY_PAUSE_S)

    def _lost(self, error: DeployerError | None) -> UnavailableError:
        return UnavailableError(
            f"the supervisor is gone and did not come back in {self._limit:.0f}s",
            cause=(error.cause or error.what) if error else "it breaks off every conversation",
            hint="deployer up",
        )


def decode_event(line: bytes) -> Event:
    """An event from its flat line: what is not common to all events becomes `data`."""
    fields: dict[str, Any] = msgspec.json.decode(line)
    common = {key: fields.pop(key) for key in ("seq", "ts", "event", "rollout") if key in fields}
    return msgspec.convert(common | {"data": fields}, Event)


def flatten(event: Event) -> dict[str, Any]:
    """The flat form again, as the stream and `--json` print it."""
    head = {"seq": event.seq, "ts": event.ts, "event": event.event, "rollout": event.rollout}
    return head | event.data


def past_events(client: Client, rollout: int) -> list[Event]:
    """What has happened in a rollout until now, without waiting for more."""
    with closing(client.events(rollout=rollout)) as stream:
        lines = iter(lambda: stream.readline(client.timeout), None)
        return [decode_event(line) for line in lines if line.strip()]
