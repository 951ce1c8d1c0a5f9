"""The CLIP-shaped families before they are exported: options, ranges, views, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from critiq_exporters.cli import main
from critiq_exporters.core.checkpoints import CheckpointError, read_state
from critiq_exporters.core.evaluate import evaluate, onnx_run, open_tokenizers
from critiq_exporters.core.pictures import drawn_pictures
from critiq_exporters.families.clip import clip_iqa, clipscore, hps, laion, pickscore
from critiq_exporters.families.clip.clip_iqa import PAIRS, parse_pairs
from critiq_server.bundles.manifest import ImageInput, NativeView, ResizeView
from critiq_server.bundles.model import read_manifest
from critiq_server.prompts import PromptTokenizer
from tests.exporters.families.clip_made import (
    EMBEDDING,
    SCALE,
    SIDE,
    hugging_face_clip,
    laion_head_state,
    made,
    open_clip_state,
    save_hugging_face,
    save_open_clip_resnet,
    vocabulary,
    write_vocabulary,
)
from tests.exporters.families.clip_oracles import image_features, middle, pixel_values, text_features
from tests.exporters.families.rule_made import PARITY

PUBLISHED_HEAD = PARITY.parent / "data" / "weights" / "laion_aesthetic_v2_mlp_clipL14.pth"


def view_of(stage: object) -> object:
    image = stage.inputs["image"]  # type: ignore[attr-defined]
    assert isinstance(image, ImageInput)
    return image.view


def test_views_ranges_and_scopes_are_the_authors(tmp_path: Path) -> None:
    save_hugging_face(tmp_path)
    models = [clipscore.load(tmp_path), pickscore.load(tmp_path), hps.load(tmp_path)]
    fits = ["crop_rounded", "crop", "pad_black"]
    for model, fit in zip(models, fits, strict=True):
        assert view_of(model.stages[0]) == ResizeView.model_validate({"height": SIDE, "width": SIDE, "fit": fit})
    dimensions = [model.dimensions[0] for model in models]
    assert [entry.scope for entry in dimensions] == ["absolute", "within_prompt", "within_prompt"]
    assert [entry.calibration for entry in dimensions] == [None, None, None]
    bounds = [(entry.minimum, entry.maximum) for entry in dimensions]
    assert bounds[0] == (0.0, 2.5)
    assert bounds[1] == (pytest.approx(-SCALE, abs=1e-2), pytest.approx(SCALE, abs=1e-2))
    assert bounds[2] == (-1.0, 1.0)
    texts = [stage.name for stage in models[0].stages]
    assert texts == ["image", "text", "match"]


def test_hps_takes_the_published_file_among_others(tmp_path: Path) -> None:
    folder, words = tmp_path / "HPSv2", tmp_path / "words"
    folder.mkdir()
    write_vocabulary(words)
    theirs = hugging_face_clip("gelu", widths=(128, 64), heads=2)
    state = {name: value.half() for name, value in open_clip_state(theirs).items()}
    torch.save({"state_dict": state, "epoch": 3}, folder / "HPS_v2.1_compressed.pt")
    torch.save({"state_dict": {}}, folder / "HPS_v2_compressed.pt")
    model = hps.load(folder, tokenizer=words)
    pixels = torch.full((1, SIDE, SIDE, 3), 90, dtype=torch.uint8)
    expected = image_features(theirs, pixel_values([Image.new("RGB", (SIDE, SIDE), (90, 90, 90))]))
    torch.testing.assert_close(model.modules["image"](pixels), expected, atol=2e-3, rtol=0)


def test_a_bare_file_with_unusual_heads_is_refused(tmp_path: Path) -> None:
    write_vocabulary(tmp_path)
    torch.save(open_clip_state(hugging_face_clip()), tmp_path / "clip.pt")
    with pytest.raises(CheckpointError, match="a width of 48 tells no number of heads"):
        hps.load(tmp_path / "clip.pt")


def test_clipscores_prefix_is_in_the_tokenizer(tmp_path: Path) -> None:
    save_hugging_face(tmp_path)
    lengths = []
    for prefix in ("The photo", ""):
        model = clipscore.load(tmp_path, prefix=prefix)
        content = model.files["tokenizer.json"]
        assert isinstance(content, bytes)
        (tmp_path / "held.json").write_bytes(content)
        tokenizer = PromptTokenizer(tmp_path / "held.json", model.tokenizers["text"])
        lengths.append(tokenizer.encode("red").report.token_count)
    assert lengths == [5, 3]


@pytest.mark.skipif(not PUBLISHED_HEAD.is_file(), reason="the published head is not here")
def test_the_published_laion_head_is_read() -> None:
    head = laion.read_head(PUBLISHED_HEAD, 768)
    state = read_state(PUBLISHED_HEAD)
    x = torch.nn.functional.normalize(torch.randn(5, 768, generator=torch.Generator().manual_seed(0)), dim=1)
    # No activation lies between the layers, so the whole is one linear map: the product of the five.
    weight, bias = torch.eye(768, dtype=torch.float64), torch.zeros(768, dtype=torch.float64)
    for number in (0, 2, 4, 6, 7):
        layer = state[f"layers.{number}.weight"].double()
        weight, bias = layer @ weight, layer @ bias + state[f"layers.{number}.bias"].double()
    torch.testing.assert_close(head(x).double(), (x.double() @ weight.T + bias).squeeze(1), atol=1e-5, rtol=0)
    assert 1 < float(bias) < 10
    with pytest.raises(CheckpointError, match="takes embeddings of 768 numbers, the checkpoint gives 512"):
        laion.read_head(PUBLISHED_HEAD, 512)


def test_the_laion_predictor_needs_its_head(tmp_path: Path) -> None:
    save_hugging_face(tmp_path)
    with pytest.raises(ValueError, match="pass --head"):
        laion.load(tmp_path)
    head = tmp_path / "head"
    head.mkdir()
    torch.save({**laion_head_state(EMBEDDING), "layers.7.weight": torch.zeros(2, 16)}, head / "head.pt")
    with pytest.raises(CheckpointError, match=r"layers.\*.weight is \[2, 16\], should be \[1, 16\]"):
        laion.load(tmp_path, head=head / "head.pt")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("visual_quality", {"visual_quality": PAIRS["visual_quality"]}),
        (" sharpness ; red = A red one. | A blue one. ;", {
            "sharpness": PAIRS["sharpness"], "red": ("A red one.", "A blue one.")}),
    ],
)  # fmt: skip
def test_attributes_are_names_or_pairs(text: str, expected: dict[str, tuple[str, str]]) -> None:
    assert parse_pairs(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("beauty", "'beauty' is neither one of visual_quality"),
        ("red=one", "'red=one' is neither"),
        ("red=one|", "is neither"),
        ("red=a|b|c", "is neither"),
        ("Red=a|b", "'Red' is no name"),
        ("sharpness;sharpness", "'sharpness' stands twice"),
        (" ; ", "names nothing"),
    ],
)
def test_bad_attributes_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"--attributes") as caught:
        parse_pairs(text)
    assert message in str(caught.value)


def test_clip_iqas_view_follows_the_tower(tmp_path: Path) -> None:
    save_hugging_face(tmp_path / "vit")
    save_open_clip_resnet(tmp_path / "resnet")
    transformer = clip_iqa.load(tmp_path / "vit", attributes="sharpness")
    assert view_of(transformer.stages[0]) == ResizeView(height=SIDE, width=SIDE, fit="crop_rounded")
    for options in ({"side": 64}, {"fit": "native"}):
        with pytest.raises(ValueError, match="takes no --side but its own, and no --fit native"):
            clip_iqa.load(tmp_path / "vit", **options)  # type: ignore[arg-type]
    assert view_of(clip_iqa.load(tmp_path / "resnet").stages[0]) == NativeView(shorter_min=32, longer_max=1024)
    fixed = clip_iqa.load(tmp_path / "resnet", fit="stretch", side=96)
    assert view_of(fixed.stages[0]) == ResizeView(height=96, width=96)
    assert fixed.options["side"] == 96
    with pytest.raises(ValueError, match="--side 16 is less than the 32 pixels"):
        clip_iqa.load(tmp_path / "resnet", side=16)


def test_a_pair_turned_round_gives_the_rest(tmp_path: Path) -> None:
    save_hugging_face(tmp_path)
    model = clip_iqa.load(tmp_path, attributes="first=the red|the sea;second=the sea|the red")
    x = torch.nn.functional.normalize(torch.randn(4, EMBEDDING), dim=1)
    first, second = model.modules["antonyms"](x)
    torch.testing.assert_close(first + second, torch.ones(4), atol=1e-5, rtol=0)
    assert [dimension.name for dimension in model.dimensions] == ["first", "second"]


def test_bad_input_on_the_command_line_is_one_message_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_hugging_face(tmp_path / "clip")
    out = tmp_path / "out"
    for command, message in (
        (["laion-aesthetics"], "pass --head"),
        (["clip-iqa", "--attributes", "beauty"], "'beauty' is neither"),
        (["pickscore", "--tokenizer", str(tmp_path)], "holds no tokenizer"),
        (["imagereward"], "holds no tokenizer (tokenizer.json or vocab.txt)"),
    ):
        assert main([*command, "--checkpoint", str(tmp_path / "clip"), "--out", str(out)]) == 2
        printed = capsys.readouterr().err
        assert message in printed
        assert "Traceback" not in printed
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_full_size_clipscore_is_exported_and_agrees_with_transformers(tmp_path: Path) -> None:
    """ViT-B/32, the authors' choice, with 151 million weights made from their names."""
    words = len(vocabulary())
    theirs = CLIPModel(CLIPConfig(text_config={"bos_token_id": words - 2, "eos_token_id": words - 1})).eval()
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            value.copy_(made(name, tuple(value.shape)))
    theirs.save_pretrained(tmp_path / "clip")
    write_vocabulary(tmp_path / "clip")
    command = ["clipscore", "--checkpoint", str(tmp_path / "clip"), "--out", str(tmp_path), "--prefix", ""]
    assert main([*command, "--count", "4", "--max-batch", "2"]) == 0
    bundle = tmp_path / "clipscore" / "1"
    manifest = read_manifest(bundle)
    pixels, prompts = drawn_pictures(7)[4:], ["the red circle", "x", "photo of it"]
    trace = evaluate(
        manifest.stages,
        open_tokenizers(manifest.tokenizers, bundle),
        onnx_run(bundle, manifest.stages, threads=2),
        pixels,
        prompts,
    )
    values = pixel_values([middle(Image.fromarray(one), 224, rounded=True) for one in pixels])
    features = {"image": image_features(theirs, values), "text": text_features(theirs, tmp_path / "clip", prompts)}
    for stage, expected in features.items():
        np.testing.assert_allclose(trace.outputs[stage]["features"], expected, atol=1e-6)
    cosines = (features["image"] * features["text"]).sum(dim=1)
    np.testing.assert_allclose(trace.raw(manifest.dimensions[0]), 2.5 * cosines.clamp(min=0), atol=1e-5)
