"""Qwen3-VL as ELIQ reads it: the hidden state of the input's last token, for several questions about one picture.

The picture's tokens come first and are the same for every question. So the vision tower and the prefill over them run
once; their keys and values are kept, and all questions continue from there as one batch. Needs torch and transformers.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from transformers import DynamicCache, Qwen3VLModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize
from transformers.utils import logging as library_logging

from critiq_server.bundles.lmm import IMAGE, INSTRUCTION, Backbone, GridProcessor
from critiq_server.runtime.lmm.base import Instruction, Pixels, rounded
from critiq_server.runtime.lmm.devices import DTYPES, choose_device, describe_device, in_halves
from critiq_server.runtime.lmm.folder import LmmUnavailable, read_config

_LEVEL = [0.5, 0.5, 0.5]
"""Mean and spread of Qwen3-VL's pixels, where the folder does not say otherwise."""


@dataclass(frozen=True, slots=True)
class TokenCount:
    """Tokens through the language model: with the picture's computed once, and with one full pass a question."""

    shared: int
    separate: int


class QwenExtractor:
    """See :class:`critiq_server.runtime.lmm.base.Extractor`.

    Args:
        folder: of a Hugging Face Qwen3-VL model of any size, with safetensors and ``tokenizer.json``.
        backbone: how it is read.
        device: of torch, or ``auto``.
        batch_tokens: tokens computed at once; a single picture may exceed it.

    Raises:
        LmmUnavailable: the folder is not one of a Qwen3-VL, lacks weights, or does not fit ``backbone``.
    """

    def __init__(self, folder: Path, backbone: Backbone, device: str = "auto", batch_tokens: int = 16_384) -> None:
        if not isinstance(backbone.processor, GridProcessor):
            raise LmmUnavailable("Qwen3-VL reads pictures through a grid processor")
        self._backbone, self._batch_tokens = backbone, batch_tokens
        self._device = choose_device(device)
        self._model = _load(folder, backbone, self._device)
        self.provider = describe_device(self._device)
        self.concurrency, self.gathers = 1, True
        self._computing = threading.Lock()
        self._processor = _open_processor(folder, backbone.processor, self._model.config.vision_config)
        self._bounds = (backbone.processor.min_pixels, backbone.processor.max_pixels)
        self._words = _Words(folder, backbone.template)

    def bucket(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of visual tokens."""
        side = self._processor.patch_size * self._processor.merge_size
        rows, columns = smart_resize(height, width, side, *self._bounds)
        return rows // side, columns // side

    def extract(
        self, pictures: Sequence[Pixels], prompts: Sequence[str] | None, instructions: Sequence[Instruction]
    ) -> NDArray[np.float32]:
        suffixes = [self._suffixes(index, prompts, instructions) for index in range(len(pictures))]
        features = np.empty((len(pictures), len(instructions), self._backbone.width), np.float32)
        for rows in self._batches(pictures, suffixes):
            features[rows] = in_halves(lambda part: self._compute(pictures, suffixes, part), rows)
        return rounded(features, self._backbone.stored)

    def count_tokens(
        self, pictures: Sequence[Pixels], prompts: Sequence[str] | None, instructions: Sequence[Instruction]
    ) -> TokenCount:
        """What :meth:`extract` saves by computing each picture's tokens once."""
        shared = separate = 0
        for index, picture in enumerate(pictures):
            prefix = self._prefix_length(picture)
            questions = [len(ids) for ids in self._suffixes(index, prompts, instructions)]
            shared += prefix + sum(questions)
            separate += len(questions) * prefix + sum(questions)
        return TokenCount(shared, separate)

    def close(self) -> None:
        del self._model
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _suffixes(
        self, index: int, prompts: Sequence[str] | None, instructions: Sequence[Instruction]
    ) -> list[list[int]]:
        if prompts is None and (asking := [entry.id for entry in instructions if entry.reads_prompt]):
            raise ValueError(f"{asking[0]} quotes the picture's prompt, and no prompts were given")
        prompt = prompts[index] if prompts is not None else ""
        return [self._words.suffix(entry.filled(prompt)) for entry in instructions]

    def _prefix_length(self, picture: Pixels) -> int:
        rows, columns = self.bucket(picture.shape[0], picture.shape[1])
        return len(self._words.before) + rows * columns + len(self._words.between)

    def _batches(self, pictures: Sequence[Pixels], suffixes: Sequence[Sequence[Sequence[int]]]) -> list[list[int]]:
        """Indices of pictures that are computed together: of one bucket, and within the limit of tokens."""
        groups: dict[Hashable, list[int]] = {}
        for index, picture in enumerate(pictures):
            groups.setdefault(self.bucket(picture.shape[0], picture.shape[1]), []).append(index)
        batches = []
        for members in groups.values():
            # Each question has a copy of the picture's keys and values beside its own.
            longest = max(len(ids) for index in members for ids in suffixes[index])
            cost = len(suffixes[members[0]]) * (self._prefix_length(pictures[members[0]]) + longest)
            size = max(1, self._batch_tokens // cost)
            batches += [members[start : start + size] for start in range(0, len(members), size)]
        return batches

    def _compute(
        self, pictures: Sequence[Pixels], suffixes: Sequence[Sequence[Sequence[int]]], rows: Sequence[int]
    ) -> NDArray[np.float32]:
        prepared = self._processor([pictures[row] for row in rows], return_tensors="pt")
        pixels, grid = prepared["pixel_values"], prepared["image_grid_thw"]
        tokens = int(grid[0].prod()) // self._processor.merge_size**2
        prefix = self._words.prefix(tokens, self._model.config.image_token_id)
        with self._computing, torch.inference_mode():
            cache, prefix_sum, start = self._prefill(prefix, pixels, grid, len(rows))
            questions = [ids for row in rows for ids in suffixes[row]]
            features = self._continue(cache, prefix_sum, len(prefix), start, questions)
        return features.reshape(len(rows), -1, self._backbone.width)

    def _prefill(self, prefix: list[int], pixels: Tensor, grid: Tensor, count: int) -> tuple[DynamicCache, Tensor, int]:
        """Keys and values of the pictures' tokens, the sum of their hidden states, and the next position."""
        ids = torch.tensor([prefix], device=self._device).expand(count, -1)
        kinds = (ids == self._model.config.image_token_id).to(torch.int32)
        grid = grid.to(self._device)
        # Always explicit: the model keeps what it derives itself from one call to the next.
        positions, _ = self._model.get_rope_index(ids, mm_token_type_ids=kinds, image_grid_thw=grid)
        cache = DynamicCache(config=self._model.config.text_config)
        hidden = self._model(
            input_ids=ids,
            pixel_values=pixels.to(self._device),
            image_grid_thw=grid,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return cache, hidden.float().sum(dim=1), int(positions.max()) + 1

    def _continue(
        self, cache: DynamicCache, prefix_sum: Tensor, prefix: int, start: int, questions: Sequence[Sequence[int]]
    ) -> NDArray[np.float32]:
        """All questions about all pictures as one batch, padded on the right."""
        each = len(questions) // len(prefix_sum)
        cache.batch_repeat_interleave(each)
        lengths = torch.tensor([len(ids) for ids in questions], device=self._device)
        longest = int(lengths.max())
        ids = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in questions], device=self._device)
        real = torch.arange(longest, device=self._device) < lengths[:, None]
        mask = torch.cat([real.new_ones(len(questions), prefix), real], dim=1)
        positions = torch.arange(start, start + longest, device=self._device).expand(3, len(questions), -1)
        hidden = self._model(
            input_ids=ids,
            attention_mask=mask.long(),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state.float()
        if self._backbone.feature == "last_token":
            features = hidden[torch.arange(len(questions), device=self._device), lengths - 1]
        else:
            total = prefix_sum.repeat_interleave(each, 0) + (hidden * real[:, :, None]).sum(dim=1)
            features = total / (prefix + lengths)[:, None]
        values: NDArray[np.float32] = features.cpu().numpy()
        return values


class _Words:
    """The conversation as token ids. The question is plain text: nothing in it acts as one of the model's marks."""

    def __init__(self, folder: Path, template: str) -> None:
        path = folder / "tokenizer.json"
        try:
            marks, self._plain = (Tokenizer.from_file(str(path)) for _ in range(2))
        except Exception as error:  # the library raises nothing more exact
            raise LmmUnavailable(f"{path} is not a tokenizer file: {error}") from error
        self._plain.encode_special_tokens = True
        if template.index(IMAGE) > template.index(INSTRUCTION):
            raise LmmUnavailable("the picture must stand before the instruction, or its tokens cannot be shared")
        before, rest = template.split(IMAGE)
        between, after = rest.split(INSTRUCTION)
        self.before, self.between, self._after = (
            list(marks.encode(part, add_special_tokens=False).ids) for part in (before, between, after)
        )

    def prefix(self, tokens: int, image_token: int) -> list[int]:
        return [*self.before, *[image_token] * tokens, *self.between]

    def suffix(self, question: str) -> list[int]:
        return [*self._plain.encode(question, add_special_tokens=False).ids, *self._after]


def _load(folder: Path, backbone: Backbone, device: torch.device) -> Any:
    kind = read_config(folder).get("model_type")
    if kind != "qwen3_vl":
        raise LmmUnavailable(f"{folder} holds a model of the type {kind!r}, not a qwen3_vl")
    library: Any = Qwen3VLModel
    try:
        with _quiet_library():
            model, report = library.from_pretrained(
                folder,
                dtype=DTYPES[backbone.dtype],
                attn_implementation="sdpa",
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except Exception as error:  # the library's, safetensors' and the system's own
        raise LmmUnavailable(f"{folder} cannot be loaded as a Qwen3-VL: {error}") from error
    if report["missing_keys"]:  # they would be drawn at random
        missing = sorted(report["missing_keys"])
        raise LmmUnavailable(f"{folder} lacks {len(missing)} parameters, first {missing[0]}")
    width = model.config.text_config.hidden_size
    if width != backbone.width:
        raise LmmUnavailable(f"{folder} has hidden states of {width} numbers, the bundle expects {backbone.width}")
    return model.eval().requires_grad_(False).to(device)


@contextmanager
def _quiet_library() -> Iterator[None]:
    """Without transformers' progress bars and tables of parameters: what is wrong with a checkpoint is said by us."""
    library: Any = library_logging
    level = library.get_verbosity()
    library.set_verbosity_error()
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(level)
        library.enable_progress_bar()


def _open_processor(folder: Path, bounds: GridProcessor, vision: Any) -> Any:
    levels: Any = (
        read_config(folder, "preprocessor_config.json") if (folder / "preprocessor_config.json").exists() else {}
    )
    return Qwen2VLImageProcessorPil(
        size={"shortest_edge": bounds.min_pixels, "longest_edge": bounds.max_pixels},
        image_mean=levels.get("image_mean", _LEVEL),
        image_std=levels.get("image_std", _LEVEL),
        patch_size=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size,
        merge_size=vision.spatial_merge_size,
    )
