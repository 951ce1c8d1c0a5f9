"""The CLIP-shaped families from the command line to a running server, against transformers and Pillow."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from critiq import Client
from critiq.types import Score
from critiq_exporters.cli import main
from critiq_exporters.core.pictures import drawn_pictures
from critiq_exporters.families.clip.folder import open_clip_folder
from critiq_exporters.families.clip.network import ImageEncoder
from critiq_server.bundles.manifest import NativeView
from critiq_server.bundles.model import read_manifest
from tests.exporters.families.clip_made import (
    CONTEXT,
    RESNET_SCALE,
    SCALE,
    SIDE,
    hugging_face_clip,
    image_reward_state,
    laion_head_state,
    save_hugging_face,
    save_image_reward,
    save_open_clip,
    save_open_clip_resnet,
)
from tests.exporters.families.clip_oracles import (
    bert_ids,
    image_features,
    image_reward,
    middle,
    on_black,
    perceptron,
    pixel_values,
    text_features,
)
from tests.support.servers import ServerProcess, server_process

pytestmark = pytest.mark.slow

MODELS = ("clipscore", "pickscore", "hpsv2", "laion-aesthetics", "clip-iqa", "imagereward")
PIXELS = [*drawn_pictures(9)[4:], drawn_pictures(2)[1][:, :-17]]  # the last with an odd excess
PICTURES = [Image.fromarray(pixels) for pixels in PIXELS]
PROMPTS = ["the red circle", "red", "photo of the sea, in oil", "in it", "x" * 40, "a hill"]


@dataclass(frozen=True)
class Served:
    folder: Path
    server: ServerProcess
    client: Client

    def scores(self, model: str, dimension: str, prompts: bool = True) -> list[Score]:
        """Of all pictures, each with its prompt."""
        items = list(zip(PIXELS, PROMPTS, strict=True)) if prompts else PIXELS
        return [item.unwrap()[dimension] for item in self.client.score_batch(items, model=model)]

    def computed(self, model: str, stage: str) -> int:
        """How many items a stage has computed so far."""
        text = httpx.get(self.server.metrics).text
        found = re.search(rf'critiq_batch_size_sum{{model="{model}",stage="{stage}"}} (\S+)', text)
        return int(float(found[1])) if found else 0


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("clip")
    save_hugging_face(folder / "clip", layers=1)
    save_open_clip(folder / "open_clip", layers=1)
    save_open_clip_resnet(folder / "resnet")
    save_image_reward(folder / "imagereward", layers=1)
    torch.save(laion_head_state(), folder / "head.pth")
    flags = {
        "clipscore": ["--checkpoint", "clip", "--prefix", "the"],
        "pickscore": ["--checkpoint", "clip"],
        "hpsv2": ["--checkpoint", "open_clip", "--activation", "config"],
        "laion-aesthetics": ["--checkpoint", "clip", "--head", str(folder / "head.pth")],
        "clip-iqa": ["--checkpoint", "resnet", "--attributes", "sharpness;redness=the red|the sea", "--side", "400"],
        "imagereward": ["--checkpoint", "imagereward"],
    }
    for model in MODELS:
        command = [flags[model][0], str(folder / flags[model][1]), *flags[model][2:], "--max-batch", "2"]
        assert main([model, *command, "--out", str(folder / "models"), "--count", "4"]) == 0
    loads = [part for model in MODELS for part in ("--load", model)]
    start = ["--models", str(folder / "models"), "--default", MODELS[0], *loads]
    with server_process(start, folder / "log") as server, Client(server.grpc) as client:
        yield Served(folder, server, client)


def raw(scores: list[Score]) -> list[float]:
    return [score.raw for score in scores]


def middles(rounded: bool) -> list[Image.Image]:
    return [middle(picture, SIDE, rounded) for picture in PICTURES]


def test_clipscore(served: Served) -> None:
    theirs = hugging_face_clip(layers=1)
    texts = text_features(theirs, served.folder / "clip", [f"the {text}" for text in PROMPTS])
    cosines = (image_features(theirs, pixel_values(middles(rounded=True))) * texts).sum(dim=1)
    expected = 2.5 * cosines.clamp(min=0)
    assert (expected > 0).any()
    assert (expected == 0).any()
    found = served.scores("clipscore", "alignment")
    np.testing.assert_allclose(raw(found), expected, atol=1e-5)
    assert (found[0].scope, found[0].calibrated) == ("absolute", None)


def test_pickscore(served: Served) -> None:
    theirs = hugging_face_clip(layers=1)
    texts = text_features(theirs, served.folder / "clip", PROMPTS)
    expected = SCALE * (image_features(theirs, pixel_values(middles(rounded=False))) * texts).sum(dim=1)
    found = served.scores("pickscore", "preference")
    np.testing.assert_allclose(raw(found), expected, atol=1e-3)
    assert (found[0].scope, found[0].direction) == ("within_prompt", "higher_is_better")


def test_pictures_of_one_prompt_are_ranked_by_preference(served: Served) -> None:
    ranked = served.client.rank(PIXELS, "the red circle", model="pickscore")
    assert ranked.dimension == "preference"
    found = [served.client.score(pixels, "the red circle", model="pickscore")["preference"].raw for pixels in PIXELS]
    assert [entry.index for entry in ranked.ranking] == list(np.argsort(found)[::-1])


def test_hps(served: Served) -> None:
    theirs = hugging_face_clip(layers=1)
    values = pixel_values([on_black(picture, SIDE) for picture in PICTURES], (0.5, 0.4, 0.3), (0.25, 0.26, 0.27))
    texts = text_features(theirs, served.folder / "open_clip", PROMPTS)
    found = served.scores("hpsv2", "preference")
    np.testing.assert_allclose(raw(found), (image_features(theirs, values) * texts).sum(dim=1), atol=1e-5)


def test_laion_aesthetics(served: Served) -> None:
    features = image_features(hugging_face_clip(layers=1), pixel_values(middles(rounded=True)))
    expected = perceptron(dict(laion_head_state()), features).numpy()
    found = served.scores("laion-aesthetics", "aesthetics", prompts=False)
    np.testing.assert_allclose(raw(found), expected, atol=1e-5)
    assert [score.calibrated for score in found] == pytest.approx(np.clip((expected - 1) / 9, 0, 1), abs=1e-4)


def test_clip_iqa_looks_at_pictures_at_their_own_size(served: Served) -> None:
    manifest = read_manifest(served.folder / "models" / "clip-iqa" / "1")
    assert manifest.stages[0].inputs["image"].view == NativeView(shorter_min=32, longer_max=400)  # type: ignore[union-attr]
    assert not manifest.tokenizers  # the texts are constants of the head
    folder = open_clip_folder(served.folder / "resnet", positions=False)
    encoder = ImageEncoder(folder.network.image, folder.mean, folder.std)
    whole = [torch.from_numpy(pixels.copy())[None] for pixels in PIXELS if max(pixels.shape) <= 400]
    assert len({pixels.shape for pixels in whole}) > 1
    with torch.inference_mode():
        features = torch.cat([encoder(pixels) for pixels in whole])
    pairs = {"sharpness": ("Sharp photo.", "Blurry photo."), "redness": ("the red", "the sea")}
    for name, texts in pairs.items():
        theirs = text_features(hugging_face_clip(layers=1), served.folder / "resnet", texts)
        found = served.scores("clip-iqa", name, prompts=False)
        shown = [score.raw for score, pixels in zip(found, PIXELS, strict=True) if max(pixels.shape) <= 400]
        expected = (RESNET_SCALE * features @ theirs.T).softmax(dim=1)[:, 0]
        assert name != "redness" or expected.std() > 0.005
        np.testing.assert_allclose(shown, expected, atol=2e-5)
        assert [score.calibrated for score in found] == pytest.approx(raw(found), abs=1e-4)


def test_imagereward(served: Served) -> None:
    ids, mask = bert_ids(served.folder / "imagereward", PROMPTS, 35)
    _, expected = image_reward(image_reward_state(layers=1), pixel_values(middles(rounded=True)), ids, mask)
    found = served.scores("imagereward", "preference")
    np.testing.assert_allclose(raw(found), expected, atol=1e-5)
    assert found[0].scope == "within_prompt"


def test_a_prompt_is_encoded_once_for_many_pictures(served: Served) -> None:
    before = served.computed("pickscore", "text"), served.computed("pickscore", "image")
    fresh = drawn_pictures(14)[9:]
    for item in served.client.score_batch(
        [(pixels, "nobody asked for this before") for pixels in fresh], model="pickscore"
    ):
        item.unwrap()
    after = served.computed("pickscore", "text"), served.computed("pickscore", "image")
    assert (after[0] - before[0], after[1] - before[1]) == (1, 5)


def test_a_picture_is_encoded_once_for_many_prompts(served: Served) -> None:
    fresh = drawn_pictures(15)[14]
    for model, stage in (("imagereward", "picture"), ("clipscore", "image")):
        before = served.computed(model, stage)
        found = [served.client.score(fresh, f"{text} hill", model=model) for text in ("red", "green", "oil")]
        assert served.computed(model, stage) == before + 1
        assert len({result.scores[0].raw for result in found}) == 3


def test_a_prompt_that_is_too_long_is_cut_before_its_end_and_said_to_be(served: Served) -> None:
    """The first 18 letters and the two marks fill the table of 20 positions."""
    short, long = "r e d i n o a t h e r e d i n o x q", "r e d i n o a t h e r e d i n o x q and more"
    first, second = (served.client.score(PIXELS[0], text, model="pickscore") for text in (short, long))
    assert first.prompt is not None
    assert second.prompt is not None
    assert (first.prompt.truncated, second.prompt.truncated) == (False, True)
    assert (second.prompt.token_limit, first.prompt.token_count) == (CONTEXT, CONTEXT)
    assert first["preference"].raw == pytest.approx(second["preference"].raw, abs=1e-4)


def test_families_on_one_clip_share_the_features_of_pictures(served: Served) -> None:
    """Their picture stages are equal to the byte, so the store answers one with what another computed."""
    graphs = {
        model: read_manifest(served.folder / "models" / model / "1").files["image.onnx"]
        for model in ("clipscore", "laion-aesthetics")
    }
    assert len(set(graphs.values())) == 1
    fresh = drawn_pictures(16)[15]
    served.client.score(fresh, "red", model="clipscore")
    before = served.computed("laion-aesthetics", "image")
    served.client.score(fresh, model="laion-aesthetics")
    assert served.computed("laion-aesthetics", "image") == before
