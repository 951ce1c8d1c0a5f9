"""Explanations of MINT-IQA's scores, offline: in a library call, or from the command line.

    python -m critiq_exporters.families.mint_iqa.explain --checkpoint MINTIQA.pt --language-model vicuna-7b-v1.1 \\
        --tokenizer bert-base-uncased --prompt "a corgi" picture.png

The server has no operation for explanations of this kind yet; the bundle holds the scoring half only.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor

from critiq.cli.running import run
from critiq.errors import CritiqError
from critiq_exporters.core.checkpoints import CheckpointError, read_state
from critiq_exporters.core.pictures import Pixels
from critiq_exporters.families.clip.tokenizer import TextTokenizer
from critiq_exporters.families.mint_iqa.checkpoint import build_explanation, build_scores
from critiq_exporters.families.mint_iqa.family import checkpoint_file
from critiq_exporters.families.mint_iqa.language import BEAMS, LENGTH, DType, LanguageModel, language_model
from critiq_exporters.families.mint_iqa.network import Explanation, MintIqa, Shape
from critiq_exporters.families.mint_iqa.tokens import LENGTH as PROMPT_LENGTH
from critiq_exporters.families.mint_iqa.tokens import QUESTION_LENGTH, prompt_tokenizer
from critiq_server.bundles.manifest import ResizeView, Tokenizer
from critiq_server.images.decode import decode
from critiq_server.images.limits import ImageLimits
from critiq_server.images.source import EncodedImage
from critiq_server.images.views import apply_view
from critiq_server.prompts import PromptTokenizer, normalise

QUESTIONS = (
    "Assess the image from three perspectives: quality, authenticity, and correspondence",
    "How is the quality of the image?",
    "How is the authenticity of the image?",
    "How is the correspondence of the image?",
)
"""What the authors ask; their model was trained on questions like these."""
_PROMPT_BYTES = 65536


@dataclass(frozen=True)
class Explained:
    """Raw scores of a picture for its prompt, and what the language model says about it."""

    quality: float
    authenticity: float
    correspondence: float
    explanation: str


class Explainer:
    """MINT-IQA whole: both halves and the language model. Not safe to use from several threads."""

    def __init__(
        self,
        scoring: MintIqa,
        explaining: Explanation,
        language: LanguageModel,
        text: TextTokenizer,
        device: str = "cpu",
    ) -> None:
        """Raises ``CheckpointError`` where the parts do not belong together."""
        if explaining.shape.embedding != language.width:
            raise CheckpointError(
                f"the checkpoint explains to a language model of width {explaining.shape.embedding}, this one's is "
                f"{language.width}; the published one was trained with Vicuna 7B v1.1"
            )
        if text.words > min(scoring.shape.words, explaining.shape.words):
            raise CheckpointError(
                f"the tokenizer knows {text.words} tokens, the checkpoint's table has {scoring.shape.words}"
            )
        self._device = torch.device(device)
        self._scoring, self._explaining = scoring.to(self._device), explaining.to(self._device)
        self._language = language
        language.model.to(self._device)
        context = scoring.shape.context
        self._prompts = _reader(text, min(PROMPT_LENGTH, context))
        self._questions = _reader(text, min(QUESTION_LENGTH, context))
        side = scoring.shape.image
        self._view = ResizeView(height=side, width=side, fit="crop_rounded")

    def explain(
        self,
        pictures: Sequence[Pixels],
        prompts: Sequence[str],
        question: str = QUESTIONS[0],
        beams: int = BEAMS,
        length: int = LENGTH,
    ) -> list[Explained]:
        """Scores and explanations of pictures, all at once.

        Args:
            pictures: uint8 RGB ``[height, width, 3]`` each, of any size.
            prompts: what each picture was made from.
            question: what to explain. The prompt is not part of it: it comes in through the scoring half.
            beams: of the beam search.
            length: most tokens of an answer.

        Raises:
            ValueError: there are not as many prompts as pictures, or the question is too long.
        """
        if len(pictures) != len(prompts):
            raise ValueError(f"there are {len(pictures)} pictures and {len(prompts)} prompts")
        if not pictures:
            return []
        question = normalise(question, _PROMPT_BYTES)
        asked = self._questions.encode(question)
        if asked.report.truncated:
            raise ValueError(
                f"the question has {asked.report.token_count} tokens, at most {asked.report.token_limit} are read; "
                "shorten it"
            )
        read = [self._prompts.encode(normalise(prompt, _PROMPT_BYTES)) for prompt in prompts]
        pixels = self._tensor([apply_view(picture, self._view) for picture in pictures])
        scores = self._scoring.scores
        with torch.inference_mode():
            seen = scores.represent(
                self._scoring.vision(pixels),
                self._tensor(_padded([tokens.ids for tokens in read])),
                self._tensor(_padded([tokens.mask for tokens in read])),
            )
            judged = [judge(seen).tolist() for judge in (scores.quality, scores.authenticity, scores.correspondence)]
            ids, mask = (self._tensor([row] * len(pictures)) for row in (asked.ids, asked.mask))
            prefix = self._explaining(pixels, seen, ids, mask)
            written = self._language.generate(prefix, self._language.ids(question), beams, length)
        return [Explained(*row) for row in zip(*judged, self._language.texts(written), strict=True)]

    def _tensor(self, rows: Sequence[NDArray[Any]]) -> Tensor:
        return torch.from_numpy(np.stack(rows)).to(self._device)


def load(
    checkpoint: Path,
    language_model_folder: Path,
    tokenizer: Path | None = None,
    heads: int = Shape.text_heads,
    dtype: DType = "auto",
    device: str = "cpu",
) -> Explainer:
    """The whole model.

    Args:
        checkpoint: the authors' file (of the second training stage), or its folder.
        language_model_folder: Vicuna 7B v1.1 in transformers' layout; its tokenizer is enough where the checkpoint
            holds the weights.
        tokenizer: folder or file of bert-base-uncased's tokenizer; the checkpoint's folder where left out.
        heads: of the two query transformers.
        dtype: of the language model's weights; ``auto`` leaves them as they are.
        device: torch's name of where to compute.

    Raises:
        CheckpointError: a part is missing or does not fit.
    """
    text = prompt_tokenizer(tokenizer or (checkpoint if checkpoint.is_dir() else checkpoint.parent))
    state = read_state(checkpoint_file(checkpoint))
    explaining = build_explanation(state, heads)
    return Explainer(
        build_scores(state, heads), explaining, language_model(state, language_model_folder, dtype), text, device
    )


def _reader(text: TextTokenizer, length: int) -> PromptTokenizer:
    """Cuts to ``length`` as the server does."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        path.write_bytes(text.content)
        return PromptTokenizer(path, Tokenizer(file=path.name, max_length=length, pad_to_multiple=1))


