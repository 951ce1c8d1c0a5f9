"""Teaches the visual side with ranking losses over label-free pairs: ELIQ, equations 5 and 16-18."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from critiq_exporters.training.features import GROUPS
from critiq_exporters.training.network import AESTHETIC, TECHNICAL, Aspects, VisualHead, direct
from critiq_exporters.training.samples import CLEAN, MIXED, WATCHED, Samples
from critiq_exporters.training.sources import Source

PRISTINE = ("cid22", "coco_mini", "nanobanana_picotrex")
"""Populations that typicality measures distances to: two kinds of photographs, one of good recent generations."""


LEARNED_GROUPS = tuple(dict.fromkeys((*TECHNICAL.learned, *AESTHETIC.learned)))
SPOILT_LEVEL = 3
"""From this level on a degraded copy counts as worse than any clean picture."""


@dataclass(frozen=True)
class Settings:
    """What a training run may vary; the defaults made the shipped bundle."""

    steps: int = 500
    batch: int = 32
    """Source pictures a step, each with its nine samples."""
    rate: float = 1e-3
    decay: float = 0.02
    margin: float = 0.35
    """Margin m of eq. 18 for one level of difference."""
    order: float = 1.0
    """Weight of the order of two levels of one family."""
    similarity: float = 0.5
    """Weight of the order, across contents, that the gradient similarity to the clean picture gives."""
    neutral: float = 6.0
    """Weight of the squared penalty of clean pictures: contents and styles are not good or bad in themselves."""
    labels: float = 0.3
    """Weight of the low/high labels of the aspects (eq. 5)."""
    seed: int = 1


class VisualModel(nn.Module):
    """Aspects and head, as they are trained and stored."""

    def __init__(self) -> None:
        super().__init__()
        self.aspects = Aspects(len(PRISTINE))
        self.head = VisualHead()


@dataclass(frozen=True)
class Table:
    """All rounds as tensors: sample rows grouped by the base picture that they came from."""

    features: dict[str, Tensor]
    level: Tensor
    technical: Tensor
    """1 where a technical or generative degradation was applied, 0 elsewhere; likewise ``aesthetic``."""
    aesthetic: Tensor
    similarity: Tensor
    family: Tensor
    groups: Tensor
    """Row numbers ``[bases, samples of a base]``, the clean one first."""
    population: NDArray[np.str_]
    """Population of each row's source."""
    source: NDArray[np.int64]
    """Index of each row's source."""


def tabulate(rounds: list[Samples], damage: list[NDArray[np.float16]] | None, sources: list[Source]) -> Table:
    """One table of all files of samples, with what the damage network says of each file's (left out where null)."""
    variants = [item for one in rounds for item in one.variants]
    starts = [row for row, item in enumerate(variants) if item.kind == CLEAN]
    size = len(variants) // len(starts)
    families = {name: number for number, name in enumerate(sorted({item.family for item in variants}))}
    features = {name: torch.from_numpy(np.concatenate([one.features[name] for one in rounds])) for name in GROUPS}
    if damage is not None:
        features["damage"] = torch.from_numpy(np.concatenate(damage))
    return Table(
        features=features,
        level=torch.tensor([item.level for item in variants], dtype=torch.float32),
        technical=torch.tensor([item.kind in ("technical", "generative") for item in variants], dtype=torch.float32),
        aesthetic=torch.tensor([item.kind == "aesthetic" for item in variants], dtype=torch.float32),
        similarity=torch.tensor([item.similarity for item in variants], dtype=torch.float32),
        family=torch.tensor([-1 if item.family == MIXED else families[item.family] for item in variants]),
        groups=torch.tensor([list(range(start, start + size)) for start in starts]),
        population=np.array([sources[item.source].population for item in variants]),
        source=np.array([item.source for item in variants]),
    )


def train_visual(
    table: Table, comparable: Table, roles: dict[str, str], settings: Settings, *, quiet: bool = False
) -> tuple[VisualModel, list[float]]:
    """A model trained on ``table`` and its loss curve. ``roles`` maps populations to their role.

    Typicality is fitted on ``comparable``, samples of harmonised pictures: only there may sets be compared.
    The pictures that are watched take no part in the ranking, so that their scores can be looked at afterwards.
    """
    torch.manual_seed(settings.seed)
    model = VisualModel()
    fit_statistics(model.aspects, table, comparable, roles)
    known = _typicalities(model.aspects, table.features)
    optimiser = torch.optim.AdamW(model.parameters(), settings.rate, weight_decay=settings.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, settings.rate, settings.steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(settings.seed)
    groups = table.groups[table.source[table.groups[:, 0]] % WATCHED != 0]
    curve: list[float] = []
    model.train()
    for _ in tqdm(range(settings.steps), desc="visual quality", disable=quiet, mininterval=5):
        chosen = torch.randint(len(groups), (settings.batch,), generator=generator)
        loss = _loss(model, table, known, groups[chosen], settings)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        curve.append(float(loss.detach()))
    return model.eval(), curve


def fit_statistics(aspects: Aspects, table: Table, comparable: Table, roles: dict[str, str]) -> None:
    """Normalisers of ``table``; typicalities of ``comparable``, from its undamaged and its clearly spoilt pictures."""
    level, population = comparable.level.numpy(), comparable.population
    clean = level == 0
    role = np.array([roles[name] for name in population])
    for aspect in (aspects.technical, aspects.aesthetic):
        together = torch.cat([table.features[name].float() for name in aspect.groups.learned], 1)[table.level == 0]
        aspect.mean.copy_(together.mean(0))
        aspect.scale.copy_(together.std(0) + 1e-3)
        for name in aspect.groups.typical:
            values = comparable.features[name].numpy().astype(np.float32)
            pristine = [values[clean & (population == wanted)] for wanted in PRISTINE]
            early = values[clean & (role == "early")]
            spoilt = values[(level >= SPOILT_LEVEL)]
            recent = values[clean & (role == "generation")]
            typicality = aspect.typicality[name]
            typicality.fit(pristine, early, spoilt, np.concatenate([early, recent]))  # type: ignore[operator]


def scores(model: VisualModel, features: dict[str, Tensor]) -> Tensor:
    """Visual quality, technical and aesthetic score ``[samples, 3]`` of feature groups."""
    model.eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(next(iter(features.values()))), 1024):
            chunk = {name: value[start : start + 1024].float() for name, value in features.items()}
            parts.append(torch.stack(model.head(*model.aspects(chunk)), 1))
    return torch.cat(parts)


