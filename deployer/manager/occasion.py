"""Which watch there is, as state.db has it; and the save that one of its rollouts is for."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from deployer.wire.schema import WatchRequest

FILES_TOLD = 20


class WatchKind(StrEnum):
    DEV = "dev"  # every save goes live
    HEAL = "heal"  # a fix of a deploy that failed is waited for


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    """One watch; the next manager goes on with it."""

    id: int
    kind: WatchKind
    path: str  # absolute
    who: str
    since: float  # seconds since the epoch
    request: WatchRequest | None = None  # of a dev watch
    holder_ticks: int = 0  # with the pid in the request: that very process
    message: str | None = None  # heal: of the deploy that failed
    rollout: int | None = None  # heal: that deploy's first rollout
    failed: str | None = None  # heal: what was last tried
    active: bool = True  # heal: the deploy has failed; until then saves are only noted


class Occasion(msgspec.Struct, frozen=True, kw_only=True):
    """Why a watch begins a rollout."""

    watch: int
    files: list[str] = []  # that were saved; the first of them
    saved_at: float | None = None  # seconds since the epoch; None: it is not for a save
    fixes: int | None = None  # the rollout that failed
