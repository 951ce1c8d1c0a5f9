"""What is kept of a stream of values: summaries that merge, in slots of time that grow coarser with age."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
from datasketches import kll_floats_sketch
from numpy.typing import NDArray

WINDOW_K, BASELINE_K = 1024, 4096
"""Sizes of KLL sketches (Karnin, Lang, Liberty: Optimal quantile approximation in streams, FOCS 2016): ranks of all
values at once are right to 0.36 % and 0.10 %, with 99 % confidence; up to about so many values they are exact."""


class Summary(Protocol):
    """What a slot holds. ``merge`` takes in another one of the same kind and leaves that as it was."""

    @property
    def count(self) -> int: ...
    def update(self, values: NDArray[Any]) -> None: ...
    def merge(self, other: Self) -> None: ...
    def copy(self) -> Self: ...
    def dump(self) -> dict[str, Any]: ...


class Sketch:
    """The distribution of single values, as float32."""

    def __init__(self, k: int = WINDOW_K) -> None:
        self._kll = kll_floats_sketch(k)

    @property
    def count(self) -> int:
        return int(self._kll.n)

    @property
    def rank_error(self) -> float:
        """How far any rank is off at the most, with 99 % confidence; 0 while nothing was left out."""
        return float(self._kll.normalized_rank_error(True)) if self._kll.is_estimation_mode() else 0.0

    def update(self, values: NDArray[Any]) -> None:
        """Takes in ``values`` [n]; NaN is left out."""
        self._kll.update(np.ascontiguousarray(values, np.float32))

    def merge(self, other: Sketch) -> None:
        self._kll.merge(other._kll)

    def copy(self) -> Sketch:
        twin = Sketch(self._kll.k)
        twin.merge(self)
        return twin

    def cdf(self, points: NDArray[np.float32], *, inclusive: bool) -> NDArray[np.float64]:
        """Share of the values at or below (``inclusive``) or below each of ``points``, which increase strictly."""
        return np.asarray(self._kll.get_cdf(points, inclusive)[:-1])

    def quantiles(self, shares: NDArray[np.float64]) -> NDArray[np.float64]:
        """The values below which so large ``shares`` (0..1) lie; there must be a value."""
        return np.asarray(self._kll.get_quantiles(shares, True), np.float64)

    def dump(self) -> dict[str, Any]:
        return {"kll": base64.b64encode(self._kll.serialize()).decode()}

    @classmethod
    def load(cls, dumped: dict[str, Any]) -> Sketch:
        """Raises ``ValueError`` for what is no sketch."""
        try:
            data = base64.b64decode(dumped["kll"], validate=True)
            _check_levels(data)
            kll = kll_floats_sketch.deserialize(data)
            # What reads like a sketch may still contradict itself, which only its use tells.
            twin = kll_floats_sketch(kll.k)
            twin.merge(kll)
            if twin.n:
                twin.get_cdf(np.zeros(1, np.float32))
        except (RuntimeError, IndexError, KeyError, TypeError, ValueError, struct.error) as error:
            raise ValueError(f"this is no KLL sketch: {error}") from error
        sketch = cls()
        sketch._kll = kll
        return sketch


def _check_levels(data: bytes) -> None:
    """Raises ``ValueError`` if a serialised sketch's levels contradict its values: the library would read beyond them.

    The format is that of Apache DataSketches: flags at byte 3, the count at 8, the number of levels at 18, then where
    each level begins, the extremes, and the values, 4 bytes each. A value of level h stands for 2**h.
    """
    if len(data) < 8 or data[3] & 0b101:  # cut short, empty, or a single value: there are no levels
        return
    count, levels = struct.unpack_from("<Q2xB", data, 8)
    starts = struct.unpack_from(f"<{levels}I", data, 20)
    values = (len(data) - 20 - 4 * levels - 8) // 4
    ends = [*starts[1:], starts[0] + values] if starts else []
    sizes = [end - start for start, end in zip(starts, ends, strict=True)]
    if levels > 60 or min(sizes, default=-1) < 0 or sum(size << h for h, size in enumerate(sizes)) != count:
        raise ValueError("its levels do not add up")


class Moments:
    """Count, sums and sums of squares of vectors, by coordinate."""

    def __init__(self, width: int = 0) -> None:
        self.count = 0
        self.sums = np.zeros(width)
        self.squares = np.zeros(width)

    @property
    def mean(self) -> NDArray[np.float64]:
        return self.sums / max(self.count, 1)

    @property
    def spread(self) -> NDArray[np.float64]:
        """Standard deviation of each coordinate."""
        return np.sqrt(np.maximum(self.squares / max(self.count, 1) - self.mean**2, 0))

    def update(self, values: NDArray[Any]) -> None:
        """Takes in ``values`` [n, width]."""
        vectors = values.astype(np.float64)
        self.count += len(vectors)
        self.sums += vectors.sum(axis=0)
        self.squares += (vectors**2).sum(axis=0)

    def merge(self, other: Moments) -> None:
        self.count += other.count
        self.sums += other.sums
        self.squares += other.squares

    def copy(self) -> Moments:
        twin = Moments(len(self.sums))
        twin.merge(self)
        return twin

    def dump(self) -> dict[str, Any]:
        arrays = np.stack([self.sums, self.squares]).astype("<f8")
        return {"count": self.count, "moments": base64.b64encode(arrays.tobytes()).decode()}

    @classmethod
    def load(cls, dumped: dict[str, Any]) -> Moments:
        """Raises ``ValueError`` for what is no dump of moments."""
        try:
            arrays = np.frombuffer(base64.b64decode(dumped["moments"], validate=True), "<f8").reshape(2, -1)
            moments = cls(arrays.shape[1])
            moments.count = int(dumped["count"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"these are no sums of vectors: {error}") from error
        if not 0 <= moments.count <= LARGEST:
            raise ValueError(f"{moments.count} vectors cannot have been counted")
        moments.sums, moments.squares = arrays.astype(np.float64)
        return moments


LARGEST = 2**53
"""Of counts and times in what was saved: beyond it JSON's readers disagree."""

