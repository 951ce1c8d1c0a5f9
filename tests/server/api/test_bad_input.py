"""Every kind of bad input gets its own definite answer, the same over every face.

The message names what was wrong with which value and which limit; it never shows the server's inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from critiq.v1 import scoring_pb2
from tests.fixtures.images import encoded, photo, png_bomb
from tests.server.api.conftest import BATCH_ITEMS, IMAGE_BYTES, Server
from tests.support import requests
from tests.support.faces import FACES, Refusal, takes

pytestmark = pytest.mark.asyncio(loop_scope="module")

STATUS = {
    "INVALID_ARGUMENT": ("INVALID_ARGUMENT", 400),
    "TOO_LARGE": ("INVALID_ARGUMENT", 413),
    "NOT_FOUND": ("NOT_FOUND", 404),
    "MODEL_NOT_LOADED": ("UNAVAILABLE", 503),
}
GREY = np.full((32, 32, 3), 0.5, np.float32)


@dataclass(frozen=True)
class Case:
    name: str
    request: Any
    code: str
    field: str
    words: tuple[str, ...]
    """All of them stand in the message (commas in numbers aside)."""
    only: tuple[str, ...] = tuple(FACES)


def with_value(value: float) -> np.ndarray[Any, Any]:
    values = GREY.copy()
    values[3, 4, 1] = value
    return values


PICTURES = [
    Case(
        "truncated JPEG",
        requests.score(encoded(photo(), "JPEG")[:-300]),
        "INVALID_ARGUMENT",
        "image.encoded",
        ("JPEG", "truncated"),
    ),
    Case(
        "truncated PNG",
        requests.score(encoded(photo(), "PNG")[:-300]),
        "INVALID_ARGUMENT",
        "image.encoded",
        ("PNG", "truncated"),
    ),
    Case(
        "header only",
        requests.score(encoded(photo(), "JPEG")[:4]),
        "INVALID_ARGUMENT",
        "image.encoded",
        ("JPEG", "header"),
    ),
    Case(
        "side bomb",
        requests.score(png_bomb(60_000, 60_000)),
        "TOO_LARGE",
        "image.encoded",
        ("60000 x 60000", "16384"),
    ),
    Case(
        "pixel bomb",
        requests.score(png_bomb(12_000, 12_000)),
        "TOO_LARGE",
        "image.encoded",
        ("144000000", "50000000"),
    ),
    Case(
        "wrong magic",
        requests.score(b"certainly not a picture"),
        "INVALID_ARGUMENT",
        "image.encoded",
        ("JPEG", "PNG", "accepted"),
    ),
    Case("GIF", requests.score(encoded(photo(), "GIF")), "INVALID_ARGUMENT", "image.encoded", ("GIF", "accepted")),
    Case("empty file", requests.score(b""), "INVALID_ARGUMENT", "image.encoded", ("0 bytes",)),
    Case("no width", requests.score(png_bomb(0, 100)), "INVALID_ARGUMENT", "image.encoded", ("header",)),
    Case("one pixel", requests.score(requests.flat(size=(1, 1))), "INVALID_ARGUMENT", "image.encoded", ("1 x 1", "16")),
    Case(
        "too long",
        requests.score(requests.flat(size=(1000, 20))),
        "INVALID_ARGUMENT",
        "image.encoded",
        ("1000 x 20", "20 times"),
    ),
    Case(
        "too many bytes",
        requests.score(requests.flat() + bytes(IMAGE_BYTES)),
        "TOO_LARGE",
        "image.encoded",
        (str(IMAGE_BYTES), str(IMAGE_BYTES + len(requests.flat()))),
    ),
    Case("NaN", requests.score(requests.raw(with_value(np.nan))), "INVALID_ARGUMENT", "image.raw.data", ("nan", "3")),
    Case("infinity", requests.score(requests.raw(with_value(np.inf))), "INVALID_ARGUMENT", "image.raw.data", ("inf",)),
    Case(
        "float of 0..255",
        requests.score(requests.raw(with_value(200))),
        "INVALID_ARGUMENT",
        "image.raw.data",
        ("200", "0..1", "uint8"),
    ),
    Case(
        "too few bytes",
        requests.score(requests.raw(GREY, data=bytes(100))),
        "INVALID_ARGUMENT",
        "image.raw.data",
        ("100 bytes", str(GREY.nbytes)),
    ),
    Case(
        "too many raw bytes",
        requests.score(requests.raw(GREY, data=GREY.tobytes() + b"x")),
        "INVALID_ARGUMENT",
        "image.raw.data",
        (str(GREY.nbytes + 1), str(GREY.nbytes)),
    ),
    Case(
        "four channels",
        requests.score(requests.raw(np.zeros((32, 32, 4), np.uint8))),
        "INVALID_ARGUMENT",
        "image.raw.shape",
        ("4 channels", "3"),
    ),
    Case(
        "zero size",
        requests.score(requests.raw(GREY, data=b"", shape=[0, 32, 3])),
        "INVALID_ARGUMENT",
        "image.raw.shape",
        ("[0, 32, 3]".replace(",", ""),),
    ),
    Case(
        "two axes",
        requests.score(requests.raw(np.zeros((32, 32), np.uint8))),
        "INVALID_ARGUMENT",
        "image.raw.shape",
        ("2",),
    ),
    Case(
        "huge shape",
        requests.score(requests.raw(GREY, shape=[2**31, 2**31, 3])),
        "TOO_LARGE",
        "image.raw.shape",
        (str(2**31), "16384"),
    ),
    Case(
        "no picture",
        scoring_pb2.ScoreRequest(prompt="a cat"),
        "INVALID_ARGUMENT",
        "image",
        ("",),
        only=("grpc", "json", "protobuf"),
    ),
]
PROMPTS_AND_NAMES = [
    Case(
        "10 MB prompt",
        requests.score(prompt="a" * 10_000_000),
        "TOO_LARGE",
        "prompt",
        ("10000000", "8192"),
        only=("grpc", "json", "protobuf", "form"),
    ),
    Case("NUL in the prompt", requests.score(prompt="a\0b"), "INVALID_ARGUMENT", "prompt", ("NUL",)),
    Case("unknown model", requests.score(model="nope"), "NOT_FOUND", "target.model", ("nope", "spare", "tiny")),
    Case("unknown version", requests.score(version="9"), "NOT_FOUND", "target.version", ("'9'", "known versions: 1")),
    Case(
        "unknown dimension",
        requests.score(dimensions=["brightness", "beauty"]),
        "NOT_FOUND",
        "target.dimensions[1]",
        ("beauty", "brightness", "wordiness"),
    ),
    Case(
        "a dimension twice",
        requests.score(dimensions=["brightness", "brightness"]),
        "INVALID_ARGUMENT",
        "target.dimensions[1]",
        ("brightness", "twice"),
    ),
    Case(
        "no prompt where one is needed",
        requests.score(dimensions=["wordiness"]),
        "INVALID_ARGUMENT",
        "prompt",
        ("wordiness",),
    ),
    Case(
        "blank prompt where one is needed",
        requests.score(prompt=" \n\t ", dimensions=["wordiness"]),
        "INVALID_ARGUMENT",
        "prompt",
        ("wordiness",),
    ),
    Case("known but not loaded", requests.score(model="spare"), "MODEL_NOT_LOADED", "target.model", ("spare", "load")),
]
SEVERAL = [
    Case("empty batch", requests.batch([]), "INVALID_ARGUMENT", "items", ("at least one",)),
    Case(
        "duplicated ids",
        requests.batch([requests.score()] * 3, ["a", "b", "a"]),
        "INVALID_ARGUMENT",
        "items[2].id",
        ("'a'", "0", "2"),
        only=("grpc", "json", "protobuf"),
    ),
    Case(
        "an id that is another's index",
        requests.batch([requests.score()] * 2, ["1", ""]),
        "INVALID_ARGUMENT",
        "items[1].id",
        ("'1'",),
        only=("grpc", "json", "protobuf"),
    ),
    Case(
        "too many items",
        requests.batch([requests.score()] * (BATCH_ITEMS + 1)),
        "TOO_LARGE",
        "items",
        (str(BATCH_ITEMS + 1), str(BATCH_ITEMS)),
    ),
    Case("empty ranking", requests.rank([]), "INVALID_ARGUMENT", "images", ("at least one",)),
    Case(
        "too many to rank",
        requests.rank([requests.flat()] * (BATCH_ITEMS + 1)),
        "TOO_LARGE",
        "images",
        (str(BATCH_ITEMS + 1), str(BATCH_ITEMS)),
    ),
    Case(
        "ranking by two dimensions",
        requests.rank([requests.flat()], "a cat", dimensions=["brightness", "wordiness"]),
        "INVALID_ARGUMENT",
        "target.dimensions",
        ("one dimension", "2"),
    ),
    Case(
        "ranking by an unknown model",
        requests.rank([requests.flat()], model="nope"),
        "NOT_FOUND",
        "target.model",
        ("nope", "tiny"),
    ),
    Case(
        "ranking by an unknown dimension",
        requests.rank([requests.flat()], dimensions=["beauty"]),
        "NOT_FOUND",
        "target.dimensions[0]",
        ("beauty",),
    ),
    Case(
        "ranking without the prompt it needs",
        requests.rank([requests.flat()], dimensions=["wordiness"]),
        "INVALID_ARGUMENT",
        "prompt",
        ("wordiness",),
    ),
    Case(
        "ranking for too long a prompt",
        requests.rank([requests.flat()], "a" * 9000),
        "TOO_LARGE",
        "prompt",
        ("9000", "8192"),
    ),
    Case(
        "a broken second picture",
        requests.compare(requests.flat(), b"broken"),
        "INVALID_ARGUMENT",
        "second.encoded",
        ("accepted",),
    ),
    Case(
        "no first picture",
        scoring_pb2.CompareRequest(second=requests.image(requests.flat())),
        "INVALID_ARGUMENT",
        "first",
        ("",),
        only=("grpc", "protobuf"),
    ),
    Case(
        "comparing in an unknown dimension",
        requests.compare(requests.flat(), requests.flat(), dimensions=["beauty"]),
        "NOT_FOUND",
        "target.dimensions[0]",
        ("beauty",),
    ),
]
TRIALS = [
    pytest.param(case, face, id=f"{case.name}-{face}")
    for case in PICTURES + PROMPTS_AND_NAMES + SEVERAL
    for face in FACES
    if face in case.only and takes(face, case.request)
]


@pytest.mark.parametrize(("case", "face"), TRIALS)
async def test_is_refused(server: Server, case: Case, face: str) -> None:
    refusal = await server.ports.ask(face, case.request)
    assert isinstance(refusal, Refusal), refusal
    grpc_status, http_status = STATUS[case.code]
    assert refusal.status == (grpc_status if face == "grpc" else http_status), refusal
    assert (refusal.code, refusal.field) == (case.code, case.field), refusal
    told = refusal.message.replace(",", "")
    assert all(word.replace(",", "") in told for word in case.words), refusal
    assert 10 < len(refusal.message) < 1000
    assert "Traceback" not in refusal.message


@pytest.mark.parametrize("face", ["grpc", "json", "protobuf", "form"])
async def test_bad_items_leave_their_neighbours_alone(server: Server, face: str) -> None:
    pictures = [requests.flat(51), b"broken", requests.flat(102), encoded(photo(), "JPEG")[:-300]]
    answer = await server.ports.ask(face, requests.batch([requests.score(picture) for picture in pictures]))
    assert not isinstance(answer, Refusal), answer
    results = answer["results"]
    assert [result["id"] for result in results] == ["0", "1", "2", "3"]
    assert [result["result"]["scores"][0]["raw"] for result in results[::2]] == pytest.approx([0.2, 0.4])
    for result in results[1::2]:
        assert result["result"] is None
        assert (result["error"]["code"], result["error"]["field"]) == ("INVALID_ARGUMENT", "image.encoded")


@pytest.mark.parametrize("face", ["grpc", "json", "protobuf"])
async def test_an_item_can_fail_in_every_way_that_a_call_can(server: Server, face: str) -> None:
    cases = [case for case in PICTURES + PROMPTS_AND_NAMES if face in case.only and case.name != "two axes"]
    for start in range(0, len(cases), BATCH_ITEMS - 1):
        some = cases[start : start + BATCH_ITEMS - 1]
        answer = await server.ports.ask(face, requests.batch([requests.score(), *(case.request for case in some)]))
        assert not isinstance(answer, Refusal), answer
        good, *bad = answer["results"]
        assert good["error"] is None
        found = [(result["error"]["code"], result["error"]["field"]) for result in bad]
        assert found == [(case.code, case.field) for case in some]


@pytest.mark.parametrize("face", ["grpc", "json", "protobuf", "form"])
async def test_pictures_that_cannot_be_ranked_stand_last(server: Server, face: str) -> None:
    answer = await server.ports.ask(face, requests.rank([b"broken", requests.flat(51), b"", requests.flat(102)]))
    assert not isinstance(answer, Refusal), answer
    assert [(entry["index"], entry["rank"]) for entry in answer["ranking"]] == [(3, 1), (1, 2), (0, 0), (2, 0)]
    assert [entry["error"]["field"] for entry in answer["ranking"][2:]] == ["images[0].encoded", "images[2].encoded"]
