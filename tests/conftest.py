from __future__ import annotations

import os
import signal
import sys
from collections.abc import Generator, Iterator
from typing import Any

import pytest

# Settings of the developer's own server must not change what is tested, here or in the servers that tests start.
for _name in [name for name in os.environ if name.upper().startswith("CRITIQ_")]:
    if _name != "CRITIQ_RELIABILITY":  # no setting: it says how long tests of reliability take
        del os.environ[_name]

# Several processes share the tests: a thread each for the networks, or they would wait for one another.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _children_heed_signals() -> None:
    """What a shell starts in the background ignores SIGINT, under nohup SIGHUP, and so would the servers of tests.

    A handler is not inherited: they begin as at a terminal, and this process still ignores what it was to ignore.
    """
    for name in ("SIGINT", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda number, frame: None)


@pytest.fixture(scope="module", autouse=True)
def _forgotten_servers() -> Iterator[None]:
    """FastAPI remembers the last thousands of endpoints that it has seen, and with each its server and the models."""
    yield
    for remembered in vars(sys.modules.get("fastapi.dependencies.models", object)).values():
        if hasattr(remembered, "cache_clear"):
            remembered.cache_clear()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: processes share the files, and a long one at the end would keep one alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """On a user's machine a test may skip with a reason; CI has all that a test needs, so there a skip fails."""
    report = yield
    if report.skipped and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report
