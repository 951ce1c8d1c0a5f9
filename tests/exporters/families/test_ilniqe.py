"""IL-NIQE: its statistics against SciPy and plain loops, fitting, the published file's form, exported and served."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from scipy.io import savemat
from scipy.ndimage import convolve
from scipy.signal import convolve2d
from scipy.stats import weibull_min

from critiq import Client
from critiq_exporters.cli import main
from critiq_exporters.core.checkpoints import CheckpointError
from critiq_exporters.core.pictures import Pixels, drawn_pictures
from critiq_exporters.families.natural_scene.fitting import fit_ilniqe, fit_niqe
from critiq_exporters.families.natural_scene.ilniqe import BLOCK, SIDE, CleanModel, Ilniqe, IlniqeFeatures
from critiq_exporters.families.natural_scene.ilniqe_family import load, read_clean_model, view
from critiq_exporters.families.natural_scene.weibull import fit_weibull
from critiq_server.images.views import apply_view
from tests.exporters.families import natural_scene_oracle as oracle
from tests.support.servers import server_process

Array = NDArray[np.float64]
SMALL = 2 * BLOCK + 5
"""A ninth of the published area: four blocks."""
KEPT = 2 * BLOCK


def textured(seed: int, shape: tuple[int, int] = (200, 260)) -> Pixels:
    """Noise of many scales, in colour: no block of it is flat."""
    rng = np.random.default_rng(seed)
    levels = sum(
        np.kron(rng.normal(0, 12, (shape[0] // step + 1, shape[1] // step + 1, 3)), np.ones((step, step, 1)))[
            : shape[0], : shape[1]
        ]
        for step in (1, 3, 9, 40)
    )
    return np.clip(levels + 120, 1, 255).astype(np.uint8)


def seen(picture: Pixels, side: int = SMALL) -> torch.Tensor:
    """As a batch of one, as the network sees it."""
    return torch.from_numpy(np.stack([apply_view(picture, view(side))]))


@pytest.fixture(scope="module")
def features() -> Array:
    with torch.inference_mode():
        found, _ = IlniqeFeatures(SMALL)(seen(textured(0)))
    assert found.shape == (1, 4, 468)
    result: Array = found[0].numpy()
    return result


def maps_of(picture: Pixels, scale: int) -> list[Array]:
    """The 109 maps of one scale, in the order of the published model, by SciPy's and NumPy's own convolutions."""
    rgb = picture[:KEPT, :KEPT].astype(np.float64)
    planes = [rgb @ row for row in ([0.3, 0.04, -0.35], [0.34, -0.6, 0.17], [0.06, 0.63, 0.27])]
    planes += list(rgb.transpose(2, 0, 1))
    if scale == 2:
        planes = [convolve(plane, oracle.window(6, 0.9), mode="nearest")[::2, ::2] for plane in planes]
    one, two, luminance, *colours = planes
    logs = [np.log(colour + 1e-5) - np.log(colour + 1e-5).mean() for colour in colours]
    intensity = [
        sum(logs) / np.sqrt(3),
        (logs[0] + logs[1] - 2 * logs[2]) / np.sqrt(6),
        (logs[0] - logs[1]) / np.sqrt(2),
    ]
    gradients = [gradient(plane, scale) for plane in (one, two, luminance)]
    responses = []
    side = len(luminance)
    spectrum = np.fft.fft2(luminance)
    for step in range(3):
        for orientation in range(4):
            response = np.fft.ifft2(spectrum * log_gabor(side, scale, step, orientation))
            responses += [response.real, response.imag]
    bank = [gradient(response, scale) for response in responses]
    magnitude = [np.hypot(*pair) + np.finfo(float).eps for pair in gradients]
    return [
        oracle.normalised(luminance, 5, 5 / 6, "nearest")[0],
        *magnitude,
        *intensity,
        *(part for pair in gradients for part in pair),
        *responses,
        *(part for pair in bank for part in pair),
        *(np.hypot(*pair) + np.finfo(float).eps for pair in bank),
    ]


def gradient(plane: Array, scale: int) -> tuple[Array, Array]:
    sigma = 1.66 / scale**0.28
    reach = int(np.ceil(3 * sigma))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float64)
    bell = np.exp(-(x**2 + y**2) / (2 * sigma**2))
    return convolve2d(plane, x * bell, "same"), convolve2d(plane, y * bell, "same")


def log_gabor(side: int, scale: int, step: int, orientation: int) -> Array:
    values = np.zeros((side, side))
    centre = 1 / (2.4 / scale**0.87 * 1.31**step)
    for row, down in enumerate(np.fft.fftfreq(side)):
        across = np.fft.fftfreq(side)
        radius = np.sqrt(down**2 + across**2)
        with np.errstate(divide="ignore"):
            radial = np.exp(-(np.log(radius / centre) ** 2) / (2 * np.log(0.55) ** 2))
        away = np.abs(np.angle(np.exp(1j * (np.arctan2(-down, across) - orientation * np.pi / 4))))
        values[row] = radial * np.exp(-(away**2) / (2 * (np.pi / 4 / 1.1) ** 2))
    values[0, 0] = 0
    return values


@pytest.mark.parametrize("scale", [1, 2])
def test_features_are_those_of_plain_convolutions_and_fits_block_by_block(features: Array, scale: int) -> None:
    maps = maps_of(seen(textured(0))[0].numpy(), scale)
    assert len(maps) == 109
    side = BLOCK // scale
    for block in (0, 1, 3):
        top, left = side * (block // 2), side * (block % 2)
        cut = [plane[top : top + side, left : left + side] for plane in maps]
        expected = oracle.niqe_of_block(cut[0])
        for samples in cut[1:4]:
            expected += weibull_of(samples)
        for samples in cut[4:7]:
            expected += [samples.mean(), samples.var()]
        for samples in cut[7:85]:
            shape, left_side, right_side = oracle.asymmetric(samples)
            scale_of = np.sqrt(oracle.gamma(1 / shape) / oracle.gamma(3 / shape))
            expected += [shape, (left_side + right_side) / 2 * scale_of]
        for samples in cut[85:]:
            expected += weibull_of(samples)
        found = features[block, 234 * (scale - 1) : 234 * scale]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def weibull_of(samples: Array) -> list[float]:
    shape, _, scale = weibull_min.fit(samples.ravel(), floc=0)
    return [scale, shape]


def test_weibull_fits_are_the_most_likely() -> None:
    rng = np.random.default_rng(1)
    samples = np.stack([scale * rng.weibull(shape, (30, 30)) for shape, scale in ((0.4, 2), (1.5, 300), (6, 0.01))])
    scale, shape = fit_weibull(torch.from_numpy(samples))
    for row, values in enumerate(samples):
        np.testing.assert_allclose([scale[row], shape[row]], weibull_of(values), rtol=1e-4)
    assert fit_weibull(torch.ones(1, 5, 5, dtype=torch.float64))[1].isnan().all()


def made_up_model(features: Array, components: int = 20) -> CleanModel:
    rng = np.random.default_rng(3)
    axes = np.linalg.qr(rng.normal(size=(468, components)))[0]
    centre = features.mean(axis=0)
    mixing = rng.normal(size=(components, components))
    return CleanModel(rng.normal(size=components), mixing @ mixing.T + np.eye(components), centre, axes)


def test_distance_is_the_mean_over_blocks_and_flat_ones_stand_at_the_mean(features: Array) -> None:
    clean = made_up_model(features)
    features = np.random.default_rng(2).normal(features.mean(axis=0), 1.0, (30, 468))
    features[4, 7], features[9, 100] = np.nan, np.inf
    with torch.inference_mode():
        found = float(Ilniqe(clean, SMALL).distance(torch.from_numpy(features[None])))
    projected = (np.minimum(features, 10_000) - clean.centre) @ clean.axes
    whole = ~np.isnan(projected).any(axis=1)
    projected[4] = np.nanmean(projected, axis=0)
    inverse = np.linalg.inv((clean.covariance + np.cov(projected[whole], rowvar=False)) / 2)
    away = projected - clean.mean
    assert found == pytest.approx(np.sqrt(np.einsum("ij,jk,ik->i", away, inverse, away)).mean(), rel=1e-9)


def test_the_authors_file_and_ours_read_alike(features: Array, tmp_path: Path) -> None:
    clean = made_up_model(features)
    cells = np.empty((1, 4), object)
    cells[0, :] = [clean.mean[None], clean.covariance, clean.centre[:, None], clean.axes]
    savemat(tmp_path / "templateModel.mat", {"templateModel": cells})
    np.savez(tmp_path / "ours.npz", **vars(clean))
    for file in ("templateModel.mat", "ours.npz"):
        for name, value in vars(read_clean_model(tmp_path / file)).items():
            assert np.array_equal(value, getattr(clean, name))


def test_parameters_that_do_not_fit_are_refused(features: Array, tmp_path: Path) -> None:
    clean = vars(made_up_model(features))
    file = tmp_path / "bad.npz"
    np.savez(file, **{**clean, "covariance": clean["covariance"][:19, :19]})
    with pytest.raises(CheckpointError, match=r"covariance is \[19, 19\], should be \[20, 20\]"):
        load(file)
    np.savez(file, **{**clean, "axes": clean["axes"][:36]})
    with pytest.raises(CheckpointError, match=r"axes is \[36, 20\], should be \[468, any\]"):
        load(file)
    savemat(tmp_path / "bad.mat", {"templateModel": np.zeros((2, 2))})
    with pytest.raises(CheckpointError, match="templateModel is not a cell array of mean, covariance, centre, axes"):
        load(tmp_path / "bad.mat")


@pytest.mark.slow
def test_fitted_models_find_the_pictures_they_were_fitted_on_natural() -> None:
    pictures = [textured(seed) for seed in range(8)]
    noise = np.random.default_rng(5).integers(0, 256, (200, 260, 3), np.uint8)
    clean = fit_ilniqe(pictures, SMALL)
    assert clean.axes.shape == (468, int(0.92 * 32))
    assert clean.covariance.shape == (clean.axes.shape[1],) * 2
    network = Ilniqe(clean, SMALL)
    with torch.inference_mode():
        known, strange = (float(network(seen(picture))) for picture in (pictures[0], noise))
    assert known * 2 < strange
    with pytest.raises(ValueError, match="sharp blocks are too few for a covariance"):
        fit_ilniqe(pictures[:1], SMALL)
    with pytest.raises(ValueError, match="sharp blocks are too few for 36 features"):
        fit_niqe(pictures[:1])
    with pytest.raises(ValueError, match="there are no pictures"):
        fit_niqe([])


def test_fitting_from_the_command_line(tmp_path: Path) -> None:
    from PIL import Image
    from typer.testing import CliRunner

    from critiq_exporters.families.natural_scene.__main__ import app

    for seed in range(4):
        Image.fromarray(textured(seed, (288, 384))).save(tmp_path / f"{seed}.png")
    out = tmp_path / "clean.safetensors"
    done = CliRunner().invoke(app, ["niqe", str(tmp_path), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "picture 4: " in done.output
    expected = fit_niqe([np.array(Image.open(tmp_path / f"{seed}.png")) for seed in range(4)])
    assert np.array_equal(load_file(out)["covariance"], expected.covariance)
    again = CliRunner().invoke(app, ["niqe", str(tmp_path), "--out", str(out)])
    assert again.exit_code == 2
    assert "exists" in again.output


@pytest.mark.slow
def test_the_published_size_has_36_blocks() -> None:
    with torch.inference_mode():
        features, sharpness = IlniqeFeatures()(seen(textured(1), SIDE))
    assert features.shape == (1, 36, 468)
    assert features.isfinite().all()
    assert sharpness.shape == (1, 36)
    with pytest.raises(ValueError, match="a side of 100 pixels holds less than two blocks of 84"):
        IlniqeFeatures(100)


@pytest.mark.slow
def test_a_bundle_is_served(features: Array, tmp_path: Path) -> None:
    clean = made_up_model(features)
    np.savez(tmp_path / "clean.npz", **vars(clean))
    command = ["ilniqe", "--checkpoint", str(tmp_path / "clean.npz"), "--out", str(tmp_path / "models"), "--count", "4"]
    assert main([*command, "--side", str(SMALL)]) == 0
    pictures = [textured(9), drawn_pictures(6)[5]]
    with torch.inference_mode():
        network = Ilniqe(clean, SMALL)
        expected = [float(network(seen(picture))) for picture in pictures]
    flags = ["--models", str(tmp_path / "models"), "--default", "ilniqe", "--load", "ilniqe"]
    with server_process(flags, tmp_path / "log") as server, Client(server.grpc, timeout=60) as client:
        found = [client.score(picture)["naturalness"].raw for picture in pictures]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
