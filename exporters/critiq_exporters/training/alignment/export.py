"""Turns a trained checkpoint into the graphs, the tokenizer and the manifest entries of a bundle."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor, nn

from critiq_exporters.training.alignment.compression import compress_weights
from critiq_exporters.training.alignment.data import SIDE, VIEW
from critiq_exporters.training.alignment.mobilenet import REGION_SIDE
from critiq_exporters.training.alignment.network import SHARED, AlignmentModel
from critiq_exporters.training.alignment.text import MAX_TOKENS
from critiq_exporters.training.alignment.training import load_checkpoint
from critiq_server.bundles.manifest import (
    Calibration,
    Dimension,
    ImageInput,
    PromptInput,
    Reference,
    Stage,
    StageInput,
    Tokenizer,
)

IMAGE_STAGE, TEXT_STAGE, HEAD_STAGE = "alignment_encoder", "text_encoder", "alignment_head"
TOKENIZER, TOKENIZER_FILE = "text", "tokenizer.json"
_IMAGE_OUTPUTS = ["regions", "picture", "concept"]
_TEXT_OUTPUTS = ["tokens", "weights", "sentence", "level"]
_HEAD_INPUTS = ["regions", "picture", "concept", "tokens", "weights", "sentence", "level"]
_TOLERANCE = 1e-3
"""How far a graph's score (range 0..1) may be from torch's, which uses the weights as they are stored."""


@dataclass(frozen=True)
class AlignmentParts:
    """Manifest entries of the alignment part; the files they name lie in the bundle's directory, digests are the
    caller's.
    """

    stages: list[Stage]
    tokenizers: dict[str, Tokenizer]
    dimension: Dimension


class _TextStage(nn.Module):
    def __init__(self, model: AlignmentModel):
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.model.prompt(ids, mask)


class _HeadStage(nn.Module):
    def __init__(self, model: AlignmentModel):
        super().__init__()
        self.model = model

    def forward(
        self,
        regions: Tensor,
        picture: Tensor,
        concept: Tensor,
        tokens: Tensor,
        weights: Tensor,
        sentence: Tensor,
        level: Tensor,
    ) -> Tensor:
        return self.model.align(regions, picture, concept, tokens, weights, sentence, level)


def export(checkpoint: Path, bundle_dir: Path) -> AlignmentParts:
    """Writes the three graphs and the tokenizer into ``bundle_dir`` and returns the manifest entries.

    Raises ``RuntimeError`` if onnxruntime's scores differ from torch's by more than storage accounts for, or with the
    batch.
    """
    model, tokenizer = load_checkpoint(checkpoint)
    bundle_dir.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(bundle_dir / TOKENIZER_FILE))
    width = model.text.tower.shape.width
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", min=2, max=MAX_TOKENS)
    image = torch.zeros((2, SIDE, SIDE, 3), dtype=torch.uint8)
    ids = torch.ones((2, 16), dtype=torch.int64)
    vectors = (
        torch.zeros(2, REGION_SIDE**2, SHARED), torch.zeros(2, width), torch.ones(2, width), torch.zeros(2, 16, SHARED),
        torch.zeros(2, 16), torch.ones(2, width) / 2, torch.ones(2, 6),
    )  # fmt: skip
    _write(model.image, (image,), ["image"], _IMAGE_OUTPUTS, ({0: batch},), bundle_dir / f"{IMAGE_STAGE}.onnx")
    prompt = {0: batch, 1: length}
    _write(
        _TextStage(model).eval(),
        (ids, torch.ones_like(ids)),
        ["ids", "mask"],
        _TEXT_OUTPUTS,
        (prompt, prompt),
        bundle_dir / f"{TEXT_STAGE}.onnx",
    )
    shapes = ({0: batch}, {0: batch}, {0: batch}, prompt, prompt, {0: batch}, {0: batch})
    _write(_HeadStage(model).eval(), vectors, _HEAD_INPUTS, ["alignment"], shapes, bundle_dir / f"{HEAD_STAGE}.onnx")
    _check(model, bundle_dir)
    with safe_open(checkpoint, "pt") as file:
        population = json.loads(file.metadata().get("population", "null"))
    return AlignmentParts(
        _stages(), {TOKENIZER: Tokenizer(file=TOKENIZER_FILE, max_length=MAX_TOKENS)}, _dimension(population)
    )


def _write(
    module: nn.Module, example: tuple[Tensor, ...], inputs: list[str], outputs: list[str],
    shapes: tuple[dict[int, torch.export.Dim], ...], path: Path,
) -> None:  # fmt: skip
    torch.onnx.export(
        module, example, path, input_names=inputs, output_names=outputs, dynamic_shapes=shapes, opset_version=20,
        dynamo=True, external_data=False, verbose=False,
    )  # fmt: skip
    compress_weights(path)


def _check(model: AlignmentModel, bundle_dir: Path) -> None:
    """Scores random pictures and token ids through torch and through the graphs, in batches of 1, 2 and 5."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (5, SIDE, SIDE, 3)).astype(np.uint8)
    ids = rng.integers(2, model.text.tower.shape.vocabulary, (5, 16))
    mask = (np.arange(16) < np.array([16, 12, 9, 5, 3])[:, None]).astype(np.int64)
    ids = ids * mask
    with torch.inference_mode():
        expected = model.score(*(torch.from_numpy(array) for array in (image, ids, mask))).numpy()
    graphs = Graphs(bundle_dir)
    found = [
        np.concatenate([graphs.score(image[i : i + n], ids[i : i + n], mask[i : i + n]) for i in range(0, 5, n)])
        for n in (1, 2, 5)
    ]
    if max(np.abs(scores - expected).max() for scores in found) > _TOLERANCE:
        raise RuntimeError(f"the graphs score {found[0]}, torch scores {expected}")
    if max(np.abs(scores - found[0]).max() for scores in found) > 1e-4:
        raise RuntimeError(f"scores depend on the batch: {found}")


