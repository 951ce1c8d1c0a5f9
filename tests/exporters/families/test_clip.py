"""CLIP's towers, readers and tokenizers against transformers' own, and against numbers of the authors' code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import BertTokenizer, CLIPImageProcessorPil, CLIPTokenizer

from critiq_exporters.core.checkpoints import CheckpointError
from critiq_exporters.core.pictures import drawn_pictures
from critiq_exporters.families.clip.checkpoint import Settings, build
from critiq_exporters.families.clip.folder import open_clip_folder
from critiq_exporters.families.clip.heads import Antonyms
from critiq_exporters.families.clip.network import Clip, ImageEncoder, TextEncoder
from critiq_exporters.families.clip.tokenizer import bert_tokenizer, clip_tokenizer
from critiq_server.bundles.manifest import ResizeView, Tokenizer
from critiq_server.images.views import apply_view
from critiq_server.prompts import PromptTokenizer
from tests.exporters.families.clip_made import (
    CONTEXT,
    SIDE,
    hugging_face_clip,
    made,
    open_clip_config,
    open_clip_state,
    save_hugging_face,
    save_open_clip,
    vocabulary,
    write_bert_vocabulary,
    write_vocabulary,
)
from tests.exporters.families.rule_made import PARITY, fixture_arrays, needs_fixtures

END = len(vocabulary()) - 1
TEXTS = ["the red circle", "photo of THE the photo, in a circle; red?", "x", "déjà vu 12 ’s"]
PICTURES = [Image.fromarray(pixels) for pixels in drawn_pictures(4)]
SETTINGS = Settings(quick_gelu=True, image_heads=3, text_heads=3)


def test_a_folder_of_transformers_gives_its_scores_from_files_and_text(tmp_path: Path) -> None:
    """Preparation, tokens, towers and temperature together: transformers' logits for every picture and prompt."""
    theirs = save_hugging_face(tmp_path)
    folder = open_clip_folder(tmp_path)
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    tokens = CLIPTokenizer.from_pretrained(tmp_path)(
        TEXTS, padding=True, truncation=True, max_length=CONTEXT, return_tensors="pt"
    )
    with torch.inference_mode():
        logits = theirs(
            **tokens, pixel_values=processor(PICTURES, return_tensors="pt")["pixel_values"]
        ).logits_per_image
        image = ImageEncoder(folder.network.image, folder.mean, folder.std)(seen("crop"))
        text = TextEncoder(folder.network.text)(as_served(folder.tokenizer.content, tmp_path))
    assert logits.std() > 1  # of about 100: the comparison tells something
    np.testing.assert_allclose(folder.network.scale * image @ text.T, logits, atol=2e-4)


def seen(fit: str) -> Tensor:
    view = ResizeView.model_validate({"height": SIDE, "width": SIDE, "fit": fit})
    return torch.from_numpy(np.stack([apply_view(np.asarray(picture), view) for picture in PICTURES]))


def as_served(content: bytes, folder: Path) -> Tensor:
    """Ids as the server makes them, all padded to the longest."""
    rules = Tokenizer(file="served.json", max_length=CONTEXT)
    (folder / "served.json").write_bytes(content)
    tokenizer = PromptTokenizer(folder / "served.json", rules)
    rows = [tokenizer.encode(text).ids for text in TEXTS]
    longest = max(map(len, rows))
    return torch.from_numpy(np.stack([np.pad(row, (0, longest - len(row))) for row in rows]))


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_both_layouts_of_the_same_weights_give_the_same(activation: str) -> None:
    theirs = hugging_face_clip(activation)
    settings = Settings(quick_gelu=activation == "quick_gelu", image_heads=3, text_heads=3)
    first = build(theirs.state_dict(), settings, END)
    second = build(open_clip_state(theirs), settings, END)
    ids, pixels = some_ids(), torch.randn(2, 3, SIDE, SIDE)
    with torch.inference_mode():
        image = theirs.visual_projection(theirs.vision_model(pixels).pooler_output)
        text = theirs.text_projection(theirs.text_model(ids).pooler_output)
        for network in (first, second):
            np.testing.assert_allclose(network.image(pixels), image, atol=5e-6)
            np.testing.assert_allclose(network.text(ids), text, atol=5e-6)
    other = build(theirs.state_dict(), Settings(not settings.quick_gelu, 3, 3), END)
    assert not np.allclose(other.image(pixels).detach(), image, atol=1e-3)


