"""What is fed with any bytes: readers of what strangers send, and of files that may have been damaged.

Each target may refuse what it is given, with the error that it says it raises. Anything else is a finding: another
exception, a crash, more than ``SECONDS`` for one input, or an invariant that does not hold.
"""

from __future__ import annotations

import asyncio
import json
import pickle
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from PIL import Image
from starlette.requests import Request

from critiq.errors import CritiqError
from critiq.v1 import scoring_pb2
from critiq_server.api import bodies
from critiq_server.api.compat.pickles import PickleLimits, read_pickle
from critiq_server.api.oip.rest import InferJson, _inputs
from critiq_server.api.oip.tensors import read_items
from critiq_server.images.decode import decode, inspect
from critiq_server.images.headers import read_header
from critiq_server.images.limits import ImageLimits
from critiq_server.images.source import EncodedImage, RawImage
from critiq_server.scoring import drift_files
from critiq_server.scoring.drift_series import Series
from critiq_server.scoring.drift_settings import DriftSettings
from critiq_server.scoring.policy_files import PolicyError, parse_policy
from critiq_server.security.keys import KeysError, _parse
from tests.compat import oip_bodies
from tests.support import requests

SECONDS = 10
"""More than this for one input is a hang."""
LIMITS = ImageLimits(max_bytes=2**20, max_pixels=2**20, max_side=2048)
_NO_FILE = Path("keys.yaml")


@dataclass(frozen=True)
class Target:
    """``seeds`` are inputs to begin with, some of them sound, so that the fuzzer gets past the first check."""

    run: Callable[[bytes], None]
    seeds: Callable[[], Sequence[bytes]]
    longest: int = 4096


def headers(data: bytes) -> None:
    try:
        header = read_header(data)
    except CritiqError:
        return
    assert header.width > 0
    assert header.height > 0


def pictures(data: bytes) -> None:
    source = EncodedImage(data)
    try:
        header = inspect(source, LIMITS)
        decoded = decode(source, LIMITS)
    except CritiqError:
        return
    height, width, channels = decoded.pixels.shape
    assert decoded.pixels.dtype == np.uint8
    assert channels == 3
    assert {height, width} == {header.height, header.width}, "what was checked is what was decoded"


def _files() -> list[bytes]:
    found = []
    for mode in ("RGB", "RGBA", "L", "P", "CMYK", "I;16", "1"):
        for kind in ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF"):
            file = BytesIO()
            options: dict[str, Any] = {"progressive": True} if kind == "JPEG" and mode == "L" else {}
            try:
                Image.new(mode, (24, 20), 99 if mode in ("L", "P", "I;16", "1") else None).save(file, kind, **options)
            except (OSError, ValueError, KeyError):
                continue  # a format that has no such mode
            found.append(file.getvalue())
    return found


def raw_tensors(data: bytes) -> None:
    if len(data) < 14:
        return
    flags, count = data[0], data[1] % 5
    shape = tuple(length - 2**31 for length in struct.unpack("<3I", data[2:14]))[:count] + (3,) * (data[1] >> 7)
    if flags & 4:  # lengths that fit what follows, so that values are looked at as well
        side = max(1, int((len(data[14:]) / (3 * (4 if flags & 1 else 1))) ** 0.5))
        shape = (3, side, side) if flags & 2 else (side, side, 3)
    source = RawImage(data[14:], shape, "float32" if flags & 1 else "uint8", "chw" if flags & 2 else "hwc")
    try:
        inspect(source, LIMITS)
        decoded = decode(source, LIMITS)
    except CritiqError:
        return
    assert decoded.pixels.dtype == np.uint8


def _raw_seeds() -> list[bytes]:
    values = np.linspace(0, 1, 20 * 20 * 3, dtype=np.float32)
    fits, whole = bytes([4]), bytes([5])
    return [fits + bytes(13) + bytes(20 * 20 * 3), whole + bytes(13) + values.tobytes(), bytes(14), bytes(64)]


