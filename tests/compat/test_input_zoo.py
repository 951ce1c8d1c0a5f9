"""Pictures of every kind that callers send, over every face of ours and one of the trainers': the same score with the
same report, or the same refusal."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from critiq_server.app import App
from tests.compat.trainers import rest, trainer_server
from tests.fixtures.images import animation, encoded, oriented, photo, png, png_bomb
from tests.support import requests
from tests.support.faces import Ports, Refusal, ports

pytestmark = pytest.mark.asyncio(loop_scope="module")

FACES = ("grpc", "json", "protobuf", "form", "file")
PHOTO = photo(96, 64)
BRIGHT = float(np.asarray(PHOTO).mean() / 255)
GREY = (100, 100, 100)
HALF = Image.new("RGBA", (40, 30), (*GREY, 0))
HALF.paste((*GREY, 255), (0, 0, 20, 30))
ON_WHITE = (100 + 255) / 2 / 255
FRAMES = [Image.new("RGB", (40, 30), (level, level, level)) for level in (51, 204)]


def grey_and_alpha() -> bytes:
    image = Image.new("LA", (40, 30), (100, 0))
    image.paste((100, 255), (0, 0, 20, 30))
    return encoded(image, "PNG")


def palette() -> bytes:
    """Left half index 0 (grey), right half index 1 (transparent)."""
    levels = np.zeros((30, 40), np.uint8)
    levels[:, 20:] = 1
    return png(levels, 3, 8, palette=bytes([*GREY, 9, 9, 9]), transparency=bytes([255, 0]))


@dataclass(frozen=True)
class Taken:
    data: bytes
    format: str
    size: tuple[int, int]
    brightness: float
    flags: frozenset[str] = frozenset()
    tolerance: float = 0.02


@dataclass(frozen=True)
class Refused:
    data: bytes
    words: str
    code: str = "INVALID_ARGUMENT"
    status: int = field(default=400)


def flags(*names: str) -> frozenset[str]:
    return frozenset(names)


TAKEN = {
    **{
        f"EXIF orientation {number}": Taken(
            oriented(PHOTO, number),
            "JPEG",
            (96, 64) if number < 5 else (64, 96),
            BRIGHT,
            flags("orientation_applied") if number > 1 else flags(),
        )
        for number in range(1, 9)
    },
    "RGBA": Taken(encoded(HALF, "PNG"), "PNG", (40, 30), ON_WHITE, flags("alpha_flattened")),
    "RGBA in WebP": Taken(encoded(HALF, "WEBP", lossless=True), "WEBP", (40, 30), ON_WHITE, flags("alpha_flattened")),
    "LA": Taken(grey_and_alpha(), "PNG", (40, 30), ON_WHITE, flags("alpha_flattened", "colour_converted")),
    "P with tRNS": Taken(palette(), "PNG", (40, 30), ON_WHITE, flags("alpha_flattened", "colour_converted")),
    "I;16": Taken(
        png(np.full((30, 40), 0x8000, np.uint16), 0, 16),
        "PNG",
        (40, 30),
        0.5,
        flags("depth_scaled", "colour_converted"),
    ),
    "RGB of 16 bits": Taken(
        png(np.full((30, 40, 3), 0x4000, np.uint16), 2, 16), "PNG", (40, 30), 0.25, flags("depth_scaled")
    ),
    "CMYK": Taken(
        encoded(Image.new("CMYK", (40, 30), (0, 0, 0, 128)), "JPEG"), "JPEG", (40, 30), 0.5, flags("colour_converted")
    ),
    "grey": Taken(encoded(Image.new("L", (40, 30), 51), "JPEG"), "JPEG", (40, 30), 0.2, flags("colour_converted")),
    "animated WebP": Taken(animation("WEBP", FRAMES, lossless=True), "WEBP", (40, 30), 0.2, flags("first_frame_only")),
    "animated PNG": Taken(animation("PNG", FRAMES), "PNG", (40, 30), 0.2, flags("first_frame_only")),
    "the smallest": Taken(encoded(FRAMES[0].resize((16, 16)), "PNG"), "PNG", (16, 16), 0.2),
}
REFUSED = {
    "animated GIF": Refused(animation("GIF", FRAMES), "a GIF file"),
    "truncated JPEG": Refused(encoded(PHOTO)[:900], "truncated"),
    "truncated PNG": Refused(encoded(PHOTO, "PNG")[:-20], "truncated"),
    "truncated WebP": Refused(encoded(PHOTO, "WEBP")[:300], "truncated"),
    "one pixel": Refused(
        encoded(Image.new("RGB", (1, 1)), "PNG"), "1 x 1 pixels; its shorter side must have at least 16"
    ),
    "30000 x 1": Refused(encoded(Image.new("RGB", (30_000, 1)), "PNG"), "30000 x 1 pixels"),
    "30000 x 16": Refused(encoded(Image.new("RGB", (30_000, 16)), "PNG"), "30000 x 16 pixels", "TOO_LARGE", 413),
    "16000 x 16": Refused(encoded(Image.new("RGB", (16_000, 16)), "PNG"), "at most 20 times the shorter"),
    "bomb": Refused(png_bomb(50_000, 50_000), "50000", "TOO_LARGE", 413),
    "TIFF": Refused(encoded(PHOTO, "TIFF"), "a TIFF file"),
    "EPS": Refused(encoded(PHOTO, "EPS"), "a PostScript file"),
    "SVG": Refused(b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>', "an SVG file"),
    "nothing": Refused(b"", "0 bytes"),
}


@dataclass
class Zoo:
    app: App
    ports: Ports


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def zoo(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Zoo]:
    faces = {"unirl": {"enabled": True}}
    async with trainer_server(tmp_path_factory.mktemp("zoo"), **faces) as app, ports(app) as connected:
        yield Zoo(app, connected)


async def unirl(zoo: Zoo, data: bytes) -> Any:
    turn = {"text": "a cat", "image_b64": base64.b64encode(data).decode()}
    body = {"requests": [{"history": [turn], "required_rewards": ["bright"], "metadata": None}]}
    answer = await zoo.ports.http.post(f"{rest(zoo.app)}/compat/unirl/score", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("name", TAKEN)
async def test_taken(zoo: Zoo, name: str) -> None:
    case = TAKEN[name]
    for face in FACES:
        answer = await zoo.ports.ask(face, requests.score(case.data))
        assert isinstance(answer, dict), (face, answer)
        report = answer["image"]
        assert (report["format"], (report["width"], report["height"])) == (case.format, case.size), face
        told = {entry for entry, value in report.items() if value is True} - {"resized"}
        assert told == case.flags, face
        assert answer["scores"][0]["raw"] == pytest.approx(case.brightness, abs=case.tolerance), face
    ((found,),) = ([result["bright"]] for result in (await unirl(zoo, case.data))["results"])
    assert next(iter(found.values())) == pytest.approx(case.brightness, abs=case.tolerance)


@pytest.mark.parametrize("name", REFUSED)
async def test_refused(zoo: Zoo, name: str) -> None:
    case = REFUSED[name]
    for face in FACES:
        answer = await zoo.ports.ask(face, requests.score(case.data))
        assert isinstance(answer, Refusal), (face, answer)
        assert answer.code == case.code, (face, answer)
        assert answer.status in (case.status, "INVALID_ARGUMENT"), face
        assert answer.field.startswith("image"), face
        assert case.words in answer.message.replace(",", ""), (face, answer.message)
    answer = await unirl(zoo, case.data)
    assert "bright" not in answer["results"][0]
    assert case.words in answer["errors"][0]["bright"].replace(",", "")


@pytest.mark.parametrize("face", ["grpc", "json", "form"])
async def test_a_bad_one_leaves_its_neighbours_alone(zoo: Zoo, face: str) -> None:
    cases = [*TAKEN.values(), *REFUSED.values()]
    answer = await zoo.ports.ask(face, requests.batch([requests.score(case.data) for case in cases]))
    assert isinstance(answer, dict)
    assert [entry["result"] is not None for entry in answer["results"]] == [isinstance(case, Taken) for case in cases]