def some_ids() -> Tensor:
    ids = torch.randint(0, END - 1, (3, CONTEXT))
    for row, last in enumerate((3, 9, CONTEXT - 1)):
        ids[row, last:] = END
    return ids


def test_what_follows_the_end_of_a_text_has_no_effect() -> None:
    network = tiny()
    ids = some_ids()
    changed = ids.clone()
    changed[0, 4:] = 0
    with torch.inference_mode():
        assert torch.equal(network.text(ids)[0], network.text(changed)[0])
        torch.testing.assert_close(network.text(ids[:1, :4]), network.text(ids)[:1], atol=1e-6, rtol=0)


def tiny() -> Clip:
    return build(hugging_face_clip().state_dict(), SETTINGS, END)


@needs_fixtures
def test_the_residual_network_and_the_antonyms_give_the_authors_numbers() -> None:
    """CLIP-IQA around a small CLIP in OpenAI's layout, by the code of IQA-PyTorch; the fixture's tolerance is 1e-6."""
    layout = json.loads((PARITY / "pyiqa_clipiqa_tiny" / "layout.json").read_text())
    inputs, expected = (fixture_arrays("pyiqa_clipiqa_tiny", kind) for kind in ("inputs", "expected"))
    state = {
        name: torch.tensor(0) if dtype == "int64" else made(name, tuple(shape))
        for name, shape, dtype in layout["state_dict"]
    }
    network = build(state, Settings(quick_gelu=True, text_heads=4), positions=False)
    encoder = ImageEncoder(network.image, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    with torch.inference_mode():
        pixels = torch.from_numpy(inputs["image_u8"]).permute(0, 3, 1, 2) / 255
        image = network.image((pixels - encoder.mean) / encoder.std)
        text = network.text(torch.from_numpy(inputs["token_ids"]).long())
        np.testing.assert_allclose(image, expected["image_features"], atol=1e-6)
        np.testing.assert_allclose(text, expected["text_features"], atol=1e-6)
        embedding = encoder(torch.from_numpy(inputs["image_u8"]))
        texts = torch.nn.functional.normalize(text, dim=1)
        np.testing.assert_allclose(network.scale * embedding @ texts.T, expected["logits_per_image"], atol=1e-6)
        shares = torch.stack(Antonyms(torch.unflatten(texts, 0, (-1, 2)), network.scale)(embedding), dim=1)
    np.testing.assert_allclose(shares.mean(dim=1, keepdim=True), expected["score"], atol=1e-6)


@needs_fixtures
def test_the_middle_is_cut_as_torchvision_does() -> None:
    with np.load(PARITY / "preprocessing" / "torchvision_bicubic_clip.npz") as arrays:
        for name in "abc":
            view = ResizeView(height=224, width=224, fit="crop_rounded")
            assert np.array_equal(apply_view(arrays[f"image_{name}"], view), arrays[f"cropped_{name}"])


def test_open_clips_settings_are_followed(tmp_path: Path) -> None:
    save_open_clip(tmp_path)
    folder = open_clip_folder(tmp_path)
    assert (folder.mean, folder.std) == ((0.5, 0.4, 0.3), (0.25, 0.26, 0.27))
    assert folder.network.text.shape.end == END
    pixels = torch.randn(2, 3, SIDE, SIDE)
    torch.testing.assert_close(folder.network.image(pixels), tiny().image(pixels))


def test_another_librarys_files_beside_open_clips_are_left_alone(tmp_path: Path) -> None:
    save_open_clip(tmp_path)
    (tmp_path / "config.json").write_text('{"architecture": "vit_tiny_clip"}')
    (tmp_path / "model.safetensors").write_bytes(b"other names")
    assert open_clip_folder(tmp_path).mean == (0.5, 0.4, 0.3)


def test_a_folder_with_both_layouts_and_weights_in_several_files_is_read(tmp_path: Path) -> None:
    save_open_clip(tmp_path)
    model = hugging_face_clip()
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    folder = open_clip_folder(tmp_path)
    assert folder.mean[0] == pytest.approx(0.48145466)
    pixels = torch.randn(2, 3, SIDE, SIDE)
    torch.testing.assert_close(folder.network.image(pixels), tiny().image(pixels))
    next(tmp_path.glob("model-00001*")).unlink()
    with pytest.raises(CheckpointError, match=r"names files that are not there: model-00001"):
        open_clip_folder(tmp_path)


def test_what_does_not_fit_is_listed() -> None:
    state = open_clip_state(hugging_face_clip())
    del state["visual.transformer.resblocks.0.mlp.c_fc.bias"], state["transformer.resblocks.1.attn.in_proj_weight"]
    state["visual.proj"] = torch.zeros(61, 24)
    state["projector.weight"] = torch.zeros(3)
    state["ln_final.bias"][0] = torch.nan
    with pytest.raises(CheckpointError) as caught:
        build(state, SETTINGS, END)
    for line in (
        "missing: 4 parameters",
        "visual.transformer.resblocks.*.mlp.c_fc.bias",
        "transformer.resblocks.*.attn.in_proj_weight[q]",
        "unknown: 1 parameters\n    projector.weight",
        "wrongly shaped: 1 parameters",
        "not finite: 1 parameters\n    ln_final.bias",
    ):
        assert line in str(caught.value)


def test_a_gap_in_a_tower_is_missing_and_does_not_shorten_it() -> None:
    kept = (".layers.1.", "layers.0.mlp.fc1.weight")
    state = {
        name: value
        for name, value in hugging_face_clip().state_dict().items()
        if ".layers." not in name or any(part in name for part in kept)
    }
    with pytest.raises(CheckpointError, match=r"missing: 30 parameters"):
        build(state, SETTINGS, END)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", {"model_type": "siglip"}, "a model of type 'siglip'; only 'clip' can be exported"),
        (
            "config.json",
            {"model_type": "clip", "vision_config": {"hidden_act": "relu"}},
            "activation {'vision': 'relu'} is not supported",
        ),
        (
            "config.json",
            {"model_type": "clip", "vision_config": {"hidden_act": "gelu"}},
            "the towers have different activations",
        ),
        (
            "config.json",
            {"model_type": "clip", "vision_config": {"num_attention_heads": 7}, "text_config": {}},
            "a width of 60 does not divide into 7 heads",
        ),
        ("preprocessor_config.json", {"resample": 2}, "resample 2 is not supported"),
        ("preprocessor_config.json", {"image_mean": [0.5]}, "image_mean must be three numbers"),
        ("config.json", [], "must hold a JSON object"),
    ],
)
def test_settings_of_another_architecture_are_refused(tmp_path: Path, file: str, content: object, message: str) -> None:
    save_hugging_face(tmp_path)
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(CheckpointError) as caught:
        open_clip_folder(tmp_path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timm_model_name": "vit_base"}, "vision_cfg.timm_model_name = 'vit_base'"),
        ({"pool_type": "avg"}, "vision_cfg.pool_type = 'avg'"),
    ],
)
def test_open_clips_other_architectures_are_named(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    save_open_clip(tmp_path)
    (tmp_path / "open_clip_config.json").write_text(json.dumps(open_clip_config(2, **changes)))
    with pytest.raises(CheckpointError) as caught:
        open_clip_folder(tmp_path)
    assert message in str(caught.value)


def test_a_bare_file_needs_to_be_told_its_activation_and_tokenizer(tmp_path: Path) -> None:
    file = tmp_path / "clip.pt"
    torch.save({"state_dict": open_clip_state(hugging_face_clip())}, file)
    with pytest.raises(CheckpointError, match="no settings beside its weights"):
        open_clip_folder(file)
    with pytest.raises(CheckpointError, match=r"holds no tokenizer \(tokenizer.json, or vocab.json"):
        open_clip_folder(file, activation="gelu")
    write_vocabulary(tmp_path / "words")
    torch.save({"fc.weight": torch.zeros(2)}, file)
    with pytest.raises(CheckpointError, match="no CLIP in Hugging Face's layout"):
        open_clip_folder(file, activation="gelu", tokenizer=tmp_path / "words")


def test_a_tokenizer_of_another_checkpoint_is_refused(tmp_path: Path) -> None:
    save_hugging_face(tmp_path)
    words = vocabulary() | {"more</w>": END + 1}
    (tmp_path / "vocab.json").write_text(json.dumps(words))
    with pytest.raises(CheckpointError, match=f"knows {END + 2} tokens, the checkpoint's table has {END + 1}"):
        open_clip_folder(tmp_path)


@pytest.mark.parametrize(("end", "fits"), [(2, True), (END, True), (END - 1, False)])
def test_settings_and_tokenizer_must_agree_on_the_closing_token(tmp_path: Path, end: int, fits: bool) -> None:
    save_hugging_face(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["eos_token_id"] = end
    (tmp_path / "config.json").write_text(json.dumps(config))
    if fits:
        assert open_clip_folder(tmp_path).network.text.shape.end == END
        return
    with pytest.raises(
        CheckpointError, match=f"say that token {end} closes a text, the tokenizer closes it with {END}"
    ):
        open_clip_folder(tmp_path)


def test_a_tokenizer_built_from_a_vocabulary_is_transformers(tmp_path: Path) -> None:
    write_vocabulary(tmp_path)
    theirs = CLIPTokenizer.from_pretrained(tmp_path)
    texts = [*TEXTS, "it's  the\tred\nphoto!!! #1 (a.b)", "日本語 🙂 𝔘", "", "<b>&amp;</b> 3.14 don't we'll"]
    assert clip_tokenizer(tmp_path).encode(texts) == theirs(texts)["input_ids"]
    theirs.save_pretrained(tmp_path / "fast")
    (tmp_path / "fast" / "vocab.json").unlink(missing_ok=True)
    assert clip_tokenizer(tmp_path / "fast").encode(texts) == theirs(texts)["input_ids"]


def test_bert_pieces_are_transformers(tmp_path: Path) -> None:
    write_bert_vocabulary(tmp_path)
    theirs = BertTokenizer.from_pretrained(tmp_path)
    texts = ["a RED circle, on rôsé", "hidden", "", "日本"]
    assert bert_tokenizer(tmp_path / "vocab.txt").encode(texts) == theirs(texts)["input_ids"]
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(CheckpointError, match=r"lacks \[PAD\], \[UNK\], \[CLS\], \[SEP\]"):
        bert_tokenizer(tmp_path)


def test_a_prefix_stands_before_every_text_and_quotes_are_made_straight(tmp_path: Path) -> None:
    write_vocabulary(tmp_path)
    plain = clip_tokenizer(tmp_path)
    assert clip_tokenizer(tmp_path, "The photo").encode(["RED circle"]) == plain.encode(["the photo red circle"])
    curly, straight = "“the” photo’s &amp; &quot;red&quot;", '"the" photo\'s & "red"'
    assert plain.encode([curly]) != plain.encode([straight])
    assert clip_tokenizer(tmp_path, straighten=True).encode([curly]) == plain.encode([straight])


def test_a_tokenizer_without_a_closing_token_is_refused(tmp_path: Path) -> None:
    write_vocabulary(tmp_path)
    held = json.loads(clip_tokenizer(tmp_path).content)
    (tmp_path / "tokenizer.json").write_text(json.dumps({**held, "post_processor": None}))
    with pytest.raises(CheckpointError, match="puts 0 tokens around a text"):
        clip_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is not a tokenizer file"):
        clip_tokenizer(tmp_path)
