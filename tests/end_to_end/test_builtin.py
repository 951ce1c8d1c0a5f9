"""The model that comes with the server, as a newcomer meets it: ``critiq serve`` and a picture."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import httpx
import numpy as np
import pytest
import pytest_asyncio

from critiq import types, wire
from critiq.v1 import models_pb2, scoring_pb2
from tests.fixtures.images import encoded, photo
from tests.support import requests
from tests.support.faces import PROTOBUF, plain
from tests.support.photographs import SPOILED, photographs
from tests.support.servers import server_process

pytestmark = pytest.mark.asyncio(loop_scope="module")
PHOTOGRAPHS = 12


@dataclass
class Service:
    channel: grpc.aio.Channel
    http: httpx.AsyncClient

    async def score(self, picture: bytes, prompt: str = "") -> types.ScoreResult:
        data = await self.channel.unary_unary("/critiq.v1.Scoring/Score")(
            requests.score(picture, prompt).SerializeToString(), timeout=60
        )
        return wire.result_from_proto(scoring_pb2.ScoreResponse.FromString(data))

    async def batch(self, pictures: list[bytes], prompts: list[str]) -> list[types.ScoreResult]:
        asked = requests.batch([requests.score(*pair) for pair in zip(pictures, prompts, strict=True)])
        response = await self.http.post(
            "/v1/score/batch", content=asked.SerializeToString(), headers={"content-type": PROTOBUF}
        )
        message = scoring_pb2.ScoreBatchResponse.FromString(response.content)
        return [wire.item_from_proto(entry).unwrap() for entry in message.results]

    async def model(self) -> types.Model:
        data = await self.channel.unary_unary("/critiq.v1.Models/Get")(b"", timeout=60)
        return wire.model_from_proto(models_pb2.Model.FromString(data))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """The server with its defaults, except that it remembers nothing: every score is computed."""
    log = tmp_path_factory.mktemp("builtin") / "log"
    with server_process(["--set", "engine.store_mb=0"], log) as server:
        async with (
            httpx.AsyncClient(base_url=server.rest, timeout=60, trust_env=False) as http,
            grpc.aio.insecure_channel(server.grpc) as channel,
        ):
            yield Service(channel, http)


async def test_a_picture_is_scored_alike_over_both_faces(service: Service) -> None:
    picture = encoded(photo(640, 480), "JPEG")
    over_grpc = await service.score(picture, "a colourful abstract painting")
    response = await service.http.post(
        "/v1/score", files={"image": picture}, data={"prompt": "a colourful abstract painting"}
    )
    assert response.status_code == 200
    assert response.json() == plain(over_grpc)
    assert {"visual_quality", "alignment"} <= {score.dimension for score in over_grpc}
    for score in over_grpc:
        assert score.model == "critiq-builtin"
        assert score.calibrated is not None
        assert score.percentile is not None
        assert 0 <= score.calibrated <= 1
        assert 0 <= score.percentile <= 100


async def test_what_it_judges_is_described(service: Service) -> None:
    model = await service.model()
    assert model.is_default
    needs = {dimension.name: dimension.needs_prompt for dimension in model.dimensions}
    assert not needs["visual_quality"]
    assert needs["alignment"]
    for dimension in model.dimensions:
        assert dimension.reference_count > 100
        assert dimension.description


async def test_the_prompt_does_not_change_the_visual_quality(service: Service) -> None:
    picture = encoded(photo(640, 480), "JPEG")
    alone = await service.score(picture)
    for prompt in ("a cat on a sofa", "quarterly report", "x " * 500):
        judged = await service.score(picture, prompt)
        for score in alone:
            assert judged[score.dimension].raw == score.raw


@pytest.mark.slow
async def test_spoiled_pictures_look_worse(service: Service) -> None:
    worse: dict[str, list[bool]] = {}
    for image, _ in photographs("kodak", PHOTOGRAPHS):
        clean = (await service.score(encoded(image, "PNG")))["visual_quality"].raw
        for kind, spoil in SPOILED.items():
            worse.setdefault(kind, []).append((await service.score(spoil(image)))["visual_quality"].raw < clean)
    shares = {kind: sum(flags) / len(flags) for kind, flags in worse.items()}
    assert min(shares.values()) >= 0.9, shares


async def test_a_picture_fits_its_own_caption_better_than_anothers(service: Service) -> None:
    pairs = [(encoded(image, "JPEG"), line["captions"][0]) for image, line in photographs("coco_mini", PHOTOGRAPHS)]
    right = [
        (await service.score(picture, own))["alignment"].raw
        > (await service.score(picture, pairs[number - 1][1]))["alignment"].raw
        for number, (picture, own) in enumerate(pairs)
    ]
    assert sum(right) / len(right) >= 0.75, right


async def test_the_score_does_not_depend_on_the_company(service: Service) -> None:
    pictures = [encoded(photo(200 + 17 * number, 300, seed=number), "JPEG") for number in range(33)]
    prompts = [" ".join(["a", "red", "cat", "and", "a", "house"][: 1 + number % 6]) for number in range(33)]
    tolerance = {dimension.name: dimension.tolerance for dimension in (await service.model()).dimensions}
    together = await service.batch(pictures, prompts)
    again = (await service.batch(pictures[::-1], prompts[::-1]))[::-1]
    for number in (0, 7, 16, 32):
        alone = await service.score(pictures[number], prompts[number])
        for score in alone:
            for other in (together[number][score.dimension], again[number][score.dimension]):
                assert abs(other.raw - score.raw) <= tolerance[score.dimension]
                assert other.calibrated == pytest.approx(score.calibrated, abs=1.01e-4)


async def test_the_score_depends_on_the_pixels_and_not_on_how_they_came(service: Service) -> None:
    image = photo(320, 240)
    as_file = await service.score(encoded(image, "PNG"))
    as_pixels = await service.score(requests.raw(np.asarray(image)))  # type: ignore[arg-type]
    assert [score.raw for score in as_file] == [score.raw for score in as_pixels]
