"""The damage network sees what was done to small windows, and says the same of a picture in any company."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from critiq_exporters.training.damage import DAMAGE, HIDDEN, NUMBERS, DamageNetwork
from critiq_exporters.training.damage_training import (
    DamageSettings,
    Groups,
    features_of,
    load_damage,
    save_damage,
    train_damage,
)
from critiq_exporters.training.degradations import degrade
from critiq_exporters.training.features import MAP_CHANNELS, MAPS, WINDOWS, Maps
from critiq_exporters.training.golden import drawings
from critiq_exporters.training.samples import CLEAN, WATCHED, Samples, Variant, closeness

SIDE, WINDOWS_EACH = 32, 2
FAMILIES = ("white_noise", "checkerboard", "latent_grid")
SETTINGS = DamageSettings(passes=8, batch=8, half=False)
PICTURES = [drawings()[index] for index in (1, 3, 5)]


def _samples(sources: int) -> Samples:
    """Each source once clean and at two levels of each family; windows of 32 pixels, maps that say nothing."""
    windows, variants = [], []
    for source in range(sources):
        picture = np.roll(PICTURES[source % 3], (13 * source, 29 * source), (0, 1))
        rng = np.random.default_rng(source)
        base = np.ascontiguousarray(picture[: 3 * SIDE, : 3 * SIDE])
        made = [(Variant(source, CLEAN, CLEAN, 0, 1.0, 50.0), base)]
        for family in FAMILIES:
            for level in (2, 5):
                spoilt = degrade(base, family, level, rng)
                made.append((Variant(source, family, "technical", level, 0.8, closeness(base, spoilt)), spoilt))
        variants += [variant for variant, _ in made]
        windows += [np.stack([item[:SIDE, :SIDE], item[-SIDE:, -SIDE:]]) for _, item in made]
    count = len(variants)
    cells = SIDE // 16
    maps = (
        np.zeros((count, WINDOWS_EACH, MAP_CHANNELS, cells, cells), np.float16),
        np.zeros((count, MAP_CHANNELS, cells, cells), np.float16),
    )
    return Samples({}, {WINDOWS: np.stack(windows), **dict(zip(MAPS, maps, strict=True))}, variants, 0)


@pytest.fixture(scope="module")
def trained() -> DamageNetwork:
    return train_damage([_samples(40)], SETTINGS, quiet=True)[0]


def test_strong_damage_is_told_from_clean_pictures_that_were_not_learned_from(trained: DamageNetwork) -> None:
    samples = _samples(60)
    severity = features_of(trained, samples, half=False)[:, HIDDEN + NUMBERS.index("severity")].reshape(60, 7)
    unseen = severity[40:]
    assert (unseen[:, [2, 4, 6]] > unseen[:, :1]).mean() > 0.9
    assert (unseen[:, [2, 4, 6]] > unseen[:, [1, 3, 5]]).mean() > 0.8  # and level 5 from level 2


def test_what_it_says_does_not_depend_on_the_batch(trained: DamageNetwork) -> None:
    samples = _samples(3)
    windows = torch.from_numpy(samples.views[WINDOWS])
    maps = [torch.from_numpy(samples.views[name]).float() for name in MAPS]
    with torch.inference_mode():
        together = trained(windows, Maps(*maps))
        alone = torch.cat([trained(windows[i : i + 1], Maps(*(m[i : i + 1] for m in maps))) for i in range(4)])
    assert together.shape == (21, DAMAGE)
    assert torch.allclose(together[:4], alone, atol=1e-4)


def test_watched_pictures_are_never_learned_from() -> None:
    samples = _samples(2 * WATCHED)
    groups = Groups([samples])
    watched = {samples.variants[row].source for _, row in groups.watched}
    learned = {samples.variants[row].source for _, row in groups.training}
    assert watched == {0, WATCHED}
    assert not watched & learned
    assert len(watched | learned) == 2 * WATCHED


def test_the_same_seed_trains_the_same_network_and_its_file_reads_back(tmp_path: Path) -> None:
    samples, settings = _samples(6), replace(SETTINGS, passes=1)
    first, second = (train_damage([samples], settings, quiet=True)[0] for _ in range(2))
    save_damage(first, tmp_path / "damage.safetensors")
    read = load_damage(tmp_path / "damage.safetensors")
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
        assert torch.equal(value, read.state_dict()[name])


def test_closeness_is_the_signal_to_noise_ratio() -> None:
    clean = np.full((8, 8, 3), 100, np.uint8)
    assert closeness(clean, clean) == 50.0
    assert closeness(clean, clean + 16) == pytest.approx(10 * np.log10(255**2 / 256))
