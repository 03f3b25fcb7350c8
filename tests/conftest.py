"""Long tests first: the one that ends last must not run alone while the other processors have nothing to do."""

from __future__ import annotations

import pytest

HANGS_S = 600  # a long test that takes longer


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: takes many seconds; begun before the others")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.timeout(HANGS_S))
