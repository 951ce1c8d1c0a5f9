"""Ranking with thresholds and diversity, over every face and through both clients."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from PIL import Image

import critiq
from critiq.v1 import scoring_pb2
from tests.server.api.conftest import Server
from tests.support import requests
from tests.support.bundles import write_bundle
from tests.support.colours import write_colours
from tests.support.faces import Refusal, ports
from tests.support.servers import make_settings, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

FACES = ("grpc", "json", "protobuf", "form")
CALIBRATED, RAW = scoring_pb2.Reason.SCALE_CALIBRATED, scoring_pb2.Reason.SCALE_RAW
PERCENTILE = scoring_pb2.Reason.SCALE_PERCENTILE


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    root = tmp_path_factory.mktemp("bundles")
    write_colours(root)
    write_bundle(root)
    settings = make_settings(root, default="colours", models={"load": ("colours", "tiny")})
    async with running(settings) as app, ports(app) as connected:
        yield Server(app, connected)


def colour(red: int, green: int, blue: int) -> bytes:
    file = BytesIO()
    Image.new("RGB", (24, 16), (red, green, blue)).save(file, "PNG")
    return file.getvalue()


REDDISH, RED, BLUE, DARK = colour(240, 60, 60), colour(230, 60, 60), colour(20, 20, 250), colour(40, 10, 10)


def request(
    pictures: Sequence[bytes] = (REDDISH, RED, BLUE, DARK),
    thresholds: Sequence[tuple[str, int, float]] = (),
    diversity: float = 0.0,
    embedding: str = "",
    top_k: int = 0,
    **asked: Any,
) -> Any:
    message = requests.rank(pictures, asked.pop("prompt", ""), top_k, **asked)
    for dimension, scale, at_least in thresholds:
        message.thresholds.add(dimension=dimension, scale=scale, at_least=at_least)
    message.diversity = diversity
    message.embedding = embedding
    return message


def entries(answer: Any) -> list[tuple[int, int]]:
    assert not isinstance(answer, Refusal), answer
    return [(entry["index"], entry["rank"]) for entry in answer["ranking"]]


@pytest.mark.parametrize("face", FACES)
async def test_thresholds(server: Server, face: str) -> None:
    asked = request(thresholds=[("red", PERCENTILE, 50), ("", CALIBRATED, 0.1)], top_k=1)
    answer = await server.ports.ask(face, asked)
    assert entries(answer) == [(0, 1), (2, 0), (3, 0)]
    assert isinstance(answer, dict)
    best, blue, dark = answer["ranking"]
    assert (best["missed"], best["reason"]) == ([], "")
    assert [score["dimension"] for score in best["others"]] == ["red"]
    missed = {"dimension": "red", "scale": "percentile", "at_least": 50.0, "value": pytest.approx(7.84)}
    assert blue["missed"] == [missed]
    assert blue["reason"] == "red percentile 7.84 is below 50"
    assert [entry["dimension"] for entry in dark["missed"]] == ["red", "brightness"]


@pytest.mark.parametrize("face", FACES)
async def test_diversity(server: Server, face: str) -> None:
    assert entries(await server.ports.ask(face, request(top_k=2))) == [(0, 1), (1, 2)]
    answer = await server.ports.ask(face, request(top_k=2, diversity=0.6))
    assert entries(answer) == [(0, 1), (2, 2), (1, 0)]
    assert isinstance(answer, dict)
    skipped = answer["ranking"][2]
    assert skipped["similar_to"] == 0
    assert skipped["similarity"] == pytest.approx(1.0, abs=1e-3)
    assert skipped["reason"].startswith("left out for picture 0")


async def test_everything_together_and_the_embedding_by_name(server: Server) -> None:
    for embedding in ("", "encoder", "encoder/colour"):
        asked = request(
            [b"broken", REDDISH, RED, BLUE, DARK], [("brightness", RAW, 0.2)], 0.6, embedding, 2, dimensions=["red"]
        )
        answer = await server.ports.ask("grpc", asked)
        assert entries(answer) == [(1, 1), (3, 2), (2, 0), (4, 0), (0, 0)]
        assert isinstance(answer, dict)
        assert answer["ranking"][-1]["error"]["field"] == "images[0].encoded"


async def test_scores_and_embedding_come_from_one_evaluation(server: Server) -> None:
    pictures = [colour(9, level, 9) for level in (31, 131, 231)]
    registry = server.app.metrics.registry
    name, labels = "critiq_batch_size_sum", {"model": "colours", "stage": "encoder"}
    before = registry.get_sample_value(name, labels) or 0
    await server.ports.ask("grpc", request(pictures, diversity=0.5))
    assert (registry.get_sample_value(name, labels) or 0) - before == 3


BAD = {
    "beyond 0..1": (request(diversity=1.5), "INVALID_ARGUMENT", "diversity", "1.5"),
    "no such embedding": (
        request(diversity=0.5, embedding="heads"),
        "INVALID_ARGUMENT",
        "embedding",
        "it has encoder/colour",
    ),
    "no such output": (request(diversity=0.5, embedding="encoder/x"), "INVALID_ARGUMENT", "embedding", "encoder/x"),
    "a model without": (request(diversity=0.5, model="tiny"), "INVALID_ARGUMENT", "diversity", "leave diversity at 0"),
    "no such dimension": (
        request(thresholds=[("", RAW, 0), ("beauty", RAW, 1)]),
        "NOT_FOUND",
        "thresholds[1].dimension",
        "it has brightness, red",
    ),
    "out of scale": (
        request(thresholds=[("red", CALIBRATED, 20)]),
        "INVALID_ARGUMENT",
        "thresholds[0].at_least",
        "0..1",
    ),
    "not a number": (
        request(thresholds=[("red", RAW, float("nan"))]),
        "INVALID_ARGUMENT",
        "thresholds[0].at_least",
        "nan",
    ),
    "without the prompt": (
        request(thresholds=[("wordiness", RAW, 1)], model="tiny"),
        "INVALID_ARGUMENT",
        "prompt",
        "needs the prompt",
    ),
    "too many": (request(thresholds=[("", RAW, 0)] * 17), "INVALID_ARGUMENT", "thresholds", "at most 16"),
    "a scale of the future": (request(thresholds=[("", 77, 0)]), "INVALID_ARGUMENT", "thresholds[0].scale", "77"),
}


@pytest.mark.parametrize("name", BAD)
async def test_what_cannot_be_ranked_so(server: Server, name: str) -> None:
    asked, code, field, text = BAD[name]
    for face in ("grpc", "protobuf"):
        answer = await server.ports.ask(face, asked)
        assert isinstance(answer, Refusal)
        assert (answer.code, answer.field) == (code, field)
        assert text in answer.message


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"diversity": "much"}, "diversity"),
        ({"diversity": "."}, "diversity"),
        ({"diversity": "2"}, "diversity"),
        ({"at_least": "red>=3"}, "thresholds"),
        ({"at_least": ["red:raw=0.1", "blue:raw=3"]}, "thresholds[1].dimension"),
        ({"top_k": "-1"}, "top_k"),
    ],
)
async def test_forms_that_cannot_be_read(server: Server, fields: dict[str, Any], field: str) -> None:
    answer = await server.ports.http.post("/v1/rank", data=fields, files=[("image", ("a.png", RED))])
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()["error"]["field"] == field


async def test_json_that_cannot_be_read(server: Server) -> None:
    for body, field in (
        ({"diversity": 3}, "diversity"),
        ({"thresholds": [{"scale": "raw"}]}, "thresholds[0].at_least"),
        ({"thresholds": [{"scale": "stars", "at_least": 3}]}, "thresholds[0].scale"),
        ({"top_k": 2**40}, "top_k"),
    ):
        answer = await server.ports.http.post("/v1/rank", json={"images": [{"base64": ""}], **body})
        assert answer.status_code == 400
        assert answer.json()["error"]["field"] == field


@pytest.mark.parametrize("scheme", ["", "http://"])
async def test_through_the_client(server: Server, scheme: str) -> None:
    port = server.app.rest_port if scheme else server.app.grpc_port
    async with critiq.AsyncClient(f"{scheme}127.0.0.1:{port}") as client:
        result = await client.rank(
            [REDDISH, RED, BLUE, DARK],
            top_k=2,
            at_least=["brightness:percentile=10", critiq.Threshold(0.01, "red", "raw")],
            diversity=0.6,
        )
        assert [(entry.index, entry.rank) for entry in result.ranking] == [(0, 1), (2, 2), (1, 0), (3, 0)]
        assert result.ranking[2].similar_to == 0
        with pytest.raises(critiq.InvalidArgument, match="at_least: give a sequence"):
            await client.rank([RED], at_least="raw=3")
        with pytest.raises(critiq.InvalidArgument, match=r"thresholds\[0\].scale"):
            await client.rank([RED], at_least=[critiq.Threshold(3, scale="stars")])  # type: ignore[arg-type]
        with pytest.raises(critiq.InvalidArgument, match="diversity"):
            await client.rank([RED], diversity=-1)


async def test_on_the_command_line(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a-reddish.png", "b-red.png", "c-blue.png", "d-dark.png"]
    for name, data in zip(names, (REDDISH, RED, BLUE, DARK), strict=True):
        (tmp_path / name).write_bytes(data)
    monkeypatch.setenv("CRITIQ_URL", f"127.0.0.1:{server.app.grpc_port}")

    async def rank(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "critiq.cli", "rank", *names, *options]
        return await asyncio.to_thread(subprocess.run, command, cwd=tmp_path, capture_output=True, text=True)

    asked = ("--at-least", "brightness:percentile=10", "--at-least", "red:raw=0.01", "--diversity", "0.6", "--top", "2")
    done, shown, wrong = await asyncio.gather(rank(*asked, "--json"), rank(*asked), rank("--at-least", "red=1"))
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["rank"], line["file"]) for line in lines] == [
        (1, names[0]),
        (2, names[2]),
        (0, names[1]),
        (0, names[3]),
    ]
    assert lines[2]["similar_to"] == names[0]
    assert lines[3]["reason"] == "brightness percentile 7.84 is below 10"
    assert "left out for a-reddish.png: similarity" in shown.stdout
    assert "brightness percentile 7.84 is below 10" in shown.stdout
    assert wrong.returncode != 0
    assert "'red=1' is no threshold; write DIMENSION:SCALE=NUMBER" in wrong.stderr
    assert "Traceback" not in wrong.stderr