def save_visual(model: VisualModel, settings: Settings, path: Path) -> None:
    """Writes the weights as safetensors with the settings beside them in the header."""
    metadata = {name: str(value) for name, value in asdict(settings).items()}
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path, metadata)


def load_visual(path: Path) -> VisualModel:
    """Reads the weights back."""
    model = VisualModel()
    model.load_state_dict(load_file(path))
    return model.eval()


def _loss(model: VisualModel, table: Table, known: Tensor, groups: Tensor, settings: Settings) -> Tensor:
    rows = groups.flatten()
    features = {name: table.features[name][rows].float() for name in LEARNED_GROUPS}
    technical = model.aspects.technical.embed(features, known[rows, 0])
    aesthetic = model.aspects.aesthetic.embed(features, known[rows, 1])
    learned = model.head.learned(technical, aesthetic)
    score = (learned + direct(technical, aesthetic)).reshape(groups.shape)
    level = table.level[groups]
    loss = _ranking(score, level, settings)
    loss = loss + settings.order * _order(score, level, table.family[groups], settings.margin)
    loss = loss + settings.similarity * _across(score.flatten(), table.similarity[rows], settings.margin)
    loss = loss + settings.neutral * learned.reshape(groups.shape)[:, 0].square().mean()
    technical_odds, aesthetic_odds = model.head.odds(technical, aesthetic)
    loss = loss + settings.labels * _labels(technical_odds, table.technical[rows], table.level[rows])
    return loss + settings.labels * _labels(aesthetic_odds, table.aesthetic[rows], table.level[rows])


def _typicalities(aspects: Aspects, features: dict[str, Tensor]) -> Tensor:
    """The typicality of both aspects for every row, ``[rows, 2]``: constant during training, so computed once."""
    parts = []
    with torch.no_grad():
        for start in range(0, len(next(iter(features.values()))), 1024):
            chunk = {name: value[start : start + 1024].float() for name, value in features.items()}
            parts.append(torch.stack([aspects.technical.typical(chunk), aspects.aesthetic.typical(chunk)], 1))
    return torch.cat(parts)


def _ranking(score: Tensor, level: Tensor, settings: Settings) -> Tensor:
    """Equation 18: the clean picture above each of its variants, by a margin that grows with the level."""
    return F.relu(settings.margin * level[:, 1:] - score[:, :1] + score[:, 1:]).mean()


def _order(score: Tensor, level: Tensor, family: Tensor, margin: float) -> Tensor:
    """The lower of two levels of one family above the higher."""
    same = (family[:, :, None] == family[:, None, :]) & (family[:, :, None] >= 0) & (level[:, :, None] > 0)
    gap = level[:, None, :] - level[:, :, None]
    wanted = same & (gap > 0)
    violation = F.relu(margin * gap - score[:, :, None] + score[:, None, :])
    return violation[wanted].mean() if bool(wanted.any()) else violation.sum() * 0


def _across(score: Tensor, similarity: Tensor, margin: float) -> Tensor:
    """Across contents: what is much more like its clean picture scores higher."""
    known = ~torch.isnan(similarity)
    score, similarity = score[known], similarity[known]
    partner = torch.randperm(len(score))
    gap = (similarity - similarity[partner]) / 0.05
    violation = F.relu(margin * gap.clamp(0, 6) - score + score[partner])
    return violation[gap > 0.5].mean()


def _labels(logit: Tensor, low: Tensor, level: Tensor) -> Tensor:
    """Equation 5 as a binary choice: clean is high, the aspect's own negatives from level 2 on are low."""
    used = ((level == 0) | ((low > 0) & (level > 1))).float()
    weight = used * torch.where(level == 0, 1.0, 0.25)
    losses = F.binary_cross_entropy_with_logits(logit, (level == 0).float(), reduction="none")
    return (losses * weight).sum() / weight.sum().clamp_min(1.0)
