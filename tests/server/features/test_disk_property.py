"""Whatever is done to a store with a limit, its books agree with what it holds, and what it holds is right."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import lmdb
from hypothesis import given, settings
from hypothesis import strategies as st

from critiq_server.features.disk import DiskStore, _cost
from critiq_server.features.files import compact
from critiq_server.features.store import StoreFull
from tests.server.features.entries import features, key

LIMIT = 2**20
WIDTHS = (16, 700, 4096, 12_000)

numbers = st.integers(0, 120)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.lists(numbers, min_size=1, max_size=40)),
        st.tuples(st.just("get"), st.lists(numbers, max_size=20)),
        st.tuples(st.just("note"), numbers),
        st.tuples(st.just("reopen"), st.just(0)),
        st.tuples(st.just("compact"), st.just(0)),
    ),
    max_size=12,
)


def entry(number: int) -> dict[str, Any]:
    """Always the same for one number; sizes differ between numbers."""
    return dict(features(number, WIDTHS[number % len(WIDTHS)]))


@settings(max_examples=30, deadline=None)
@given(steps)
def test_the_books_agree(steps: list[tuple[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        store = DiskStore(path, LIMIT)
        for step, what in steps:
            if step == "put":
                try:
                    store.put_many({key(number): entry(number) for number in what})
                except StoreFull:
                    assert sum(_cost(bytes(2 * WIDTHS[number % len(WIDTHS)])) for number in set(what)) > 0.6 * LIMIT
                    continue
                # What was put last is there, whatever had to go for it.
                assert store.holds([key(number) for number in what]) == {key(number) for number in what}
            elif step == "get":
                for name, found in store.get_many([key(number) for number in what]).items():
                    number = next(number for number in what if key(number) == name)
                    assert found["feature"].tobytes() == entry(number)["feature"].tobytes()
            elif step == "note":
                store.put_many({}, {f"note {what}": {"value": what}})
            else:
                store.close()
                if step == "compact":
                    compact(path)
                store = DiskStore(path, LIMIT)
        store.close()
        check_books(path)


def check_books(path: Path) -> None:
    environment = lmdb.open(str(path), readonly=True, max_dbs=8)
    try:
        with environment.begin() as transaction:
            held: dict[str, dict[bytes, bytes]] = {}
            for name in ("records", "uses", "order", "meta"):
                database = environment.open_db(name.encode(), transaction, create=False)
                held[name] = dict(transaction.cursor(database))
    finally:
        environment.close()
    assert held["records"].keys() == held["uses"].keys() == set(held["order"].values())
    assert {held["uses"][name][:8]: name for name in held["uses"]} == held["order"]
    expected = sum(_cost(record) for record in held["records"].values())
    assert int.from_bytes(held["meta"].get(b"bytes", bytes(8)), "big") == expected <= LIMIT
    assert (path / "data.mdb").stat().st_size <= LIMIT
