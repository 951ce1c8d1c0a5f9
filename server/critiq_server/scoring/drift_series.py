"""One stream of values: what is kept of it, what it is held against, and whether it drifts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from critiq_server.bundles.manifest import Reference
from critiq_server.scoring.drift_settings import DriftSettings
from critiq_server.scoring.drift_statistics import (
    Comparison,
    Yardstick,
    compare_distributions,
    compare_moments,
    significance,
)
from critiq_server.scoring.drift_windows import BASELINE_K, LARGEST, Moments, Ring, Sketch, Slot

State = Literal["learning", "steady", "warning", "alarm"]
Kind = Literal["score", "input", "embedding"]
SEVERITY: tuple[State, ...] = ("learning", "steady", "warning", "alarm")

_YEAR = 365.25 * 86400
_HIGHEST_LEVEL = 40
"""Of slots: each level doubles the time that a slot covers."""
_EMBEDDING_SIZE = 5.0
"""Embeddings: the least shift that counts, in standard deviations, is so many times the least Kolmogorov-Smirnov
statistic: 0.1 and 0.02. A shift of 0.1 makes a statistic of 0.04, but in a vector most coordinates hardly move."""


@dataclass(frozen=True, slots=True)
class Rule:
    """When a difference is no longer chance.

    Every ``check_seconds`` each of ``windows`` windows of a series is tested once. All these tests share the false
    alarms that a year may bring (Bonferroni), which holds however the tests depend on one another; so the level of one
    test is tiny. The price is small, since the bound on the probability falls exponentially with the count.
    """

    alarm: float
    warning: float
    least_size: float
    least_count: int
    clear_seconds: float

    @classmethod
    def of(cls, settings: DriftSettings, kind: Kind, windows: int) -> Rule:
        tests = _YEAR / settings.check_seconds * windows
        least = settings.least_ks * (_EMBEDDING_SIZE if kind == "embedding" else 1)
        return cls(
            settings.alarms_per_year / tests,
            settings.warnings_per_year / tests,
            least,
            settings.least_count,
            settings.clear_seconds,
        )

    def judge(self, found: Comparison) -> State:
        if found.size < self.least_size:
            return "steady"
        return "alarm" if found.p_value <= self.alarm else "warning" if found.p_value <= self.warning else "steady"


@dataclass(frozen=True, slots=True)
class Window:
    """The time from ``start`` to ``end`` (seconds since 1970) held against what there is."""

    start: float
    end: float
    count: int
    comparisons: dict[str, Comparison]


@dataclass(eq=False)
class Series:
    """A stream of one quantity of one model version and caller label.

    Without a reference, or where the settings say so, it goes by its baseline: the first values, or what an operator
    froze. Times are seconds since 1970.
    """

    kind: Kind
    name: str
    settings: DriftSettings
    reference: Reference | None = None
    categories: tuple[str, ...] = ()
    """Of a quantity that has names for values: value ``i`` is ``categories[i]``."""
    wanted: int = 0
    """Values of the baseline that is being learnt."""
    count: int = 0
    state: State = "steady"
    since: float = 0.0
    """When ``state`` began; 0: never looked at."""
    frozen: float | None = None
    """When the baseline became fixed; ``None`` while it is being learnt."""
    baseline: Sketch | Moments | None = None
    fresh: bool = False
    """Whether there are values that no look has seen."""
    latest: Window | None = None
    """The window that differed most surely at the last look."""
    ring: Ring[Any] = field(init=False)
    _calm: float | None = field(init=False, default=None)
    _yardstick: Yardstick | None = field(init=False, default=None)
    _reference: Yardstick | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        settings = self.settings
        self.ring = Ring(settings.slot_seconds, settings.keep_days * 86400, self._empty)
        self.rule = Rule.of(settings, self.kind, len(self.ring.lengths))
        self._width = 0
        if self.reference is not None:
            self._reference = Yardstick.of_reference(self.reference)
        if not self.wanted:
            self.wanted = settings.baseline_requests
            if self.kind == "embedding":
                self.wanted = max(settings.least_count, self.wanted // max(1, settings.embedding_every))
        if self.against == "baseline":
            self.state = "learning"

    @property
    def against(self) -> str:
        """What ``state`` goes by."""
        return "reference" if self.settings.against == "reference" and self.reference is not None else "baseline"

    def update(self, values: NDArray[Any], now: float) -> bool:
        """Takes in ``values`` [n], of embeddings [n, width]. Returns whether they completed a baseline."""
        if self.kind == "embedding":
            self._width = values.shape[1]
        self.count += len(values)
        self.fresh = True
        if self.frozen is None and self.against == "baseline":
            if self.baseline is None:
                self.baseline = self._empty(BASELINE_K)
            self.baseline.update(values)
            if self.baseline.count >= self.wanted:
                self._fix(now)
                return True
        self.ring.update(values, now)
        return False

    def look(self, now: float) -> State:
        """Judges the windows; returns the state, which is kept: it rises at once, and falls after a calm while."""
        found = self.judge(now)
        if found == "learning" or SEVERITY.index(found) >= SEVERITY.index(self.state):
            self._calm = None
            self._enter(found, now)
        elif self._calm is None:
            self._calm = now
        elif now - self._calm >= self.rule.clear_seconds:
            self._calm = None
            self._enter(found, now)
        return self.state

    def judge(self, now: float) -> State:
        """What the windows say by themselves; ``latest`` is then the one that says most."""
        self.fresh = False
        if self.against == "baseline" and self.frozen is None:
            self.latest = None
            return "learning"
        found: State = "steady"
        surest: tuple[int, Comparison] | None = None
        for start, count, test in self._tests(now):
            if count >= self.rule.least_count:
                found = max(found, self.rule.judge(test), key=SEVERITY.index)
                if surest is None or test.p_value <= surest[1].p_value:
                    surest = start, test
        self.latest = None if surest is None else self._window(*surest, now)
        return found

    def windows(self, now: float) -> list[Window]:
        """The windows with enough values, shortest first."""
        unit = self.ring.unit
        return [
            Window(start * unit, max(now, start * unit), total.count, self._compare(total))
            for start, total in self.ring.windows(now)
            if total.count >= self.rule.least_count
        ]

    def telling(self, windows: list[Window]) -> Window | None:
        """The one that differs most surely from what the state goes by; without that the longest."""
        judged = [window for window in windows if self.against in window.comparisons]
        if not judged:
            return windows[-1] if windows else None
        return min(reversed(judged), key=lambda window: window.comparisons[self.against].p_value)

    def count_since(self, now: float, seconds: float) -> int:
        """How many values came in the last ``seconds``, and since the baseline; whole slots count."""
        return sum(slot.summary.count for slot in self._since(now, seconds))

    def freeze(self, now: float, seconds: float) -> None:
        """Makes what came in the last ``seconds`` the baseline; there must be something (:meth:`count_since`)."""
        newest = self._empty(BASELINE_K)
        for slot in self._since(now, seconds):
            newest.merge(slot.summary)
        self.baseline = newest
        self._fix(now)

    def learn(self, requests: int, now: float) -> None:
        """Forgets the baseline; the next ``requests`` values become one."""
        self.wanted, self.frozen, self.baseline, self._yardstick = requests, None, None, None
        self.ring.clear()
        self._enter("learning" if self.against == "baseline" else "steady", now)

    def summary(self, window: Window, now: float) -> Sketch | Moments:
        """What ``window`` holds, merged."""
        for start, total in self.ring.windows(now):
            if start * self.ring.unit == window.start:
                copied: Sketch | Moments = total.copy()
                return copied
        raise KeyError(window.start)

    def dump(self) -> dict[str, Any]:
        """All that is needed to go on elsewhere, as JSON; :meth:`restore` reads it."""
        return {
            "wanted": self.wanted,
            "count": self.count,
            "state": self.state,
            "since": self.since,
            "frozen": self.frozen,
            "baseline": self.baseline.dump() if self.baseline is not None else None,
            "unit": self.ring.unit,
            "slots": [{"start": slot.start, "level": slot.level, **slot.summary.dump()} for slot in self.ring.slots],
        }

    def restore(self, dumped: dict[str, Any]) -> None:
        """Takes over what :meth:`dump` gave. Raises ``ValueError``, and changes nothing, if it cannot be read.

        Slots of another length than the settings' are left out; the baseline is kept.
        """
        load: Callable[[dict[str, Any]], Any] = Moments.load if self.kind == "embedding" else Sketch.load
        try:
            baseline = load(dumped["baseline"]) if dumped["baseline"] is not None else None
            slots = [Slot(int(slot["start"]), int(slot["level"]), load(slot)) for slot in dumped["slots"]]
            wanted, count, since = int(dumped["wanted"]), int(dumped["count"]), float(dumped["since"])
            frozen = float(dumped["frozen"]) if dumped["frozen"] is not None else None
            state, unit = dumped["state"], float(dumped["unit"])
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        if not all(0 <= number <= LARGEST for number in (wanted, count, *(slot.start for slot in slots))):
            raise ValueError(f"a count or a time is below 0 or above {LARGEST}")
        if not all(0 <= slot.level <= _HIGHEST_LEVEL for slot in slots):
            raise ValueError(f"a slot's level is below 0 or above {_HIGHEST_LEVEL}")
        if state not in SEVERITY or (frozen is not None and baseline is None):
            raise ValueError(f"state {state!r} with{'out' if baseline is None else ''} a baseline")
        if self.kind == "embedding":
            summaries = [slot.summary for slot in slots] + ([baseline] if baseline is not None else [])
            widths = {len(summary.sums) for summary in summaries}
            if len(widths) > 1:
                raise ValueError(f"its vectors have {' or '.join(map(str, sorted(widths)))} coordinates")
            self._width = widths.pop() if widths else 0
        self.wanted, self.count, self.since, self.frozen, self.baseline = wanted, count, since, frozen, baseline
        self.state = state
        self._yardstick = None
        if unit == self.ring.unit:
            self.ring.merge(slots)
        self.fresh = True

    def merge(self, dumped: dict[str, Any]) -> None:
        """Adds what another server's or process's series of the same quantity dumped.

        Baselines that are finished are joined, or else those that are being learnt. Raises ``ValueError`` if it does
        not fit.
        """
        other = Series(self.kind, self.name, self.settings, self.reference, self.categories)
        other.restore(dumped)
        if dumped["unit"] != self.ring.unit:
            raise ValueError(f"its windows are made of {dumped['unit']:g} s, these of {self.ring.unit:g} s")
        self._width, other._width = self._width or other._width, other._width or self._width
        if other._width != self._width:
            raise ValueError(f"its vectors have {other._width} coordinates, these {self._width}")
        self.ring.merge(other.ring.slots)
        self.count += other.count
        self.wanted += other.wanted
        self._yardstick = None
        if (self.frozen is None) != (other.frozen is None):
            if other.frozen is not None:
                self.baseline, self.frozen = other.baseline, other.frozen
            return
        if self.frozen is not None and other.frozen is not None:
            self.frozen = max(self.frozen, other.frozen)
        baselines: list[Any] = [each for each in (self.baseline, other.baseline) if each is not None]
        if baselines:
            self.baseline = self._empty(BASELINE_K)
            for each in baselines:
                self.baseline.merge(each)

    def go_on_from(self, before: Series | None) -> None:
        """Takes over the state that the last look at the same quantity gave; ``None``: there was none."""
        self.state = "learning" if self.against == "baseline" and self.frozen is None else "steady"
        self.since, self._calm = 0.0, None
        if before is not None:
            self.state, self.since, self._calm = before.state, before.since, before._calm

    def forget(self) -> None:
        """Lets go of all values; the state, and what the last look found, stay."""
        self.ring.clear()
        self.baseline = self._yardstick = None

    def _since(self, now: float, seconds: float) -> list[Slot[Any]]:
        earliest = int(now // self.ring.unit) - math.ceil(seconds / self.ring.unit)
        return [slot for slot in self.ring.slots if slot.start > earliest]

    def _tests(self, now: float) -> Iterator[tuple[int, int, Comparison]]:
        """``(start, count, result)`` of each window; ``start`` in units of the ring.

        Shares of slots add up to those of a window, and those of all slots but the newest are known already: so a look
        costs a twentieth of merging the sketches.
        """
        alike = self.settings.count_as_one
        if isinstance(self.baseline, Moments):
            for start, total in self.ring.windows(now):
                yield start, total.count, compare_moments(total, self.baseline, alike)
            return
        yardstick = self.yardstick(self.against)
        below, count, error = np.zeros((2, len(yardstick.points))), 0, 0.0
        for start, added in self.ring.growth(now):
            for slot in added:
                values: Sketch = slot.summary
                if not values.count:
                    continue
                if slot.known is None or slot.known[:2] != (yardstick, values.count):
                    # Of a copy: a sketch that was asked keeps all its values a second time, sorted.
                    slot.known = (yardstick, values.count, values.count * yardstick.shares_of(values.copy()))
                below += slot.known[2]
                count += values.count
                error += values.count * values.rank_error
            if count:
                yield start, count, significance(below / count, count, error / count, yardstick, alike)

    def _window(self, start: int, test: Comparison, now: float) -> Window:
        """The window from ``start`` with all figures; ``test`` keeps its own, which merging would round otherwise."""
        total = next(total for begin, total in self.ring.windows(now) if begin == start)
        comparisons = self._compare(total)
        comparisons[self.against] = replace(
            comparisons[self.against], size=test.size, p_value=test.p_value, margin=test.margin
        )
        return Window(start * self.ring.unit, now, total.count, comparisons)

    def _compare(self, total: Any) -> dict[str, Comparison]:
        found, alike = {}, self.settings.count_as_one
        if self.frozen is not None and self.baseline is not None:
            if isinstance(self.baseline, Moments):
                found["baseline"] = compare_moments(total, self.baseline, alike)
            else:
                found["baseline"] = compare_distributions(total, self.yardstick("baseline"), alike)
        if self._reference is not None:
            found["reference"] = compare_distributions(total, self._reference, alike)
        return found

    def yardstick(self, against: str) -> Yardstick:
        """Raises ``KeyError`` if there is none."""
        if against == "reference" and self._reference is not None:
            return self._reference
        if against == "baseline" and self.frozen is not None and isinstance(self.baseline, Sketch):
            if self._yardstick is None:
                self._yardstick = Yardstick.of_sketch(self.baseline.copy())
            return self._yardstick
        raise KeyError(against)

    def _fix(self, now: float) -> None:
        """What came before belongs to the baseline, or to what it was before; neither is to be held against it."""
        self.frozen, self._yardstick = now, None
        self.ring.clear()
        self._enter("steady", now)

    def _enter(self, state: State, now: float) -> None:
        if state != self.state or not self.since:
            self.state, self.since = state, now

    def _empty(self, k: int | None = None) -> Any:
        if self.kind == "embedding":
            return Moments(self._width)
        return Sketch() if k is None else Sketch(k)