def open_inference(data: bytes) -> None:
    if len(data) < 2:
        return
    length = int.from_bytes(data[:2], "little")
    body = data[2:]
    try:
        asked = bodies.from_json(InferJson, body[:length])
        tensors = _inputs(asked, memoryview(body)[length:])
        items = read_items(tensors, frozenset({"image", "prompt"}), 64)
    except CritiqError:
        return
    assert len(items.images) == len(items.prompts) <= 64


def _oip_seeds() -> list[bytes]:
    asked = [
        oip_bodies.pictures(requests.flat(), prompts=["a cat"]),
        oip_bodies.pictures(requests.flat(), requests.flat(9), scale="raw"),
        oip_bodies.body([oip_bodies.binary("pixels", bytes(768), [1, 16, 16, 3], "UINT8")], bytes(768)),
        oip_bodies.body([{"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["a"]}]),
    ]
    return [int(entry["headers"][oip_bodies.LENGTH]).to_bytes(2, "little") + entry["content"] for entry in asked]


def pickles(data: bytes) -> None:
    try:
        value = read_pickle(data, PickleLimits())
    except CritiqError:
        return
    _check_plain(value)


def _check_plain(value: object) -> None:
    """Nothing but plain values may come out, however they are nested."""
    pending = [value]
    while pending:
        entry = pending.pop()
        assert type(entry) in (dict, list, tuple, str, bytes, int, float, bool, type(None)), type(entry)
        if isinstance(entry, dict):
            pending += [*entry.keys(), *entry.values()]
        elif isinstance(entry, list | tuple):
            pending += entry


def _pickle_seeds() -> list[bytes]:
    value = {"images": [b"file", b""], "prompts": ["a cat", "ü"], "n": (1, -(2**70), 2.5, None, True), "more": [[], {}]}
    array = {"images": np.arange(24, dtype=np.uint8).reshape(2, 4, 3), "scale": np.float32(2)}
    return [pickle.dumps(entry, protocol) for entry in (value, array) for protocol in range(6)]


_READERS = (
    bodies.score_query,
    bodies.moderate_query,
    bodies.batch_items,
    bodies.rank_arguments,
    bodies.compare_pair,
)
_KINDS = (
    "application/json",
    "multipart/form-data; boundary=xyz",
    "application/x-protobuf",
    "image/png",
    "application/x-www-form-urlencoded",
    "text/plain",
)


def request_bodies(data: bytes) -> None:
    if len(data) < 2:
        return
    read, kind = _READERS[data[0] % len(_READERS)], _KINDS[data[1] % len(_KINDS)]
    query, _, body = data[2:].partition(b"\0") if data[1] & 0x80 else (b"", b"", data[2:])
    sent = False

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if sent:
            return {"type": "http.disconnect"}
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/score",
        "query_string": bytes(byte for byte in query if 32 < byte < 127),
        "headers": [(b"content-type", kind.encode())],
    }
    try:
        _loop().run_until_complete(read(Request(scope, receive)))
    except CritiqError:
        return


_loops: list[asyncio.AbstractEventLoop] = []


def _loop() -> asyncio.AbstractEventLoop:
    if not _loops:
        _loops.append(asyncio.new_event_loop())
    return _loops[0]


def _body_seeds() -> list[bytes]:
    picture = requests.flat(size=(16, 16))
    score = requests.score(picture, "a cat", dimensions=["brightness"])
    messages = [
        score,
        scoring_pb2.ModerateRequest(image=requests.image(picture), policy="p"),
        requests.batch([score, score], ["a", "b"]),
        requests.rank([picture], "a", top_k=1),
        requests.compare(picture, picture, "a"),
    ]
    written = [
        {"image": {"base64": "iVBORw0K"}, "prompt": "a cat", "model": "tiny", "dimensions": ["red"]},
        {"image": {"url": "https://example.com/a.png"}, "policy": "p", "policy_version": "1"},
        {"items": [{"id": "a", "image": {"raw": {"base64": "AAAA", "shape": [1, 1, 3], "dtype": "uint8"}}}]},
        {"images": [{"base64": "AA=="}], "top_k": 2, "at_least": ["red:raw=0.5"], "diversity": 0.5, "embedding": "a"},
        {"first": {"base64": "AA=="}, "second": {"base64": "AA=="}, "prompt": "a", "priority": "bulk"},
    ]
    form = b'--xyz\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    forms = form % (b"image", b'; filename="a.png"', picture) + form % (b"prompt", b"", b"a cat") + b"--xyz--\r\n"
    found = []
    for at in range(len(_READERS)):
        found.append(bytes([at, 0]) + json.dumps(written[at]).encode())
        found.append(bytes([at, 1]) + forms)
        found.append(bytes([at, 2]) + messages[at].SerializeToString())
        found.append(bytes([at, 0x80 | 3 + 128 % 5]) + b"prompt=a&model=tiny\0" + picture)
    return found


def key_files(data: bytes) -> None:
    try:
        keys = _parse(_NO_FILE, data)
    except KeysError:
        return
    for key in keys:
        assert len(key.sha256) == 64


def _key_seeds() -> list[bytes]:
    entry = f"- name: trainer\n  id: {'0a' * 8}\n  sha256: {'0b' * 32}\n  scopes: [score]\n"
    return [entry.encode(), entry.encode() + b"  requests_per_second: 50.0\n  concurrency: 8\n", b"[]", b"a: &a [*a]"]


def policy_files(data: bytes) -> None:
    try:
        parse_policy(data.decode("utf-8", "replace"))
    except PolicyError:
        return


def _policy_seeds() -> list[bytes]:
    return [
        b"name: p\nversion: '1'\ndefault: accept\nrules:\n  - name: poor\n    decision: reject\n"
        b"    when: {dimension: quality, below: 0.2}\n",
        b"name: q\nrules: []\n",
        b"a: 1\na: 2\n",
    ]


_DRIFT = DriftSettings()


def drift_records(data: bytes) -> None:
    """A saved series whose checksum is right, so that only the reader itself stands against what is in it."""
    try:
        dumped = orjson.loads(data)
    except ValueError:
        return
    if not isinstance(dumped, dict):
        return
    for kind, name in (("score", "quality"), ("embedding", "encoder")):
        series = Series(kind, name, _DRIFT, None, ())  # type: ignore[arg-type]
        try:
            series.restore(dumped)
        except ValueError:
            continue
        series.update(np.ones((5, series._width or 4)) if kind == "embedding" else np.ones(5), 1e9)
        series.look(1e9)
        orjson.dumps(series.dump())


def _drift_seeds() -> list[bytes]:
    found = []
    for kind, name in (("score", "quality"), ("embedding", "encoder")):
        series = Series(kind, name, _DRIFT, None, ())  # type: ignore[arg-type]
        values = np.linspace(0, 1, 200)
        series.update(values.reshape(50, 4) if kind == "embedding" else values, 1e9)
        dumped = series.dump()
        found.append(orjson.dumps(dumped))
        slot = {"start": 0, "level": 0}
        found.append(orjson.dumps({**dumped, "baseline": None, "slots": [slot], "frozen": None}))
    found.append(orjson.dumps({drift_files.key_of("a", "1", "", "score", "q"): {}}))
    return found


TARGETS = {
    "headers": Target(headers, lambda: [file[:200] for file in _files()], 512),
    "pictures": Target(pictures, _files),
    "raw_tensors": Target(raw_tensors, _raw_seeds, 8192),
    "open_inference": Target(open_inference, _oip_seeds),
    "pickles": Target(pickles, _pickle_seeds),
    "request_bodies": Target(request_bodies, _body_seeds),
    "key_files": Target(key_files, _key_seeds, 1024),
    "policy_files": Target(policy_files, _policy_seeds, 1024),
    "drift_records": Target(drift_records, _drift_seeds),
}
