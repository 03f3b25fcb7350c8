"""`deployer up`: the cluster runs afterwards, and serves a release if there is anything to serve."""

from __future__ import annotations

import os
from collections.abc import Callable
from time import monotonic, sleep
from typing import Annotated

import typer

from deployer.cli.session import Session
from deployer.cli.watching import watch
from deployer.client.account import read_state
from deployer.client.client import Client, problem_error
from deployer.config.load import Loaded, load
from deployer.errors import DeployerError, Exit, UnavailableError
from deployer.launch import foreground as run_in_foreground
from deployer.launch import keeper_runs, launch
from deployer.paths import Layout
from deployer.wire.schema import DeployRequest, Problem, RolloutInfo, Status

START_LIMIT_S = 30.0
STARTS = 3  # at the most: a keeper that ends at once, again and again, has a reason
POLL_S = 0.02
PROBE_S = 1.0


def run(
    session: Session,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay in front: for systemd and containers.")
    ] = False,
    no_deploy: Annotated[bool, typer.Option("--no-deploy", help="Only start, whatever there is to deploy.")] = False,
) -> int:
    """Start the cluster, and deploy when there is no release yet.

    What runs already is left alone. Without a release the configured [source] is deployed, and the exit
    code is that deploy's.
    """
    loaded = load(session.file)
    if foreground:
        run_in_foreground(loaded, deploy=not no_deploy)
        raise AssertionError("foreground() replaces this process")
    status, new = start(session, loaded)
    started = "up" if new else "already up"
    if status.release is None and not no_deploy:
        session.out.note(f"{status.app} is {started}, manager pid {status.manager.pid}")
        return watch(session, _first_deploy(session, status))
    if session.out.style.json:
        session.out.result_json(status)
    else:
        serves = f", {status.release} is live" if status.release else ", nothing is deployed"
        session.out.result(f"{status.app} is {started}{serves} (manager pid {status.manager.pid})")
    return 0


def start(session: Session, loaded: Loaded) -> tuple[Status, bool]:
    """The cluster runs afterwards; was it started here?"""
    new = not _answers(session.client)
    # Also where the manager answers: its keeper may be gone, which `launch` repairs.
    return wait_until_ready(session.client, lambda: launch(loaded)), new


def _first_deploy(session: Session, status: Status) -> RolloutInfo:
    """The deploy that runs already (of another `up`, or from before the manager died), or a new one."""
    if status.rollout is not None:
        return status.rollout
    try:
        return session.client.deploy(DeployRequest(who=session.who))
    except DeployerError as error:
        # Two `up` at once: the other one was faster, and both may watch the one deploy.
        running = session.client.status().rollout if error.exit_code == Exit.BUSY else None
        if running is None:
            raise
        return running


def wait_until_ready(client: Client, start: Callable[[], str], limit: float = START_LIMIT_S) -> Status:
    """`start` and give status once the manager answers. Its own account of why it cannot start is the error to show.

    A manager.json without the token that `start` answered is what an earlier start left behind. The keeper that
    `start` found may have been ending: one that is gone without a word of its manager is started again.
    """
    token, starts = start(), 1
    give_up = monotonic() + limit
    client = Client(client.layout, timeout=PROBE_S)  # the socket outlives a manager that fails: ask again soon
    while True:
        gone = not keeper_runs(client.layout)  # before its word is read: what it has not said by then it never will
        state = read_state(client.layout)
        if state is not None and state.token == token:
            if state.state == "failed":
                raise problem_error(state.problem or Problem(what="the manager cannot start"))
            if state.state == "ready":
                try:
                    return client.status()
                except UnavailableError:
                    pass  # it died since it wrote that: its keeper starts another one
        if gone:
            if starts == STARTS:
                raise _never_ready(client.layout, "ended without a word")
            token, starts = start(), starts + 1
        if monotonic() >= give_up:
            raise _never_ready(client.layout, f"is not ready after {limit:.0f}s")
        sleep(POLL_S)


def _answers(client: Client) -> bool:
    try:
        Client(client.layout, timeout=PROBE_S).status()
    except UnavailableError:
        return False
    return True


def _never_ready(layout: Layout, how: str) -> UnavailableError:
    return UnavailableError(
        f"the supervisor was started and {how}",
        cause=f"its own log: {layout.own_log}",
        hint=f"tail -n 20 {os.path.relpath(layout.own_log)}",
    )
