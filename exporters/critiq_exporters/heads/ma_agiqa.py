"""Trains MA-AGIQA's fusion on stored features and the votes of a frozen tower, by mean squared error on opinions.

Wang et al., ACM MM 2024, section 4.2: Adam with weight decay 1e-5, batches of 8, 30 epochs, mean squared error, and the
epoch with the highest sum of SRCC and PLCC on held-out pictures. The authors train the tower too, at a rate of 1e-5;
here it stays as its checkpoint has it, and the fusion alone, begun anew, learns at a higher rate.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from scipy.stats import pearsonr, spearmanr
from torch import Tensor

from critiq.cli.exits import UsageError
from critiq_exporters.core.checkpoints import fill
from critiq_exporters.families.ma_agiqa.checkpoint import FUSION_NAMES, SCALE
from critiq_exporters.families.ma_agiqa.network import Fusion, PositionVotes
from critiq_exporters.families.maniqa import checkpoint as maniqa
from critiq_exporters.features.sources import Item
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
from critiq_server.bundles.manifest import ResizeView
from critiq_server.features.keys import pixels_key
from critiq_server.images.decode import decode
from critiq_server.images.limits import ImageLimits
from critiq_server.images.source import EncodedImage
from critiq_server.images.views import apply_view
from critiq_server.runtime.lmm.instructions import QUESTIONS

INSTRUCTIONS = QUESTIONS["mplug-owl2"]
OPINION_COLUMNS = ("mos", "visual_quality", "quality", "score")


@dataclass(frozen=True)
class Recipe:
    """How the fusion is trained."""

    epochs: int = 30
    rate: float = 1e-3
    batch: int = 8
    weight_decay: float = 1e-5
    held_out: float = 0.2
    seed: int = 1


@dataclass(frozen=True)
class Outcome:
    """The best epoch, and its correlations with opinions on held-out pictures."""

    epoch: int
    srcc: float
    plcc: float
    trained_on: int
    judged_on: int


def read_opinions(path: Path, features: StoredFeatures) -> dict[str, float]:
    """Mean opinion scores by picture; raises ``UsageError``."""
    table = read_table(path)
    name, opinion = column(table, NAME_COLUMNS, path), column(table, OPINION_COLUMNS, path)
    check_names([row[name] for row in table], features, path)
    return {row[name]: number(row, opinion, path) for row in table}


def open_tower(state: dict[str, Tensor]) -> PositionVotes:
    """The tower of a checkpoint in the layout of MANIQA or MA-AGIQA. Raises ``CheckpointError``."""
    shape = maniqa.read_shape(state, SCALE)
    votes = PositionVotes(shape)
    names = maniqa.tower_names(shape)
    # What is no part of the tower (the fusion, leftovers of the authors' constructors) does not matter here.
    fill(votes.tower, {name: state[name] for name in names if name in state}, names)
    return votes.eval()


def compute_votes(
    tower: PositionVotes, items: Iterable[Item], wanted: Mapping[str, str], cache: Path, say: Callable[[str], None]
) -> dict[str, Tensor]:
    """The tower's votes, float32 ``[positions]``, by the picture's name.

    Args:
        tower: in evaluation mode.
        items: the source that the features were built from.
        wanted: ``pixels_key``, hexadecimal, of each picture by its name.
        cache: file of votes of this very tower; it is read, and written as votes are computed.
        say: told how far it is.

    Raises:
        UsageError: pictures are missing or not those of the features, or ``cache`` is no file of votes.
        CritiqError: a picture cannot be decoded.
    """
    votes = _read_votes(cache)
    view = ResizeView(height=tower.shape.image, width=tower.shape.image, filter="opencv_cubic")
    missing = {name for name, picture in wanted.items() if picture not in votes}
    for item in items:
        if item.name not in missing:
            continue
        missing.discard(item.name)
        pixels = decode(EncodedImage(item.load()), ImageLimits()).pixels
        if (picture := pixels_key(pixels).hex()) != wanted[item.name]:
            raise UsageError(f"{item.name} is another picture than the one that the store has features of")
        with torch.inference_mode():
            votes[picture] = tower(torch.from_numpy(np.array(apply_view(pixels, view)))[None])[0]
        if len(missing) % 100 == 0:
            say(f"votes of the tower: {len(missing):,} pictures to go")
            _write_votes(votes, cache)
    if missing:
        raise UsageError(f"the source holds no picture {min(missing)!r} ({len(missing)} are missing)")
    return {name: votes[picture] for name, picture in wanted.items()}


def train_fusion(
    features: StoredFeatures,
    votes: dict[str, Tensor],
    opinions: dict[str, float],
    recipe: Recipe,
    say: Callable[[str], None],
) -> tuple[Fusion, Outcome]:
    """The fusion of the best epoch. Raises ``UsageError`` if there are too few opinions to train and to judge."""
    held_out = [name for name in opinions if _is_held_out(name, features, recipe)]
    training = [name for name in opinions if name not in set(held_out)]
    if min(len(held_out), len(training)) < 3:
        raise UsageError(
            f"{len(opinions)} opinions leave {len(training)} to train on and {len(held_out)} to judge by; give more"
        )
    torch.manual_seed(recipe.seed)
    fusion = _new_fusion(features, votes, [opinions[name] for name in training])
    optimiser = torch.optim.Adam(fusion.parameters(), recipe.rate, weight_decay=recipe.weight_decay)
    best: tuple[float, Outcome, Fusion] | None = None
    for epoch in range(1, recipe.epochs + 1):
        fusion.train()
        total = 0.0
        for chosen in shuffled(len(training), recipe.batch):
            names = [training[index] for index in chosen]
            targets = torch.tensor([opinions[name] for name in names])
            loss = torch.nn.functional.mse_loss(_quality(fusion, features, votes, names), targets)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            total += float(loss.detach()) * len(names)
        srcc, plcc = _correlations(fusion, features, votes, held_out, opinions)
        say(f"epoch {epoch}: mean squared error {total / len(training):.4f}, held out SRCC {srcc:.3f}, PLCC {plcc:.3f}")
        if best is None or srcc + plcc > best[0]:
            outcome = Outcome(epoch, srcc, plcc, len(training), len(held_out))
            best = (srcc + plcc, outcome, copy.deepcopy(fusion))
    assert best is not None  # noqa: S101 - there is an epoch
    return best[2].eval(), best[1]


def authors_layout(state: dict[str, Tensor], tower: PositionVotes, fusion: Fusion) -> dict[str, Tensor]:
    """A checkpoint as the authors write it: the tower as it was, and ``fusion``."""
    whole = {name: state[name].clone() for name in maniqa.tower_names(tower.shape)}
    ours = fusion.state_dict()
    for theirs, name in FUSION_NAMES.items():
        whole |= {f"{theirs}.{kind}": ours[f"{name}.{kind}"].clone() for kind in ("weight", "bias")}
    return whole


def _is_held_out(name: str, features: StoredFeatures, recipe: Recipe) -> bool:
    return is_held_out(features.pictures[features.place[name]], recipe.held_out)


def _new_fusion(features: StoredFeatures, votes: dict[str, Tensor], opinions: Sequence[float]) -> Fusion:
    positions = len(next(iter(votes.values())))
    fusion = Fusion(positions, next(iter(features.answers.values())).shape[1])
    with torch.no_grad():
        # Hidden states of LMMs are large and the votes small: each expert begins as if its input were of unit size.
        fusion.semantic.weight /= features.scale(INSTRUCTIONS[0])
        fusion.coherence.weight /= features.scale(INSTRUCTIONS[1])
        fusion.picture.weight /= float(torch.stack(list(votes.values())).square().mean().sqrt().clamp_min(1e-6))
        fusion.output.bias.fill_(float(np.mean(opinions)))
    return fusion


def _quality(fusion: Fusion, features: StoredFeatures, votes: dict[str, Tensor], names: Sequence[str]) -> Tensor:
    seen = torch.stack([votes[name] for name in names])
    quality: Tensor = fusion(seen, *(features.of(instruction, names) for instruction in INSTRUCTIONS))
    return quality


def _correlations(
    fusion: Fusion, features: StoredFeatures, votes: dict[str, Tensor], names: Sequence[str], opinions: dict[str, float]
) -> tuple[float, float]:
    fusion.eval()
    with torch.inference_mode():
        found = _quality(fusion, features, votes, names).double().numpy()
    expected = np.array([opinions[name] for name in names])
    if np.ptp(found) == 0 or np.ptp(expected) == 0:
        return 0.0, 0.0
    return float(spearmanr(found, expected).statistic), float(pearsonr(found, expected).statistic)


def _read_votes(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        return {}
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dictionary
    except SafetensorError as error:
        raise UsageError(f"{path} is no file of votes ({error}); remove it") from error


def _write_votes(votes: dict[str, Tensor], path: Path) -> None:
    partial = path.with_name(f"{path.name}.part")
    save_file({name: value.numpy() for name, value in votes.items()}, partial)
    partial.replace(path)
