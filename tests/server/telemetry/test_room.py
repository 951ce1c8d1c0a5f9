"""How much room is left, as a real server says it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from critiq_server.telemetry.room import memory_limit
from tests.support.bundles import write_bundle
from tests.support.servers import make_settings, running


@pytest.mark.parametrize(
    ("version_2", "version_1", "total", "expected"),
    [
        ("2147483648\n", None, "16777216", 2**31),
        ("max\n", None, "16777216", 2**34),
        (None, "9223372036854771712\n", "16777216", 2**34),
        (None, "1073741824\n", "16777216", 2**30),
        (None, None, None, None),
    ],
)
def test_the_memory_limit_is_the_containers_or_the_machines(
    tmp_path: Path, version_2: str | None, version_1: str | None, total: str | None, expected: int | None
) -> None:
    limits = []
    for name, text in (("two", version_2), ("one", version_1)):
        limits.append(tmp_path / name)
        if text is not None:
            limits[-1].write_text(text)
    meminfo = tmp_path / "meminfo"
    if total is not None:
        meminfo.write_text(f"MemTotal:       {total} kB\nMemFree:        1 kB\n")
    assert memory_limit(limits, meminfo) == expected


async def test_a_server_exports_its_limits_and_the_space_where_it_writes(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    settings = make_settings(
        tmp_path,
        limits={"in_flight": 300},
        jobs={"path": tmp_path / "jobs.db"},
        features={"disk": {"path": tmp_path / "features"}},
        drift={"directory": tmp_path / "not there yet"},
    )
    async with running(settings) as app:
        value = app.metrics.registry.get_sample_value
        assert value("critiq_in_flight_limit") == 300
        limit = value("critiq_memory_limit_bytes")
        assert limit is not None
        assert 2**27 < limit < 2**50
        size = shutil.disk_usage(tmp_path).total
        for use in ("features", "jobs"):
            assert value("critiq_disk_size_bytes", {"use": use}) == size
            free = value("critiq_disk_free_bytes", {"use": use})
            assert free is not None
            assert 0 < free < size
        assert value("critiq_disk_free_bytes", {"use": "drift"}) is None
