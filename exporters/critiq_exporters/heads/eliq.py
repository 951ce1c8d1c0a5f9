"""Trains ELIQ's scoring module on stored features: by ranking, without human labels, and then a linear regressor.

Li et al., arXiv 2602.03558: the ranking losses are equations 16 to 20; section 4's weak supervision fits one linear
layer behind the quality query transformer to opinions and freezes the rest (here: the last layer of each head). The
paper states neither margin nor optimiser: those here are ours. Its first stage, instruction tuning of the LMM itself,
is not part of this; use an LMM that had it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from critiq.cli.exits import UsageError
from critiq_exporters.families.eliq.network import Scorer, Shape
from critiq_exporters.heads.data import (
    NAME_COLUMNS,
    StoredFeatures,
    check_names,
    column,
    is_held_out,
    number,
    read_table,
    shuffled,
)
from critiq_server.runtime.lmm.instructions import QUESTIONS

INSTRUCTIONS = QUESTIONS["qwen3-vl"]
NEGATIVES = ("technical_negative", "aesthetic_negative", "alignment_negative")
DIMENSIONS = ("visual_quality", "alignment")
_VISUAL, _ALIGNMENT = 0, 1
_RIDGE = 1e-3


@dataclass(frozen=True)
class Recipe:
    """How the scoring module is trained. ``margin`` is m of equations 18 and 19."""

    epochs: int = 30
    rate: float = 1e-4
    batch: int = 32
    margin: float = 0.5
    weight_decay: float = 1e-2
    held_out: float = 0.2
    hidden: int = 1024
    width: int = 512
    layers: int = 2
    heads: int = 8
    seed: int = 1


@dataclass(frozen=True)
class Pair:
    """Two pictures, the first better in one dimension (0 visual quality, 1 alignment)."""

    better: str
    worse: str
    dimension: int
    kind: str


def read_pairs(path: Path, features: StoredFeatures) -> list[Pair]:
    """Pairs from rows of a picture and its negatives (equation 16); a negative may be left empty.

    Columns: ``picture``; ``technical_negative`` and ``aesthetic_negative``, the picture spoilt;
    ``alignment_negative``, the entry of the same picture with another prompt. Raises ``UsageError``.
    """
    table = read_table(path)
    name = column(table, NAME_COLUMNS, path)
    column(table, NEGATIVES, path)
    pairs = [
        Pair(row[name], row[kind], _ALIGNMENT if kind == "alignment_negative" else _VISUAL, kind)
        for row in table
        for kind in NEGATIVES
        if row.get(kind)
    ]
    check_names([one for pair in pairs for one in (pair.better, pair.worse)], features, path)
    if not pairs:
        raise UsageError(f"{path} holds no pairs: every negative is empty")
    return pairs


def train_by_ranking(
    features: StoredFeatures, pairs: Sequence[Pair], recipe: Recipe, say: Callable[[str], None]
) -> tuple[Scorer, dict[str, float]]:
    """The scoring module, and the share of held-out pairs that it puts in the right order, by kind of negative.

    A picture is held out with all its pairs. Raises ``UsageError`` if nothing is left to train on.
    """
    held_out = [pair for pair in pairs if is_held_out(features.pictures[features.place[pair.better]], recipe.held_out)]
    training = [pair for pair in pairs if pair not in set(held_out)]
    if not training:
        raise UsageError("all pairs are held out; give more of them, or hold out less")
    torch.manual_seed(recipe.seed)
    scorer = _new_scorer(features, recipe)
    optimiser = torch.optim.AdamW(scorer.parameters(), recipe.rate, weight_decay=recipe.weight_decay)
    for epoch in range(recipe.epochs):
        total = 0.0
        for chosen in shuffled(len(training), recipe.batch):
            batch = [training[index] for index in chosen]
            loss = _ranking_loss(scorer, features, batch, recipe.margin)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            total += float(loss.detach()) * len(batch)
        say(f"epoch {epoch + 1}: ranking loss {total / len(training):.4f}")
    return scorer.eval(), right_order(scorer, features, held_out)


def right_order(scorer: Scorer, features: StoredFeatures, pairs: Sequence[Pair]) -> dict[str, float]:
    """Share of ``pairs`` whose better picture scores higher, by kind; kinds without pairs are left out."""
    shares = {}
    for kind in NEGATIVES:
        chosen = [pair for pair in pairs if pair.kind == kind]
        if chosen:
            with torch.inference_mode():
                margins = _margins(scorer, features, chosen)
            shares[kind] = float((margins > 0).double().mean())
    return shares


def fit_opinions(
    scorer: Scorer, features: StoredFeatures, path: Path, share: float
) -> dict[str, tuple[int, int, float]]:
    """Fits the last linear layer of each head to opinions by ridge regression; the rest stays as it is.

    Args:
        scorer: changed in place.
        features: of the pictures that ``path`` names.
        path: a table with ``picture`` and ``visual_quality``, ``alignment``, or both.
        share: of the pictures, to fit to; the paper's is 0.2. The others judge the fit.

    Returns:
        By dimension: pictures fitted to, pictures judged, and their Spearman correlation.

    Raises:
        UsageError: the table makes no sense, or too few pictures are left on either side.
    """
    table = read_table(path)
    name = column(table, NAME_COLUMNS, path)
    column(table, DIMENSIONS, path)
    check_names([row[name] for row in table], features, path)
    outcome = {}
    for dimension, head in zip(DIMENSIONS, _heads(scorer), strict=True):
        labelled = [(row[name], number(row, dimension, path)) for row in table if row.get(dimension)]
        if not labelled:
            continue
        fitted = [is_held_out(features.pictures[features.place[one]], share) for one, _ in labelled]
        if min(sum(fitted), len(fitted) - sum(fitted)) < 2:
            raise UsageError(f"{path}: {len(labelled)} opinions of {dimension} are too few to fit to {share:.0%} of")
        hidden = _head_inputs(scorer, head, features, [one for one, _ in labelled])
        opinions = torch.tensor([value for _, value in labelled], dtype=torch.float64)
        chosen = torch.tensor(fitted)
        weight, bias = _ridge(hidden[chosen], opinions[chosen])
        last = head[2]
        assert isinstance(last, nn.Linear)  # noqa: S101 - it is made so
        with torch.no_grad():
            last.weight.copy_(weight[None])
            last.bias.copy_(bias)
        judged = (hidden[~chosen] @ weight + bias).numpy()
        correlation = float(spearmanr(judged, opinions[~chosen].numpy()).statistic)
        outcome[dimension] = (int(chosen.sum()), int((~chosen).sum()), correlation)
    return outcome


def _heads(scorer: Scorer) -> tuple[nn.Sequential, nn.Sequential]:
    """In the order of ``DIMENSIONS``."""
    visual, alignment = scorer.visual_head, scorer.alignment_head
    assert isinstance(visual, nn.Sequential)  # noqa: S101 - they are made so
    assert isinstance(alignment, nn.Sequential)  # noqa: S101
    return visual, alignment


def _new_scorer(features: StoredFeatures, recipe: Recipe) -> Scorer:
    width = next(iter(features.answers.values())).shape[1]
    scorer = Scorer(Shape(width, recipe.hidden, recipe.width, recipe.layers, recipe.heads))
    nn.init.normal_(scorer.queries, std=0.02)
    nn.init.normal_(scorer.positions, std=0.02)
    # Hidden states of LMMs are large: what reads them begins as if they were of unit size, or all gates are shut.
    scale = max(features.scale(name) for name in INSTRUCTIONS)
    with torch.no_grad():
        for layer in (scorer.fusion.technical_gate, scorer.fusion.aesthetic_gate, scorer.project):
            layer.weight /= scale
        first = scorer.fusion.mix[0]
        assert isinstance(first, nn.Linear)  # noqa: S101 - it is made so
        first.weight /= scale
    return scorer


def _scores(scorer: Scorer, features: StoredFeatures, names: Sequence[str]) -> Tensor:
    """float32 ``[2, names]``: visual quality, alignment."""
    return torch.stack(scorer(*(features.of(instruction, names) for instruction in INSTRUCTIONS)))


def _margins(scorer: Scorer, features: StoredFeatures, pairs: Sequence[Pair]) -> Tensor:
    """By how much the better picture of each pair scores higher, float32 ``[pairs]``."""
    names = list(dict.fromkeys(name for pair in pairs for name in (pair.better, pair.worse)))
    place: Mapping[str, int] = {name: number for number, name in enumerate(names)}
    scores = _scores(scorer, features, names)
    dimension = [pair.dimension for pair in pairs]
    better, worse = ([place[name] for name in side] for side in zip(*((p.better, p.worse) for p in pairs), strict=True))
    margins: Tensor = scores[dimension, better] - scores[dimension, worse]
    return margins


def _ranking_loss(scorer: Scorer, features: StoredFeatures, pairs: Sequence[Pair], margin: float) -> Tensor:
    """Mean of max(0, m - better + worse): equations 18 to 20, each pair counting once."""
    return (margin - _margins(scorer, features, pairs)).relu().mean()


def _head_inputs(scorer: Scorer, head: nn.Sequential, features: StoredFeatures, names: Sequence[str]) -> Tensor:
    """What the head's last layer reads, float64 ``[names, width]``."""
    seen: list[Tensor] = []
    hook = head[1].register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    try:
        with torch.inference_mode():
            for start in range(0, len(names), 64):
                _scores(scorer, features, names[start : start + 64])
    finally:
        hook.remove()
    return torch.cat(seen).double().clone()


def _ridge(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Weight ``[width]`` and bias that minimise the squared error plus a small penalty on the weight."""
    centre, level = inputs.mean(0), targets.mean()
    centred = inputs - centre
    penalty = _RIDGE * centred.square().sum() / centred.shape[1] + 1e-9
    gram = centred.T @ centred + penalty * torch.eye(centred.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(gram, centred.T @ (targets - level))
    return weight, level - weight @ centre
