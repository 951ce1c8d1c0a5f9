"""What the reader of pickles makes of real payloads, of hostile ones, and of noise."""

from __future__ import annotations

import contextlib
import os
import pickle
import pickletools
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from critiq.errors import InvalidArgument, TooLarge
from critiq_server.api.compat.pickles import PickleLimits, read_pickle
from tests.compat.trainers import http_client, jpeg, recorded, recorded_names, rest, trainer_server

PROTOCOLS = (2, 3, 4, 5)

KEYS = st.text(max_size=8) | st.integers(-(2**70), 2**70)
PLAIN: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**100), 2**100)
    | st.floats(allow_nan=False)
    | st.text(max_size=300)
    | st.binary(max_size=300),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)


@given(PLAIN, st.sampled_from(PROTOCOLS))
@settings(max_examples=200, deadline=None)
def test_plain_data_is_read_as_python_would(value: Any, protocol: int) -> None:
    assert read_pickle(pickle.dumps(value, protocol)) == value


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_noise_is_refused(data: bytes) -> None:
    with contextlib.suppress(InvalidArgument):
        read_pickle(b"\x80\x04" + data)


@given(st.sampled_from(recorded_names()), st.integers(0, 10_000), st.integers(0, 255), st.integers(0, 3))
@settings(max_examples=500, deadline=None)
def test_damaged_payloads_are_read_or_refused(name: str, position: int, value: int, kind: int) -> None:
    data = bytearray(recorded(name))
    position %= len(data)
    if kind == 0:
        data[position] = value
    elif kind == 1:
        del data[position]
    elif kind == 2:
        data.insert(position, value)
    else:
        del data[position:]
    with contextlib.suppress(InvalidArgument):
        read_pickle(bytes(data))


OPCODES = [code.code.encode("latin-1") for code in pickletools.opcodes]


@given(st.lists(st.sampled_from(OPCODES) | st.binary(min_size=1, max_size=9), max_size=60))
@settings(max_examples=500, deadline=None)
def test_any_program_of_opcodes_is_read_or_refused(program: list[bytes]) -> None:
    with contextlib.suppress(InvalidArgument):
        read_pickle(b"\x80\x04" + b"".join(program) + b".")


@pytest.mark.parametrize("name", [name for name in recorded_names() if name.startswith("numpy")])
def test_prompts_of_both_numpys(name: str) -> None:
    assert read_pickle(recorded(name)) == {"images": [b"PICTURE"], "prompts": ["a cat"]}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "array",
    [
        np.array(["a cat", "", "ein Häuschen", "猫"]),
        np.array([["a", "b"], ["c", "d"]]),
        np.arange(6, dtype=np.float32).reshape(2, 3).T,
        np.array([1, -2], ">i2"),
        np.array([True, False]),
        np.array([b"raw", b"text"]),
        np.array([], "<U5"),
        np.array("alone"),
    ],
    ids=str,
)
def test_arrays_become_lists(array: Any, protocol: int) -> None:
    assert read_pickle(pickle.dumps({"value": array}, protocol)) == {"value": array.tolist()}


def test_an_array_is_shared_and_not_copied_each_time_it_is_named() -> None:
    array = np.array(["a cat"] * 1000)
    first, second = read_pickle(pickle.dumps([array, array]))
    assert first is second


class Calls:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


def _recursive() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


def _nested(depth: int) -> Any:
    value: Any = ()
    for _ in range(depth):
        value = (value,)
    return value


SELF_SHARING = b"\x80\x04)" + b"".join(b"\x94h%c\x86" % n for n in range(60)) + b"."
"""A tuple of the one before, twice, sixty times over: 2**60 leaves for whoever walks or hashes it."""
HASHED_BOMB = b"\x80\x04})" + b"".join(b"\x94h%c\x86" % n for n in range(12)) + b"Ns."
"""A small one of these as the key of a dict, where Python's reader would hash it."""

