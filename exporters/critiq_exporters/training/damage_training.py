"""Teaches the damage network on spoilt copies: which families, how strong, how far from the clean picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from critiq_exporters.training.damage import HIDDEN, NUMBERS, DamageNetwork
from critiq_exporters.training.degradations import FAMILIES
from critiq_exporters.training.features import MAPS, WINDOWS, Maps
from critiq_exporters.training.samples import CLEAN, MIXED, WATCHED, Samples

_NO_FAMILY = -1


@dataclass(frozen=True)
class DamageSettings:
    """What a training run of the damage network may vary; the defaults made the shipped bundle."""

    passes: float = 0.7
    """How often each sample is seen."""
    batch: int = 6
    """Source pictures a step, each with its ten samples."""
    rate: float = 2e-3
    decay: float = 0.02
    margin: float = 1.0
    """Least difference of severity for one level of one family."""
    half: bool = True
    """Convolutions in bfloat16: three times as fast where the processor has it, slower but sound where not."""
    seed: int = 1


@dataclass(frozen=True)
class Curve:
    """Loss of each step, and now and then the share of watched pictures told from their copies, by step."""

    losses: list[float]
    watched: list[tuple[int, float]]


class Task(nn.Module):
    """The network and what it is asked: families beside ``NUMBERS``."""

    def __init__(self) -> None:
        super().__init__()
        self.network = DamageNetwork()
        self.families = nn.Linear(HIDDEN, len(FAMILIES))

    def forward(self, windows: Tensor, maps: Maps) -> tuple[Tensor, dict[str, Tensor]]:
        """Log-odds of the families ``[batch, families]``, and ``NUMBERS`` by name, ``[batch]`` each."""
        damage = self.network(windows, maps)
        stated = dict(zip(NUMBERS, damage[:, HIDDEN:].unbind(1), strict=True))
        return self.families(damage[:, :HIDDEN]), stated


@dataclass(frozen=True)
class Batch:
    """Some groups of samples: a clean picture and its copies each, ``[groups, samples]`` unless said."""

    windows: Tensor
    maps: Maps
    """Both views of all samples in a row."""
    level: Tensor
    family: Tensor
    """Index in ``FAMILIES``, -1 for the clean picture and mixtures."""
    mixed: Tensor
    similarity: Tensor
    closeness: Tensor


class Groups:
    """Random access to the groups in files of samples."""

    def __init__(self, rounds: list[Samples]) -> None:
        self._rounds = rounds
        starts = [
            (number, row, item.source)
            for number, one in enumerate(rounds)
            for row, item in enumerate(one.variants)
            if item.kind == CLEAN
        ]
        self._size = sum(len(one.variants) for one in rounds) // len(starts)
        self.training = [(number, row) for number, row, source in starts if source % WATCHED]
        self.watched = [(number, row) for number, row, source in starts if source % WATCHED == 0]

    def read(self, places: list[tuple[int, int]], kind: torch.dtype) -> Batch:
        """The groups that start at ``places`` of ``training`` or ``watched``, with maps of type ``kind``."""
        numbers = {name: index for index, name in enumerate(FAMILIES)}
        items = [self._rounds[number].variants[row : row + self._size] for number, row in places]

        def views(name: str) -> Tensor:
            parts = [self._rounds[number].views[name][row : row + self._size] for number, row in places]
            return torch.from_numpy(np.concatenate(parts))

        def column(name: str) -> Tensor:
            return torch.tensor([[float(getattr(item, name)) for item in group] for group in items])

        return Batch(
            windows=views(WINDOWS),
            maps=Maps(*(views(name).to(kind) for name in MAPS)),
            level=column("level"),
            family=torch.tensor([[numbers.get(item.family, _NO_FAMILY) for item in group] for group in items]),
            mixed=torch.tensor([[item.family == MIXED for item in group] for group in items]),
            similarity=column("similarity"),
            closeness=column("closeness"),
        )


def train_damage(
    rounds: list[Samples], settings: DamageSettings, *, quiet: bool = False
) -> tuple[DamageNetwork, Curve]:
    """A network trained on all samples but the watched, and its curve."""
    torch.manual_seed(settings.seed)
    groups = Groups(rounds)
    task = Task().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = max(20, round(settings.passes * len(groups.training) / settings.batch))
    optimiser = torch.optim.AdamW(task.parameters(), settings.rate, weight_decay=settings.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, settings.rate, steps, pct_start=0.1)
    curve = Curve([], [])
    kind = torch.bfloat16 if settings.half else torch.float32
    progress = tqdm(_shuffled(groups, steps, settings), "damage network", steps, disable=quiet, mininterval=10)
    for step, places in enumerate(progress):
        task.train()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.half):
            batch = groups.read(places, kind)
            families, stated = task(batch.windows, batch.maps)
        loss = _loss(families.float(), {name: value.float() for name, value in stated.items()}, batch, settings)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        curve.losses.append(float(loss.detach()))
        if groups.watched and (step + 1) % max(1, steps // 8) == 0:
            curve.watched.append((step + 1, watched_accuracy(task, groups, kind)))
            progress.set_postfix(watched=f"{curve.watched[-1][1]:.3f}")
    return task.network.eval(), curve


def watched_accuracy(task: Task, groups: Groups, kind: torch.dtype, most: int = 40) -> float:
    """Share of the spoilt copies of watched pictures that are told from their clean picture by severity."""
    task.eval()
    wins = []
    places = groups.watched[:: -(-len(groups.watched) // most)]
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == torch.bfloat16):
        for start in range(0, len(places), 8):
            batch = groups.read(places[start : start + 8], kind)
            severity = task(batch.windows, batch.maps)[1]["severity"].reshape(batch.level.shape)
            wins.append((severity[:, 1:] > severity[:, :1]).float().mean())
    return float(torch.stack(wins).mean())


def features_of(network: DamageNetwork, samples: Samples, *, half: bool, chunk: int = 40) -> NDArray[np.float16]:
    """What the network says of every sample, float16 ``[samples, DAMAGE]``; ``half`` as in the settings."""
    network = network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parts = []
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        for start in range(0, len(samples.variants), chunk):
            rows = slice(start, start + chunk)
            windows, *maps = (torch.from_numpy(np.array(samples.views[name][rows])) for name in (WINDOWS, *MAPS))
            found = network(windows, Maps(*(item.to(torch.bfloat16 if half else torch.float32) for item in maps)))
            parts.append(found.float().numpy().astype(np.float16))
    return np.concatenate(parts)


def save_damage(network: DamageNetwork, path: Path) -> None:
    """Writes the weights as safetensors."""
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path)


def load_damage(path: Path) -> DamageNetwork:
    """Reads the weights back."""
    network = DamageNetwork()
    network.load_state_dict(load_file(path))
    return network.eval()


def _shuffled(groups: Groups, steps: int, settings: DamageSettings) -> Iterator[list[tuple[int, int]]]:
    rng = np.random.default_rng(settings.seed)
    order: list[int] = []
    for _ in range(steps):
        while len(order) < settings.batch:
            order += rng.permutation(len(groups.training)).tolist()
        yield [groups.training[index] for index in order[: settings.batch]]
        del order[: settings.batch]


def _loss(families: Tensor, stated: dict[str, Tensor], batch: Batch, settings: DamageSettings) -> Tensor:
    shape = batch.level.shape
    spoilt, severity, similarity, closeness = (stated[name].reshape(shape) for name in NUMBERS)
    target = F.one_hot(batch.family.clamp_min(0), len(FAMILIES)) * (batch.family >= 0)[..., None]
    named = F.binary_cross_entropy_with_logits(families.reshape(*shape, -1), target.float(), reduction="none").sum(2)
    # The clean picture is one of ten: weighed up, so that calling everything spoilt does not pay.
    weight = torch.where(batch.level > 0, 1.0, 4.0)
    told = F.binary_cross_entropy_with_logits(spoilt, (batch.level > 0).float(), reduction="none")
    return (
        named[~batch.mixed].mean()
        + 2.0 * (weight * told).mean()
        + _levels(severity, batch, settings.margin)
        + 0.5 * severity[:, 0].square().mean()
        + _distance(similarity, (batch.similarity - 0.9) / 0.08)
        + _distance(closeness, (batch.closeness - 30.0) / 10.0)
    )


def _levels(severity: Tensor, batch: Batch, margin: float) -> Tensor:
    """The clean picture below each copy, and a copy below a stronger one of its family, each by its margin."""
    above_clean = F.relu(margin * batch.level[:, 1:] - severity[:, 1:] + severity[:, :1])
    same = (batch.family[:, :, None] == batch.family[:, None, :]) & (batch.family >= 0)[:, :, None]
    gap = batch.level[:, None, :] - batch.level[:, :, None]
    ordered = F.relu(margin * gap - severity[:, None, :] + severity[:, :, None])[same & (gap > 0)]
    return above_clean.mean() + (ordered.mean() if len(ordered) else 0.0 * severity.sum())


def _distance(found: Tensor, target: Tensor) -> Tensor:
    known = ~torch.isnan(target)
    return F.smooth_l1_loss(found[known], target[known])
