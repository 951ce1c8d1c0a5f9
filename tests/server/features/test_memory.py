from __future__ import annotations

from collections import OrderedDict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from critiq_server.features.memory import MemoryStore
from critiq_server.features.records import Features


def features(size: int, fill: int = 0) -> Features:
    return {"values": np.full(size, fill, np.uint8)}


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def cost(size: int) -> int:
    """Bytes that the store counts for an entry."""
    store = MemoryStore(10**9)
    store.put(key(0), features(size))
    return store.size_bytes


def test_an_entry_counts_its_data_and_an_overhead() -> None:
    assert cost(5000) - cost(1000) == 4000
    assert cost(0) > 0
    store = MemoryStore(10**6)
    store.put(key(1), {"a": np.zeros(100, np.float32), "b": np.zeros((3, 5), np.int64)})
    assert store.size_bytes == cost(0) + 400 + 120


def test_the_least_recently_used_goes_first() -> None:
    store = MemoryStore(3 * cost(1000))
    for number in range(3):
        store.put(key(number), features(1000))
    assert store.get(key(0)) is not None
    store.put(key(3), features(1000))
    assert store.get(key(1)) is None
    assert all(store.get(key(number)) is not None for number in (0, 2, 3))


def test_what_is_larger_than_the_store_is_not_kept_and_drives_nothing_out() -> None:
    store = MemoryStore(cost(1000))
    store.put(key(0), features(1000))
    store.put(key(1), features(1001))
    assert store.get(key(0)) is not None
    assert store.get(key(1)) is None


def test_a_store_of_no_bytes_keeps_nothing() -> None:
    store = MemoryStore(0)
    store.put(key(0), features(0))
    assert (len(store), store.size_bytes, store.get(key(0))) == (0, 0, None)


def test_a_key_that_is_put_again_counts_once() -> None:
    store = MemoryStore(10**6)
    store.put(key(0), features(1000))
    store.put(key(0), features(10, fill=7))
    assert (len(store), store.size_bytes) == (1, cost(10))
    found = store.get(key(0))
    assert found is not None
    assert found["values"][0] == 7


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8), st.integers(0, 3000)), max_size=60), st.integers(0, 9000))
def test_it_behaves_like_a_dictionary_that_forgets(plan: list[tuple[bool, int, int]], limit: int) -> None:
    store, model = MemoryStore(limit), OrderedDict[int, int]()
    for put, number, size in plan:
        if put:
            store.put(key(number), features(size))
            if cost(size) <= limit:
                model.pop(number, None)
                model[number] = size
                while sum(map(cost, model.values())) > limit:
                    model.popitem(last=False)
        else:
            found = store.get(key(number))
            assert (None if found is None else found["values"].size) == model.get(number)
            if number in model:
                model.move_to_end(number)
        assert store.size_bytes <= limit
        assert store.size_bytes == sum(map(cost, model.values()))
        assert len(store) == len(model)