class Graphs:
    """The alignment graphs of a bundle, run by onnxruntime on one CPU thread."""

    def __init__(self, bundle_dir: Path):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1

        def session(stage: str) -> onnxruntime.InferenceSession:
            return onnxruntime.InferenceSession(
                bundle_dir / f"{stage}.onnx", options, providers=["CPUExecutionProvider"]
            )

        self._image, self._text, self._head = (session(stage) for stage in (IMAGE_STAGE, TEXT_STAGE, HEAD_STAGE))

    def images(self, image: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """uint8 ``[batch, 224, 224, 3]`` to regions, picture, concept."""
        return list(self._image.run(_IMAGE_OUTPUTS, {"image": image}))

    def texts(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        """int64 ``[batch, length]`` twice to tokens, weights, sentence, level."""
        return list(self._text.run(_TEXT_OUTPUTS, {"ids": ids, "mask": mask}))

    def align(self, image: list[NDArray[np.float32]], text: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Alignment ``[batch]`` of pictures and texts in pairs."""
        answer: NDArray[np.float32] = self._head.run(None, dict(zip(_HEAD_INPUTS, [*image, *text], strict=True)))[0]
        return answer

    def score(self, image: NDArray[np.uint8], ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Alignment ``[batch]`` straight from pixels and token ids."""
        return self.align(self.images(image), self.texts(ids, mask))


def _stages() -> list[Stage]:
    def prompt(field: str) -> PromptInput:
        return PromptInput(tokenizer=TOKENIZER, field="ids" if field == "ids" else "mask")

    head_inputs = {
        name: StageInput(stage=stage, output=output)
        for name, (stage, output) in zip(
            _HEAD_INPUTS,
            [
                *((IMAGE_STAGE, output) for output in _IMAGE_OUTPUTS),
                *((TEXT_STAGE, output) for output in _TEXT_OUTPUTS),
            ],
            strict=True,
        )
    }
    return [
        Stage(
            name=IMAGE_STAGE, graph=f"{IMAGE_STAGE}.onnx", outputs=_IMAGE_OUTPUTS,
            inputs={"image": ImageInput(view=VIEW)},
        ),
        Stage(
            name=TEXT_STAGE, graph=f"{TEXT_STAGE}.onnx", outputs=_TEXT_OUTPUTS,
            inputs={"ids": prompt("ids"), "mask": prompt("mask")},
        ),
        Stage(name=HEAD_STAGE, graph=f"{HEAD_STAGE}.onnx", inputs=head_inputs, outputs=["alignment"], max_batch=64),
    ]  # fmt: skip


def _dimension(population: dict[str, object] | None) -> Dimension:
    fitted = None if population is None else Calibration.model_validate(population["calibration"])
    reference = None if population is None else Reference.model_validate(population["reference"])
    return Dimension(
        name="alignment",
        title="Prompt alignment",
        description="How well the picture shows what its prompt says (0 not at all, 1 fully), by word-region matching.",
        stage=HEAD_STAGE,
        output="alignment",
        minimum=0.0,
        maximum=1.0,
        needs_prompt=True,
        calibration=fitted,
        reference=reference,
    )
