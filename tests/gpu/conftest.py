"""These tests are collected only where an NVIDIA driver is loaded; elsewhere there is nothing they could run on."""

from pathlib import Path

import pytest

collect_ignore_glob = [] if Path("/dev/nvidiactl").exists() else ["test_*.py"]

TIMEOUT_SECONDS = 180  # a GPU is held meanwhile; the longest of them starts a gang and compiles, which takes a minute


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test of this directory less time than those that hold no GPU have."""
    for item in items:
        if item.path.parent == Path(__file__).parent and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT_SECONDS))