HOSTILE = {
    "os.system": pickle.dumps(Calls(os.system, "echo hacked")),
    "eval": pickle.dumps(Calls(eval, "1")),
    "exec at protocol 2": pickle.dumps(Calls(exec, "1"), 2),
    "getattr": pickle.dumps(Calls(getattr, "", "join")),
    "subprocess": pickle.dumps({"images": [Calls(subprocess.Popen, "id")]}),
    "nested in metadata": pickle.dumps({"images": [], "metadata": {"x": [Calls(os.system, "id")]}}),
    "import of an unknown module": b"\x80\x04\x8c\x0dnot_imported_\x8c\x01x\x93.",
    "numpy's loader": pickle.dumps(Calls(np.load, "/etc/passwd")),
    "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x10core.multiarray.\x93.",
    "object array": pickle.dumps(np.array([None, 1], object)),
    "record array": pickle.dumps(np.zeros(1, [("a", "i4")])),
    "date array": pickle.dumps(np.array(["2026-01-01"], "datetime64[D]")),
    "complex number": pickle.dumps(1 + 2j),
    "set": pickle.dumps({1, 2}),
    "class instance": pickle.dumps(PickleLimits()),
    "persistent id": b"\x80\x04Pname\n.",
    "extension": b"\x80\x04\x82\x01.",
    "out-of-band buffer": b"\x80\x05\x97.",
    "protocol 0": pickle.dumps(["text"], 0),
    "protocol 6": b"\x80\x06N.",
    "empty": b"",
    "html": b"<html></html>",
    "trailing bytes": pickle.dumps(1) + b"x",
    "memo of two billion": b"\x80\x04Nr\xff\xff\xff\x7f" + b"j\xfe\xff\xff\x7f.",
    "text of 2**60 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"x.",
    "frame of 2**60 bytes": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N.",
    "number of 200 bytes": b"\x80\x04\x8a\xc8" + bytes(200) + b".",
    "array of 2**60 elements": pickle.dumps(
        Calls(np._core.numeric._frombuffer, b"", np.dtype("f4"), (2**30, 2**30), "C")  # type: ignore[attr-defined]
    ),
    "array of too many elements": pickle.dumps(np.zeros(100_001, np.uint8)),
    "arrays of too many elements in all": pickle.dumps([np.zeros(60_000, np.uint8), np.ones(60_000, np.uint8)]),
    "array with a negative side": pickle.dumps(
        Calls(np._core.numeric._frombuffer, b"", np.dtype("f4"), (-1, 0), "C")  # type: ignore[attr-defined]
    ),
    "list in itself": pickle.dumps(_recursive()),
    "deep nesting": pickle.dumps(_nested(200)),
    "too many steps": pickle.dumps([()] * 60_000),
    "self-sharing tuples": SELF_SHARING,
    "hashed bomb": HASHED_BOMB,
    "list as a key": b"\x80\x04}]Ns.",
    "items for a number": b"\x80\x04K\x01Na.",
    "state for a list": b"\x80\x04]}b.",
    "type as data": pickle.dumps([np.dtype("f4")]),
    "type in a tuple": pickle.dumps((np.dtype("f4"),)),
    "call of a number": b"\x80\x04K\x01)R.",
    **{name: recorded(name) for name in recorded_names() if not name.startswith("numpy")},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_payloads_are_refused(name: str) -> None:
    modules = set(sys.modules)
    started = time.process_time()
    with pytest.raises(InvalidArgument) as refused:
        read_pickle(HOSTILE[name])
    assert time.process_time() - started < 2
    assert set(sys.modules) == modules
    assert refused.value.field == "body"
    assert len(str(refused.value)) < 400


def test_too_many_bytes_are_refused_unread() -> None:
    with pytest.raises(TooLarge, match="the limit is 100"):
        read_pickle(pickle.dumps(b"x" * 1000), PickleLimits(max_bytes=100))


def test_text_of_an_array_that_is_no_unicode_is_refused() -> None:
    data = pickle.dumps(np.array(["abcd"])).replace("abcd".encode("utf-32-le"), b"\xff" * 16)
    with pytest.raises(InvalidArgument, match="Unicode"):
        read_pickle(data)


IMPORTS = """
import sys
from critiq_server.api.compat.pickles import read_pickle
before = set(sys.modules)
try:
    read_pickle(sys.stdin.buffer.read())
except Exception as error:
    print(type(error).__name__)
print(*sorted(set(sys.modules) - before))
"""


@pytest.mark.parametrize("name", ["torch-tensor-protocol4", "pil-image-protocol2"])
def test_a_fresh_process_imports_nothing_for_a_payload(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], input=recorded(name), capture_output=True, check=True)
    assert done.stdout.decode().split() == ["InvalidArgument"]


async def test_over_http_the_refusal_is_a_400_with_a_pickle(tmp_path: Path) -> None:
    limits = {"request_bytes": 100_000}
    async with trainer_server(tmp_path, limits, pickle={"enabled": True}) as app, http_client() as client:
        url = rest(app) + "/compat/pickle/bright"
        for data in (*HOSTILE.values(), pickle.dumps({"images": [bytes(200_000)]})):
            response = await client.post(url, content=data)
            assert response.status_code == 400
            assert list(pickle.loads(response.content)) == ["error"]  # noqa: S301 - our own answer
        streamed = await client.post(url, content=_chunks())
        assert streamed.status_code == 400
        assert "limit is 100000" in pickle.loads(streamed.content)["error"]  # noqa: S301


async def _chunks() -> Any:
    """A body without a Content-Length."""
    for _ in range(30):
        yield bytes(10_000)


async def test_it_is_off_by_default(tmp_path: Path) -> None:
    async with trainer_server(tmp_path) as app, http_client() as client:
        for path in ("pickle/bright", "flow_factory/bright/compute", "unirl/score", "cosmos/api/reward/enqueue"):
            response = await client.post(f"{rest(app)}/compat/{path}", content=b"")
            assert response.status_code == 404
        assert app.compat_ports == []


async def test_text_with_half_a_surrogate_pair_is_refused(tmp_path: Path) -> None:
    async with trainer_server(tmp_path, pickle={"enabled": True}) as app, http_client() as client:
        for prompts in (["\ud800"], np.array(["\ud800"])):
            data = pickle.dumps({"images": [jpeg()], "prompts": prompts})
            response = await client.post(rest(app) + "/compat/pickle/words", content=data)
            assert response.status_code == 400
            assert "Unicode" in pickle.loads(response.content)["error"]  # noqa: S301