def _padded(rows: Sequence[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    longest = max(map(len, rows))
    return [np.pad(row, (0, longest - len(row))) for row in rows]


def command(
    pictures: Annotated[list[Path], typer.Argument(help="Picture files.")],
    checkpoint: Annotated[Path, typer.Option(help="The authors' checkpoint of the second training stage.")],
    language_model: Annotated[Path, typer.Option(help="Folder of Vicuna 7B v1.1, at least its tokenizer.")],
    prompt: Annotated[str, typer.Option(help="What the pictures were made from.")],
    question: Annotated[str, typer.Option(help="What to explain.")] = QUESTIONS[0],
    tokenizer: Annotated[Path | None, typer.Option(help="Folder or file of bert-base-uncased's tokenizer.")] = None,
    heads: Annotated[int, typer.Option(min=1, help="Attention heads of the query transformers.")] = Shape.text_heads,
    beams: Annotated[int, typer.Option(min=1, help="Of the beam search.")] = BEAMS,
    length: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = LENGTH,
    dtype: Annotated[DType, typer.Option(help="Of the language model's weights.")] = "auto",
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1.")] = "cpu",
) -> None:
    """Score pictures and explain the scores; one JSON object a picture, one a line."""
    explainer = load(checkpoint, language_model, tokenizer, heads, dtype, device)
    for path in pictures:
        picture = decode(EncodedImage(path.read_bytes()), ImageLimits()).pixels
        found = explainer.explain([picture], [prompt], question, beams, length)[0]
        answer: Mapping[str, object] = {"picture": path.name, **asdict(found)}
        typer.echo(json.dumps(answer, ensure_ascii=False))


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit status: 0 done, 2 bad input."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(command)
    return run(app, "mint_iqa.explain", arguments, bad_input=(CheckpointError, CritiqError, ValueError, OSError))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