S = TypeVar("S", bound=Summary)


@dataclass(slots=True)
class Slot(Generic[S]):
    """``2**level`` units of time from unit ``start`` on (units since 1970)."""

    start: int
    level: int
    summary: S
    known: Any = None
    """What a reader worked out of ``summary``; it has to see for itself whether that is still true."""

    @property
    def end(self) -> int:
        return self.start + (1 << self.level)


class Ring(Generic[S]):
    """Slots of the last ``keep`` seconds: the newest last one unit of ``unit`` seconds, and the older ones 2, 4, 8 ...

    So there are few of them (24 for a week in units of five minutes), and yet every stretch of time that ends now is
    covered to within a factor of two, which is what finding a change of unknown age needs (as in ADWIN: Bifet, Gavaldà,
    Learning from time-changing data with adaptive windowing, SDM 2007). Slots are aligned to the clock, so those of
    several servers cover the same stretches.
    """

    def __init__(self, unit: float, keep: float, make: Callable[[], S]) -> None:
        self.unit = unit
        self.units = max(1, round(keep / unit))
        self.slots: list[Slot[S]] = []
        self._make = make

    @property
    def lengths(self) -> list[int]:
        """How long the windows are, in units: 1, 2, 4 ... up to all that is kept."""
        doubling = [2**level for level in range(self.units.bit_length()) if 2**level < self.units]
        return [*doubling, self.units]

    def update(self, values: NDArray[Any], now: float) -> None:
        """Takes in ``values`` that came at ``now`` (seconds since 1970)."""
        self.at(now).update(values)

    def at(self, now: float) -> S:
        """The summary of the slot that ``now`` lies in, or of the newest one if the clock went back."""
        unit = int(now // self.unit)
        if not self.slots or self.slots[-1].end <= unit:
            self.slots.append(Slot(unit, 0, self._make()))
            self._compact(unit)
        return self.slots[-1].summary

    def merge(self, slots: list[Slot[S]]) -> None:
        """Takes in slots of another ring with the same unit; they need not be in order."""
        now = max((slot.end for slot in [*self.slots, *slots]), default=0) - 1
        copies = [Slot(slot.start, slot.level, slot.summary.copy()) for slot in slots]
        self.slots = sorted([*self.slots, *copies], key=lambda slot: (slot.start, slot.level))
        self._compact(now)

    def windows(self, now: float) -> Iterator[tuple[int, S]]:
        """``(start, summary)`` of the stretches that end at ``now``, shortest first; none twice, none empty.

        ``start`` is in units since 1970. The summary grows with the next step: read it, or copy it, before that.
        """
        total = self._make()
        for start, added in self.growth(now):
            for slot in added:
                total.merge(slot.summary)
            yield start, total

    def growth(self, now: float) -> Iterator[tuple[int, list[Slot[S]]]]:
        """As :meth:`windows`, with the slots that each has beside those of the shorter ones."""
        newest = int(now // self.unit)
        left = [slot for slot in self.slots if slot.start > newest - self.units]
        for length in self.lengths:
            added = []
            while left and left[-1].start > newest - length:
                added.append(left.pop())
            if added:
                yield added[-1].start, added

    def clear(self) -> None:
        self.slots.clear()

    def _compact(self, now: int) -> None:
        """Drops what is too old, and merges neighbours that are old enough to share a slot."""
        compact: list[Slot[S]] = []
        for slot in self.slots:
            if slot.end <= now - self.units:
                continue
            level = max(slot.level, self._level(now - slot.start))
            start = slot.start >> level << level
            if compact and compact[-1].end > start:
                last = compact[-1]
                last.summary.merge(slot.summary)
                last.start, last.level, last.known = min(last.start, start), max(last.level, level), None
            else:
                compact.append(Slot(start, level, slot.summary))
        self.slots = compact

    @staticmethod
    def _level(age: int) -> int:
        """A slot that began so many units ago: 0..3 -> 0, 4..7 -> 1, 8..15 -> 2 ..."""
        return max(0, (age // 2).bit_length() - 1)
