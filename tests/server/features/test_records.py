"""Records give back exactly what went in, in as few bytes as that allows, and notice every damaged byte."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from critiq_server.features.records import Features, RecordError, decode, encode

HEADER_BYTES = 8

arrays = hnp.arrays(
    st.sampled_from(["<f4", "<f2", "<f8", "<i8", "<i4", "<u2", "|u1", "|i1", "|b1", ">f4", ">i2"]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
features = st.dictionaries(st.text(max_size=20), arrays, max_size=4)


def same(one: Features, other: Features) -> bool:
    """Names, dtypes (but for the byte order), shapes and every bit."""
    if sorted(one) != sorted(other):
        return False
    for name, array in one.items():
        little = array.astype(array.dtype.newbyteorder("<"))
        there = other[name]
        if there.dtype != little.dtype or there.shape != little.shape or there.tobytes() != little.tobytes():
            return False
    return True


@given(features)
def test_what_comes_out_is_what_went_in(given_features: dict[str, np.ndarray]) -> None:
    assert same(given_features, decode(encode(given_features)))


def test_the_bytes_do_not_depend_on_the_order_of_the_names() -> None:
    one, two = np.arange(3, dtype=np.float32), np.ones(2, np.int64)
    assert encode({"a": one, "b": two}) == encode({"b": two, "a": one})


def test_a_known_record() -> None:
    """What is stored today is read in years to come."""
    record = encode({"feature": np.array([1.0, -2.5, 0.1], np.float32), "count": np.array(7, np.int64)})
    assert record.hex() == KNOWN
    assert decode(bytes.fromhex(KNOWN))["feature"].tolist() == [1.0, -2.5, np.float32(0.1)]


KNOWN = "63460102c3518c8705636f756e7403000007666561747572650000010300000007000000000000000000803f000020c0cdcccc3d"


@pytest.mark.parametrize(
    ("values", "bytes_each"),
    [
        (np.random.default_rng(0).standard_normal(4096).astype(np.float16).astype(np.float32), 2),
        ((np.arange(4096, dtype=np.uint32) * 65536).view(np.float32), 2),  # bfloat16, denormals and NaN among them
        (np.array([-0.0, np.inf, -np.inf, 65504, 2**-24], np.float32), 2),
        (np.random.default_rng(0).standard_normal(4096).astype(np.float32), 4),
        (np.array([1.0 + 2**-20], np.float32), 4),
    ],
)
def test_half_precision_takes_half_the_room_and_loses_nothing(values: np.ndarray, bytes_each: int) -> None:
    record = encode({"f": values})
    assert len(record) <= HEADER_BYTES + 16 + bytes_each * values.size
    back = decode(record)["f"]
    assert back.dtype == np.float32
    assert back.tobytes() == values.tobytes()


def test_arrays_own_their_data() -> None:
    """Or they would keep a page of the store, or a whole answer of Redis, alive."""
    record = bytearray(encode({"f": np.arange(5, dtype=np.float64)}))
    array = decode(memoryview(record))["f"]
    record[:] = bytes(len(record))
    assert array.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("value", [np.array(["text"]), np.array([1j]), np.array([None])])
def test_other_dtypes_are_refused_by_name(value: np.ndarray) -> None:
    with pytest.raises(RecordError, match=str(value.dtype)):
        encode({"f": value})


def test_every_damaged_byte_is_noticed() -> None:
    record = encode({"feature": np.arange(6, dtype=np.float32).reshape(2, 3)})
    for position in range(len(record)):
        damaged = bytearray(record)
        damaged[position] ^= 0x40
        with pytest.raises(RecordError):
            decode(bytes(damaged))


def test_every_cut_is_noticed() -> None:
    record = encode({"feature": np.arange(6, dtype=np.float32)})
    for length in range(len(record)):
        with pytest.raises(RecordError):
            decode(record[:length])


def test_another_version_is_named() -> None:
    record = bytearray(encode({"f": np.zeros(1, np.float32)}))
    record[2] = 9
    with pytest.raises(RecordError, match="format 9"):
        decode(bytes(record))


@given(st.binary(max_size=200))
def test_noise_is_no_record(noise: bytes) -> None:
    with pytest.raises(RecordError):
        decode(noise)
