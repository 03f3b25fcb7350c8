"""A cluster per test, ended and looked over whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.e2e.shop import Shop

FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@pytest.fixture
def shop(request: pytest.FixtureRequest) -> Iterator[Callable[..., Shop]]:
    """Makes clusters. Each ends with the test, which fails when a process of one is left."""
    with ExitStack() as stack:

        def make(**options: Any) -> Shop:
            made = Shop(**options)
            stack.callback(end, made)
            return made

        def end(made: Shop) -> None:
            failed = request.node.stash.get(FAILED, False)
            if failed:
                print(f"{made.base}: deployer.log\n{made.log_tail(60)}")
            made.close(check=not failed)

        yield make
