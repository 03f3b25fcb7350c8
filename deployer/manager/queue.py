"""Rollouts that wait their turn: rows of state.db with the phase `queued`, first come first served.

A manager that dies takes none of them along: the next one finds the rows.
"""

from __future__ import annotations

import time

import msgspec

from deployer.manager.driver import problem_of
from deployer.rollout.events import Failure
from deployer.rollout.machine import Kind, Phase, Rollout, exit_code, outcome
from deployer.state.store import Store
from deployer.wire.schema import DeployRequest, RollbackRequest

QUEUED = "queued"

Waiting = DeployRequest | RollbackRequest


class Queue:
    """Adds, tells places, and takes out. Who begins the first one is `manager.commands`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def add(self, kind: Kind, request: Waiting, *, behind: str) -> int:
        """Journal the command; its rollout's number. `behind` says for people what it waits for."""
        with self._store.transaction():
            number = self._store.insert(
                "rollouts",
                kind=kind,
                state="{}",
                request=msgspec.json.encode(request).decode(),
                phase=QUEUED,
                previous=self._store.get("release"),
                who=request.who,
                message=request.message,
                started_at=time.time(),
            )
            state = Rollout(id=number, kind=kind, phase=Phase.STAGING, slots={}, target=number, previous=None)
            self._store.update("rollouts", "id", number, state=msgspec.json.encode(state).decode())
            place = self.numbers().index(number) + 1
            told = {"kind": kind, "place": place, "behind": behind, "who": request.who, "message": request.message}
            self._store.emit("rollout.queued", rollout=number, **told)
        return number

    def numbers(self) -> list[int]:
        """The rollouts that wait, next first."""
        rows = self._store.rows("SELECT id FROM rollouts WHERE phase = ? ORDER BY id", QUEUED)
        return [row["id"] for row in rows]

    def place(self, number: int) -> int | None:
        """1 is next; None: it does not wait."""
        numbers = self.numbers()
        return numbers.index(number) + 1 if number in numbers else None

    def command(self, number: int) -> tuple[Kind, Waiting]:
        row = self._store.row("SELECT kind, request FROM rollouts WHERE id = ?", number)
        assert row is not None
        kind = Kind(row["kind"])
        wanted: type[Waiting] = DeployRequest if kind is Kind.DEPLOY else RollbackRequest
        return kind, msgspec.json.decode(row["request"], type=wanted)

    def needs(self) -> set[str]:
        """Releases that a waiting rollback names."""
        waiting = [self.command(number)[1] for number in self.numbers()]
        return {command.release for command in waiting if isinstance(command, RollbackRequest) and command.release}

    def drop(self, number: int, failure: Failure) -> None:
        """It never begins. The command that waits hears of an end like any other."""
        row = self._store.row("SELECT state, started_at FROM rollouts WHERE id = ?", number)
        assert row is not None
        waiting = msgspec.json.decode(row["state"], type=Rollout)
        ended = msgspec.structs.replace(waiting, phase=Phase.FAILED, failure=failure)
        now, serving = time.time(), self._store.get("release")
        code, end = exit_code(ended), outcome(ended)
        with self._store.transaction():
            values = {"state": msgspec.json.encode(ended).decode(), "phase": ended.phase, "finished_at": now}
            self._store.update("rollouts", "id", number, **values, outcome=end, exit_code=code, serving=serving)
            self._store.emit(
                "rollout.finished",
                rollout=number,
                outcome=end,
                release=None,
                serving=serving,
                reason=failure.reason,
                exit_code=code,
                seconds=round(now - row["started_at"], 3),
                problem=problem_of(ended),
                tail=[],
            )
            self.tell_places()

    def tell_places(self) -> None:
        """Everyone who waits moved up."""
        for place, number in enumerate(self.numbers(), 1):
            self._store.emit("rollout.queued", rollout=number, place=place)
