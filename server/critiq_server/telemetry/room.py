"""How much room is left: memory that the process may take, and free space where it writes."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where a container's limit is read, of version 2 and 1 of Linux's control groups."""
MEMINFO = Path("/proc/meminfo")


class RoomCollector(Collector):
    """Looked up whenever metrics are scraped.

    Args:
        directories: where the server writes, by use (features, jobs, drift).
    """

    def __init__(self, directories: Mapping[str, Path]) -> None:
        self._directories = dict(directories)

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return self._families()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        memory, free, size = self._families()
        limit = memory_limit()
        if limit is not None:
            memory.add_metric([], limit)
        for use, directory in self._directories.items():
            try:
                usage = shutil.disk_usage(directory)
            except OSError:
                continue  # gone, or not there yet: whoever writes to it says so
            free.add_metric([use], usage.free)
            size.add_metric([use], usage.total)
        yield from (memory, free, size)

    @staticmethod
    def _families() -> tuple[GaugeMetricFamily, ...]:
        memory = "Bytes of memory that the process may take: its container's limit, or the machine's memory."
        free = "Free bytes of the file system that holds what is written, by use (features, jobs, drift)."
        return (
            GaugeMetricFamily("critiq_memory_limit_bytes", memory),
            GaugeMetricFamily("critiq_disk_free_bytes", free, labels=["use"]),
            GaugeMetricFamily("critiq_disk_size_bytes", "Size of that file system, in bytes.", labels=["use"]),
        )


def memory_limit(limits: Iterable[Path] = CGROUP_LIMITS, meminfo: Path = MEMINFO) -> int | None:
    """Bytes that this process may take: the least of its container's limit and the machine's memory.

    ``None`` where neither can be read (on other systems than Linux).
    """
    found = []
    for path in limits:
        try:
            found.append(int(path.read_text()))
        except (OSError, ValueError):  # not that version of control groups, or "max"
            continue
    with contextlib.suppress(OSError):
        found += [1024 * int(line.split()[1]) for line in meminfo.read_text().splitlines() if "MemTotal" in line]
    return min(found, default=None)
