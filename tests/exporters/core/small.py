"""A small model with two stages and a prompt, to export in a second."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer as TokenizerFile
from tokenizers import models, pre_tokenizers
from torch import Tensor, nn

from critiq_exporters.core.exportable import Card, Exportable
from critiq_server.bundles.manifest import (
    Dimension,
    ImageInput,
    Licence,
    PromptInput,
    ResizeView,
    Stage,
    StageInput,
    Tokenizer,
)

CARD = Card("small", "Small", "two things", "any", "higher", "absolute", "none", "Apache-2.0", "none", "none")
WORDS = ["[PAD]", "[UNK]", "a", "red", "circle", "on", "blue", "background", "stripes"]


class Encoder(nn.Module):
    """uint8 ``[batch, 16, 16, 3]`` to features ``[batch, 8]`` and a score ``[batch]``.

    On the way there are values ``gain`` times larger.
    """

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain
        self.first = nn.Linear(16 * 16 * 3, 32)
        self.second = nn.Linear(32, 8)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(image.to(torch.float32).flatten(1) / 255).relu() * self.gain
        features = self.second(x.tanh() + x / self.gain)
        return features, features.sum(dim=1)


class Head(nn.Module):
    """Features ``[batch, 8]``, ids and mask ``[batch, length]`` to ``[batch]``."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(len(WORDS), 8)

    def forward(self, features: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        weights = mask.to(torch.float32)[:, :, None]
        prompt = (self.words(ids) * weights).sum(dim=1) / weights.sum(dim=1)
        match: Tensor = (prompt * features).sum(dim=1)
        return match


def small_model(folder: Path, *, gain: float = 1.0, head: nn.Module | None = None) -> Exportable:
    """Dimensions ``quality`` (picture alone) and ``match`` (with the prompt)."""
    torch.manual_seed(0)
    tokenizer = TokenizerFile(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "words.json"))
    encoder = Stage(
        name="encoder",
        graph="encoder.onnx",
        inputs={"image": ImageInput(view=ResizeView(height=16, width=16))},
        outputs=["features", "quality"],
        max_batch=6,
    )
    matcher = Stage(
        name="head",
        graph="head.onnx",
        inputs={
            "features": StageInput(stage="encoder", output="features"),
            "ids": PromptInput(tokenizer="words", field="ids"),
            "mask": PromptInput(tokenizer="words", field="mask"),
        },
        outputs=["match"],
        max_batch=6,
    )
    return Exportable(
        card=CARD,
        description="made by the tests",
        stages=(encoder, matcher),
        modules={"encoder": Encoder(gain).eval(), "head": (head or Head()).eval()},
        dimensions=(
            Dimension(name="quality", title="Quality", description="-", stage="encoder", output="quality"),
            Dimension(name="match", title="Match", description="-", stage="head", output="match", needs_prompt=True),
        ),
        licence=Licence(code="Apache-2.0", weights="Apache-2.0"),
        source="the tests",
        options={"gain": gain},
        tokenizers={"words": Tokenizer(file="words.json", max_length=16, pad_to_multiple=4)},
        files={"words.json": folder / "words.json"},
    )
