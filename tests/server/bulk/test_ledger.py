from __future__ import annotations

import contextlib
import io
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from critiq_server.bulk import ledger as module
from critiq_server.bulk.errors import BulkError
from critiq_server.bulk.ledger import SUCCESS, Identity, Ledger
from critiq_server.bulk.storage import TEMPORARY, LocalPlace
from critiq_server.bulk.units import Done, Unit, ranges

IDENTITY = Identity({"model": "tiny", "checkpoint": 3})


class Killed(BaseException):
    """The process is gone."""


@dataclass(frozen=True)
class Kill:
    """At which change of the storage a process dies, and whether that change still happens, or half of it does."""

    change: int
    moment: str


class Mortal(LocalPlace):
    """A place whose process dies at some change; from then on it does nothing any more."""

    def __init__(self, path: Path, kill: Kill | None) -> None:
        super().__init__(str(path))
        self._kill = kill
        self._changes = 0

    def write(self, path: str, data: bytes) -> None:
        self._change(lambda: super(Mortal, self).write(path, data), data)

    def delete(self, path: str) -> None:
        self._change(lambda: super(Mortal, self).delete(path), b"")

    def _change(self, work: Any, data: bytes) -> None:
        number, kill = self._changes, self._kill
        self._changes += 1
        if kill is None or number < kill.change:
            work()
            return
        if number == kill.change and kill.moment == "after":
            work()
        if number == kill.change and kill.moment == "within":
            writing = Path(self.uri) / TEMPORARY
            writing.mkdir(parents=True, exist_ok=True)
            (writing / "left-behind").write_bytes(data[: len(data) // 2])
        raise Killed


def part(unit: Unit) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"row": range(unit.first, unit.first + unit.rows)}), file)
    return file.getvalue()


def one_run(folder: Path, units: list[Unit], order: list[int], kill: Kill | None, *, restart: bool = False) -> None:
    """A run with an engine that does units in some order."""
    output = Mortal(folder, kill)
    ledger = None
    with contextlib.suppress(Killed):
        ledger = Ledger(output, IDENTITY, restart=restart)
        left = {unit.number: unit for unit in ledger.left(units)}
        for number in [*(number for number in order if number in left), *(set(left) - set(order))]:
            unit = left[number]
            output.write(unit.part, part(unit))
            ledger.add(Done(unit.number, unit.rows, {"INTERNAL": 1} if number == 0 else {}))
        ledger.finish(units, {})
    if ledger is not None:
        with contextlib.suppress(Killed):
            ledger.close()


kills = st.builds(Kill, st.integers(0, 40), st.sampled_from(["before", "within", "after"]))


@settings(deadline=None, max_examples=20)
@given(
    rows=st.integers(0, 40),
    at_most=st.integers(1, 9),
    deaths=st.lists(st.tuples(kills, st.permutations(range(8)), st.booleans()), max_size=5),
    seconds=st.sampled_from([0.0, 1e9]),
    many=st.sampled_from([1, 32]),
)
def test_each_row_is_there_once_wherever_runs_were_killed(
    rows: int, at_most: int, deaths: list[tuple[Kill, list[int], bool]], seconds: float, many: int
) -> None:
    units = [Unit(at, "in", "parquet", *piece) for at, piece in enumerate(ranges(rows, at_most))]
    assert [unit.first + unit.rows for unit in units[:-1]] == [unit.first for unit in units[1:]]
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SECONDS", seconds)
        patch.setattr(module, "_MANY", many)
        folder = Path(name) / "out"
        for kill, order, restart in deaths:
            one_run(folder, units, order, kill, restart=restart)
        one_run(folder, units, [], None)
        found = [pyarrow.parquet.read_table(file)["row"].to_pylist() for file in folder.glob("*.parquet")]
        assert sorted(row for part in found for row in part) == list(range(rows))
        manifest = json.loads((folder / SUCCESS).read_text())
        assert manifest["rows"] == rows
        assert manifest["failed"] == ({"INTERNAL": 1} if rows else {})
        # And once more: everything is known, nothing is done again.
        stamps = {file.name: file.stat().st_mtime_ns for file in folder.glob("*.parquet")}
        one_run(folder, units, [], None)
        assert {file.name: file.stat().st_mtime_ns for file in folder.glob("*.parquet")} == stamps
        assert not list((folder / TEMPORARY).glob("*"))


UNITS = [Unit(0, "in", "parquet", 0, 3), Unit(1, "in", "parquet", 3, 3)]


def test_another_run_is_refused_and_named(tmp_path: Path) -> None:
    one_run(tmp_path, UNITS, [], None)
    with pytest.raises(BulkError, match=r'model was "tiny", is "other".*--restart'):
        Ledger(LocalPlace(str(tmp_path)), Identity({"model": "other", "checkpoint": 3}))
    ledger = Ledger(LocalPlace(str(tmp_path)), Identity({"model": "other", "checkpoint": 3}), restart=True)
    assert ledger.left(UNITS) == UNITS
    assert not list(tmp_path.glob("*.parquet"))
    ledger.close()


@pytest.mark.parametrize("restart", [False, True])
def test_what_is_not_ours_is_left_alone(tmp_path: Path, restart: bool) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(BulkError, match=r"holds something else \(thesis.txt\)"):
        Ledger(LocalPlace(str(tmp_path)), IDENTITY, restart=restart)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    first = Ledger(LocalPlace(str(tmp_path)), IDENTITY)
    with pytest.raises(BulkError, match="another run writes to"):
        Ledger(LocalPlace(str(tmp_path)), IDENTITY)
    first.close()
    Ledger(LocalPlace(str(tmp_path)), IDENTITY).close()


def test_a_part_that_went_missing_is_made_again(tmp_path: Path) -> None:
    one_run(tmp_path, UNITS, [], None)
    (tmp_path / UNITS[1].part).unlink()
    ledger = Ledger(LocalPlace(str(tmp_path)), IDENTITY)
    assert not ledger.complete(UNITS)
    assert ledger.left(UNITS) == [UNITS[1]]
    ledger.close()
