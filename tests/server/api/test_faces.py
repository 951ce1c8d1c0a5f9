"""Every operation gives the same answer over every face."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from critiq import wire
from critiq.v1 import scoring_pb2
from tests.fixtures.images import photo
from tests.server.api.conftest import Server
from tests.support import requests
from tests.support.faces import FACES, PROTOBUF, Refusal, http_refusal, plain, takes

pytestmark = pytest.mark.asyncio(loop_scope="module")

PHOTO = np.asarray(photo(40, 30))
REQUESTS = {
    "a picture alone": requests.score(requests.flat(11)),
    "a picture and its prompt": requests.score(requests.flat(12, kind="JPEG"), "a red cat"),
    "one dimension": requests.score(requests.flat(13), "a red cat", dimensions=["wordiness"]),
    "dimensions in their own order": requests.score(
        requests.flat(14), "a dog", dimensions=["wordiness", "brightness"], model="tiny", version="1"
    ),
    "a prompt beyond ASCII that is cut": requests.score(requests.flat(15), "猫 é & = + % 'quoted' " * 9),
    "pixels": requests.score(requests.raw(PHOTO), "a cat"),
    "float pixels, channels first": requests.score(
        requests.raw(np.float32(PHOTO.transpose(2, 0, 1)) / 255, chw=True), "a cat"
    ),
    "a batch": requests.batch([requests.score(requests.flat(level), f"a cat {level}") for level in (20, 21, 22)]),
    "a batch with a bad item": requests.batch([requests.score(requests.flat(23)), requests.score(b"broken")]),
    "a ranking": requests.rank([requests.flat(level) for level in (31, 200, 90)], "a cat"),
    "the best two of three and a broken one": requests.rank(
        [requests.flat(31), b"", requests.flat(200), requests.flat(90)], top_k=2
    ),
    "a comparison": requests.compare(requests.flat(40), requests.flat(41), "a house"),
    "a tie": requests.compare(requests.flat(42), requests.flat(42, kind="WEBP")),
}


def without_store(answer: Any) -> Any:
    """The answer but for whether it came from the store: the faces ask one after the other."""
    if isinstance(answer, dict):
        return {name: without_store(value) for name, value in answer.items() if name != "from_store"}
    return [without_store(entry) for entry in answer] if isinstance(answer, list) else answer


@pytest.mark.parametrize("name", REQUESTS)
async def test_the_same_answer(server: Server, name: str) -> None:
    request = REQUESTS[name]
    faces = [face for face in FACES if takes(face, request)]
    assert len(faces) >= 3
    answers = [await server.ports.ask(face, request) for face in faces]
    for face, answer in zip(faces, answers, strict=True):
        assert not isinstance(answer, Refusal), (face, answer)
        assert without_store(answer) == without_store(answers[0]), face


async def test_what_an_answer_holds(server: Server) -> None:
    answer = await server.ports.ask("json", requests.score(requests.flat(102), "a red cat"))
    assert answer == {
        "scores": [
            {
                "dimension": "brightness",
                "raw": pytest.approx(0.4),
                "calibrated": 0.4,
                "percentile": 40.0,
                "direction": "higher_is_better",
                "scope": "absolute",
                "model": "tiny",
                "model_version": "1",
                "from_store": False,
                "degraded": False,
                "degraded_reason": "",
            },
            {
                "dimension": "wordiness",
                "raw": pytest.approx(2.0),  # brightness times five tokens
                "calibrated": 0.125,
                "percentile": 12.5,
                "direction": "higher_is_better",
                "scope": "absolute",
                "model": "tiny",
                "model_version": "1",
                "from_store": False,
                "degraded": False,
                "degraded_reason": "",
            },
        ],
        "image": {
            "format": "PNG",
            "width": 40,
            "height": 30,
            "orientation_applied": False,
            "alpha_flattened": False,
            "depth_scaled": False,
            "colour_converted": False,
            "first_frame_only": False,
            "resized": True,
        },
        "prompt": {"token_count": 5, "token_limit": 16, "truncated": False},
    }


async def test_without_a_prompt_only_what_needs_none_is_judged(server: Server) -> None:
    answer = await server.ports.ask("grpc", requests.score(requests.flat(103)))
    assert not isinstance(answer, Refusal)
    assert [score["dimension"] for score in answer["scores"]] == ["brightness"]
    assert answer["prompt"] is None


async def test_a_picture_seen_before_comes_from_the_store(server: Server) -> None:
    for seen, kind in ((False, "PNG"), (True, "PNG"), (True, "WEBP")):  # the pixels decide, not the file
        answer = await server.ports.ask("grpc", requests.score(requests.flat(0, kind=kind), "a dog"))
        assert not isinstance(answer, Refusal)
        assert [score["from_store"] for score in answer["scores"]] == [seen, seen], kind


async def test_ranking_goes_by_the_prompt_if_there_is_one(server: Server) -> None:
    pictures = [requests.flat(level) for level in (30, 250, 30, 100)]
    with_prompt = await server.ports.ask("grpc", requests.rank(pictures, "a cat"))
    without = await server.ports.ask("grpc", requests.rank(pictures))
    chosen = await server.ports.ask("grpc", requests.rank(pictures, "a cat", dimensions=["brightness"]))
    blank = await server.ports.ask("grpc", requests.rank(pictures, "  "))
    for answer in (with_prompt, without, chosen, blank):
        assert not isinstance(answer, Refusal)
        places = [(entry["index"], entry["rank"]) for entry in answer["ranking"]]
        assert places == [(1, 1), (3, 2), (0, 3), (2, 3)], "equal scores share a rank, in the order of the request"
    assert [answer["dimension"] for answer in (with_prompt, without, chosen, blank)] == [  # type: ignore[index]
        "wordiness",
        "brightness",
        "brightness",
        "brightness",
    ]


async def test_a_comparison_says_which_is_better_in_every_dimension(server: Server) -> None:
    for first, second, preference in ((10, 20, "second"), (20, 10, "first"), (10, 10, "tie")):
        answer = await server.ports.ask(
            "json", requests.compare(requests.flat(first), requests.flat(second), "a red house")
        )
        assert not isinstance(answer, Refusal)
        found = {entry["dimension"]: entry["preference"] for entry in answer["comparisons"]}
        assert found == {"brightness": preference, "wordiness": preference}


async def test_a_stream_answers_every_item_over_both_faces(server: Server) -> None:
    bodies = [requests.score(requests.flat(level) if level % 5 else b"broken", "a cat") for level in range(50, 70)]
    batch = requests.batch(bodies[:8], [f"item {number}" for number in range(8)])
    call = server.ports.channel.stream_stream("/critiq.v1.Scoring/ScoreStream")
    over_grpc = []
    async for data in call(iter([item.SerializeToString() for item in batch.items])):
        message = scoring_pb2.ScoreItemResult()
        message.ParseFromString(data)
        over_grpc.append(plain(wire.item_from_proto(message)))
    response = await server.ports.http.post(
        "/v1/score/stream", content=batch.SerializeToString(), headers={"content-type": PROTOBUF}
    )
    assert response.headers["content-type"] == "application/x-ndjson"
    over_rest = [json.loads(line) for line in response.text.splitlines()]

    def in_order(answers: list[Any]) -> list[Any]:
        return without_store(sorted(answers, key=lambda answer: str(answer["id"])))  # type: ignore[no-any-return]

    assert in_order(over_grpc) == in_order(over_rest)
    assert [answer["id"] for answer in in_order(over_grpc)] == [f"item {number}" for number in range(8)]
    assert {answer["id"] for answer in over_grpc if answer["error"]} == {"item 0", "item 5"}


@pytest.mark.parametrize("ids", [["a", ""], [""]])
async def test_stream_items_need_ids_of_their_own(server: Server, ids: list[str]) -> None:
    items = requests.batch([requests.score(requests.flat(3))] * len(ids), ids).items
    call = server.ports.channel.stream_stream("/critiq.v1.Scoring/ScoreStream")(
        iter([item.SerializeToString() for item in items])
    )
    with pytest.raises(Exception, match="every item needs its own") as failure:
        async for _ in call:
            pass
    assert "INVALID_ARGUMENT" in str(failure.value)


async def test_a_bad_batch_fails_the_rest_stream_before_it_starts(server: Server) -> None:
    response = await server.ports.http.post("/v1/score/stream", json={"items": [{}]})
    refusal = http_refusal(response)
    assert (refusal.status, refusal.field) == (400, "items[0].image")
