"""mPLUG-Owl2 as MA-AGIQA reads it: the mean of all hidden states, for several questions about one picture.

The words stand before the picture, so its keys and values cannot be shared between questions; the vision tower and the
abstractor, which know no words, run once a picture. Needs torch and sentencepiece.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from critiq_server.bundles.lmm import IMAGE, INSTRUCTION, Backbone, SquareProcessor
from critiq_server.runtime.lmm.base import Instruction, Pixels, rounded
from critiq_server.runtime.lmm.devices import DTYPES, choose_device, describe_device, in_halves
from critiq_server.runtime.lmm.folder import LmmUnavailable, read_config
from critiq_server.runtime.lmm.mplug_owl2_network import IMAGE_LEVELS, MplugOwl2, Shape

_NOT_READ = ("lm_head.", "rotary_emb.inv_freq")
_NAMED = 3
"""Parameters named in a refusal."""


class OwlExtractor:
    """See :class:`critiq_server.runtime.lmm.base.Extractor`.

    Args:
        folder: of a Hugging Face mPLUG-Owl2 (``mplug_owl2`` in ``config.json``), with ``tokenizer.model`` and its
            weights as safetensors or torch files, which go through the weights-only loader.
        backbone: how it is read.
        device: of torch, or ``auto``.
        batch_tokens: tokens, of vision tower and language model together, computed at once.

    Raises:
        LmmUnavailable: the folder is not one of an mPLUG-Owl2, lacks weights, or does not fit ``backbone``.
    """

    def __init__(self, folder: Path, backbone: Backbone, device: str = "auto", batch_tokens: int = 16_384) -> None:
        if not isinstance(backbone.processor, SquareProcessor):
            raise LmmUnavailable("mPLUG-Owl2 reads pictures through a square processor")
        self._backbone = backbone
        self._device = choose_device(device)
        self._dtype = DTYPES[backbone.dtype]
        shape = _read_shape(folder, backbone, backbone.processor)
        self._model = load_network(folder, shape, self._dtype, self._device)
        self.provider = describe_device(self._device)
        self.concurrency, self.gathers = 1, True
        self._words = _Words(folder, backbone.template)
        self._side = shape.image
        self._at_once = max(1, batch_tokens // ((shape.image // shape.patch) ** 2 + 1))
        self._computing = threading.Lock()

    def bucket(self, height: int, width: int) -> Hashable:
        """All pictures have as many tokens."""
        return self._side

    def extract(
        self, pictures: Sequence[Pixels], prompts: Sequence[str] | None, instructions: Sequence[Instruction]
    ) -> NDArray[np.float32]:
        if prompts is None and (asking := [entry.id for entry in instructions if entry.reads_prompt]):
            raise ValueError(f"{asking[0]} quotes the picture's prompt, and no prompts were given")
        texts = [
            [entry.filled(prompts[row] if prompts is not None else "") for entry in instructions]
            for row in range(len(pictures))
        ]
        features = np.empty((len(pictures), len(instructions), self._backbone.width), np.float32)
        for start in range(0, len(pictures), self._at_once):
            rows = range(start, min(start + self._at_once, len(pictures)))
            features[rows] = in_halves(lambda part: self._compute(pictures, texts, part), rows)
        return rounded(features, self._backbone.stored)

    def close(self) -> None:
        del self._model
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _compute(
        self, pictures: Sequence[Pixels], texts: Sequence[Sequence[str]], rows: Sequence[int]
    ) -> NDArray[np.float32]:
        pixels = np.stack([prepare(pictures[row], self._side) for row in rows])
        found = np.empty((len(rows), len(texts[rows[0]]), self._backbone.width), np.float32)
        with self._computing, torch.inference_mode():
            seen = self._model.picture(torch.from_numpy(pixels).to(self._device, self._dtype))
            for question in range(found.shape[1]):
                alike: dict[str, list[int]] = {}
                for place, row in enumerate(rows):
                    alike.setdefault(texts[row][question], []).append(place)
                for text, places in alike.items():
                    found[places, question] = self._feature(seen[places], text)
        return found

    def _feature(self, seen: Tensor, text: str) -> NDArray[np.float32]:
        before, after = (torch.tensor(ids, device=self._device) for ids in self._words.around(text))
        hidden = self._model.hidden(before, seen, after)
        feature = hidden.mean(dim=1) if self._backbone.feature == "mean" else hidden[:, -1]
        values: NDArray[np.float32] = feature.float().cpu().numpy()
        return values


class _Words:
    """The conversation as token ids. Each side of the picture is tokenised by itself, as the authors do."""

    def __init__(self, folder: Path, template: str) -> None:
        path = folder / "tokenizer.model"
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise LmmUnavailable(f"{path} is not a sentencepiece model: {error}") from error
        self._before, self._after = template.split(IMAGE)
        if INSTRUCTION not in self._before:
            raise LmmUnavailable("mPLUG-Owl2's instruction stands before the picture")

    def around(self, text: str) -> tuple[list[int], list[int]]:
        before = self._model.encode(self._before.replace(INSTRUCTION, text))
        return [self._model.bos_id(), *before], self._model.encode(self._after)


def prepare(picture: Pixels, side: int) -> NDArray[np.float32]:
    """Padded to a square with the mean colour, resized by Pillow's cubic filter, normalised: ``[3, side, side]``."""
    height, width = picture.shape[:2]
    longer = max(height, width)
    mean, spread = (np.array(level, np.float32) for level in IMAGE_LEVELS)
    square = np.empty((longer, longer, 3), np.uint8)
    square[:] = [int(255 * level) for level in IMAGE_LEVELS[0]]
    top, left = (longer - height) // 2, (longer - width) // 2
    square[top : top + height, left : left + width] = picture
    resized = np.asarray(Image.fromarray(square).resize((side, side), Image.Resampling.BICUBIC), np.float32)
    normalised = (resized * np.float32(1 / 255) - mean) / spread
    return np.ascontiguousarray(normalised.transpose(2, 0, 1))


