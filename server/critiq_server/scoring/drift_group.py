"""Drift over a group of serving processes, each of which keeps the distributions of its own part of the traffic.

They merge, and keep their error bound: so a report is of all traffic, whichever process makes it. Of those that answer,
the one with the lowest number looks for all now and then; the states, and the metrics, are what it found.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import structlog

from critiq_server.bundles.manifest import Reference
from critiq_server.others import Others
from critiq_server.scoring.drift import DriftMonitor, categories_of, chosen
from critiq_server.scoring.drift_files import key_of, parts_of
from critiq_server.scoring.drift_report import DriftJson, Named, describe, report
from critiq_server.scoring.drift_series import Series

logger = structlog.get_logger("critiq")

_FORM = 1
"""Another one where processes tell each other something else."""
_LONGEST_CHANGE = 10.0
"""Seconds that other processes have for setting a baseline."""


class GroupDrift:
    """What the faces ask of drift. Alone in its group, a process answers for itself.

    Args:
        monitor: of this process.
        others: of its group.
    """

    def __init__(self, monitor: DriftMonitor, others: Others) -> None:
        self._monitor, self._others = monitor, others
        self.labels = monitor.labels
        self._form = [_FORM, monitor.settings.slot_seconds]
        self._begun = 0
        """Baselines that were begun."""
        self._judged: dict[str, Series] = {}
        """By key: what this process found at the last look, if it was the one to look."""

    async def report(
        self, model: str = "", version: str = "", label: str | None = None, *, sketches: bool = False
    ) -> DriftJson:
        """What ``/v1/drift`` answers."""
        if self._others.count == 1:
            return await self._monitor.report(model, version, label, sketches=sketches)
        asked = {"model": model, "version": version, "label": label}
        replies = await self._others.ask("drift", asked)
        others, processes = replies.read(self._fitting)
        told = [await self.told(asked), *others]
        states = {key: state for each in told for key, state in each["states"].items()}
        now, entries = self._monitor.now(), []
        for key, series in (await _joined(self._monitor, told)).items():
            state, since = states.get(key, ("learning", 0.0))
            if state == "learning":  # nobody has looked since there is a baseline
                state = series.judge(now)
            series.state, series.since = state, since
            model, version, label, *_ = parts_of(key)
            entries.append(describe(model, version, label, series, now, sketches=sketches))
            await asyncio.sleep(0)  # some milliseconds each: requests come in between
        return report(self._monitor.settings, entries, now, processes)

    async def set_baseline(
        self,
        model: str,
        version: str = "",
        label: str | None = None,
        name: str = "",
        *,
        hours: float | None = None,
        requests: int | None = None,
    ) -> DriftJson:
        """As :meth:`DriftMonitor.set_baseline`, in all processes: enough values are those that all have together."""
        if self._others.count == 1:
            return self._monitor.set_baseline(model, version, label, name, hours=hours, requests=requests)
        self._monitor.check_baseline(hours, requests)
        asked = {"model": model, "version": version, "label": label, "name": name, "hours": hours}
        replies = await self._others.ask("drift_counts", asked)
        counts = Counter(await self.counted(asked))
        for found in replies.values.values():
            counts.update(found)
        keys = chosen(counts, hours, self._monitor.settings.least_count)
        change = {"keys": keys, "hours": hours, "requests": requests}
        await self.begin(change)
        replies = await self._others.ask("drift_begin", change, _LONGEST_CHANGE)
        answer = await self.report(model, version, label)
        entries = [
            entry
            for entry in answer.series
            if key_of(entry.model, entry.version, entry.label, entry.kind, entry.name) in keys
        ]
        return report(self._monitor.settings, entries, self._monitor.now(), replies.processes)

    async def look(self) -> None:
        """Judges what has changed, for all processes if that is up to this one; changes of states are logged."""
        if self._others.count == 1:
            for origin, series in self._monitor.fresh():
                self._monitor.look(origin, series)
                await asyncio.sleep(0)  # half a millisecond each: requests come in between
            return
        present = await self._others.ask("here")
        if min(present.values, default=self._others.number) < self._others.number:
            self._judged = {}
            return
        begun = self._begun
        replies = await self._others.ask("drift")
        others, _ = replies.read(self._fitting)
        judged = await _joined(self._monitor, [await self.told({}), *others])
        for key, series in judged.items():
            series.go_on_from(self._judged.get(key))
            model, version, label, *_ = parts_of(key)
            self._monitor.look((model, version, label), series)
            series.forget()
            await asyncio.sleep(0)
        if begun == self._begun:  # else it was of the baseline before
            self._judged = judged

    def watched(self) -> list[Named]:
        """The series with their states, for metrics: those of this process, or of the whole group where it looked."""
        if self._others.count == 1:
            return self._monitor.all()
        found = tuple(self._judged.items())  # the metrics are read in a thread
        return [(*parts_of(key)[:3], series) for key, series in found]

    def answers(self) -> Mapping[str, Callable[[Mapping[str, Any]], Awaitable[Any]]]:
        """What this process answers to the others, by what is asked."""
        return {
            "drift": self.told,
            "drift_counts": self.counted,
            "drift_begin": self.begin,
            "save": self._save,
        }

    async def told(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """All that this process has, of a model, version and label if they are asked for."""
        self._monitor.flush()
        series = []
        for model, version, label, each in self._monitor.all(
            asked.get("model", ""), asked.get("version", ""), asked.get("label")
        ):
            reference = None if each.reference is None else each.reference.model_dump()
            key = key_of(model, version, label, each.kind, each.name)
            series.append({"key": key, "reference": reference, **each.dump()})
            await asyncio.sleep(0)
        states = {key: (each.state, each.since) for key, each in self._judged.items()}
        return {"form": self._form, "series": series, "states": states}

    async def counted(self, asked: Mapping[str, Any]) -> dict[str, int]:
        """How many values each series that is asked for got in the last hours; 0 where no hours are given."""
        return self._monitor.counts(**asked)

    async def begin(self, change: Mapping[str, Any]) -> bool:
        """Begins a baseline, and forgets what was found by the one before."""
        self._monitor.begin(change["keys"], change["hours"], change["requests"], self._monitor.now())
        self._begun += 1
        for key in change["keys"]:
            self._judged.pop(key, None)
        return True

    async def _save(self, asked: Mapping[str, Any]) -> bool:
        self._monitor.flush()
        self._monitor.save()
        return True

    def _fitting(self, reply: Any) -> Any:
        """``None`` for what cannot be merged, while processes are replaced by others with other code or settings."""
        return reply if reply.get("form") == self._form else None


async def _joined(monitor: DriftMonitor, told: Iterable[Mapping[str, Any]]) -> dict[str, Series]:
    """What several processes told, by key, merged."""
    found: dict[str, Series] = {}
    for entry in (entry for each in told for entry in each["series"]):
        key = entry["key"]
        *_, kind, name = parts_of(key)
        try:
            if key in found:
                found[key].merge(entry)
            else:
                reference = None if entry["reference"] is None else Reference.model_validate(entry["reference"])
                series = Series(kind, name, monitor.settings, reference, categories_of(kind, name))
                series.restore(entry)
                found[key] = series
        except ValueError as error:
            logger.warning("what a process knows of drift does not fit", series=key, reason=str(error))
        await asyncio.sleep(0)
    return found