def load_network(folder: Path, shape: Shape, dtype: torch.dtype, device: torch.device) -> MplugOwl2:
    """The network with the folder's weights. Raises ``LmmUnavailable`` if any is missing, unknown or misshapen."""
    with torch.device("meta"):
        network = MplugOwl2(shape)
    wanted = {name: tuple(parameter.shape) for name, parameter in network.state_dict().items()}
    state: dict[str, Tensor] = {}
    for published, tensor in _entries(folder):
        if any(part in published for part in _NOT_READ):
            continue
        name = published.removeprefix("model.")
        if name not in wanted:
            raise LmmUnavailable(f"{folder} holds {published}, which mPLUG-Owl2 does not have")
        if tuple(tensor.shape) != wanted[name]:
            raise LmmUnavailable(
                f"{published} in {folder} is {list(tensor.shape)}, config.json says {list(wanted[name])}"
            )
        state[name] = tensor.to(device, dtype)
    if missing := sorted(wanted.keys() - state.keys()):
        raise LmmUnavailable(f"{folder} lacks {len(missing)} parameters, first {', '.join(missing[:_NAMED])}")
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


def _entries(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a checkpoint in one file or several, one at a time."""
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as held:
                for name in held.keys():  # noqa: SIM118 - it is no mapping
                    yield name, held.get_tensor(name)
        except SafetensorError as error:
            raise LmmUnavailable(f"{file} is not a whole safetensors file: {error}") from error
    if any(folder.glob("*.safetensors")):
        return
    for file in sorted(folder.glob("pytorch_model*.bin")):
        try:
            state: Mapping[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # torch and pickle raise many kinds
            raise LmmUnavailable(f"{file} cannot be read as a file of tensors: {error}") from error
        yield from state.items()


def _read_shape(folder: Path, backbone: Backbone, processor: SquareProcessor) -> Shape:
    config: Mapping[str, Any] = read_config(folder)
    if config.get("model_type") != "mplug_owl2":
        raise LmmUnavailable(f"{folder} holds a model of the type {config.get('model_type')!r}, not an mplug_owl2")
    try:
        shape = Shape.read(config)
    except (KeyError, TypeError, ValueError) as error:
        raise LmmUnavailable(f"{folder / 'config.json'} does not describe an mPLUG-Owl2: {error}") from error
    if shape.width != backbone.width:
        raise LmmUnavailable(
            f"{folder} has hidden states of {shape.width} numbers, the bundle expects {backbone.width}"
        )
    if shape.image != processor.side:
        raise LmmUnavailable(f"{folder} sees pictures of {shape.image} pixels, the bundle expects {processor.side}")
    return shape
