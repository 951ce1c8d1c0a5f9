"""NIQE: against a plain implementation, with the published parameters, exported and served."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from safetensors.numpy import save_file
from scipy.io import savemat

from critiq import Client
from critiq.errors import InvalidArgument
from critiq_exporters.cli import main
from critiq_exporters.core.checkpoints import CheckpointError
from critiq_exporters.core.evaluate import open_session
from critiq_exporters.core.pictures import Pixels, drawn_pictures
from critiq_exporters.families.natural_scene.niqe import CleanModel, Niqe, NiqeFeatures
from critiq_exporters.families.natural_scene.niqe_family import VIEW, load, read_clean_model
from critiq_server.images.views import apply_view
from tests.exporters.families import natural_scene_oracle as oracle
from tests.support.photographs import DATA, photographs
from tests.support.servers import server_process

PUBLISHED = DATA / "weights" / "niqe_pris_params.npz"
needs_published = pytest.mark.skipif(not PUBLISHED.exists(), reason="NIQE's published parameters are not here")


@pytest.fixture(scope="module")
def clean() -> CleanModel:
    """A Gaussian of the sort that photographs have: about the features of drawings, well conditioned."""
    features = np.concatenate([oracle.niqe_features(picture) for picture in drawings()])
    features = features[~np.isnan(features).any(axis=1)]
    return CleanModel(features.mean(axis=0), np.cov(features, rowvar=False) + 0.01 * np.eye(36))


def drawings() -> list[Pixels]:
    return [np.ascontiguousarray(picture[:192, :192]) for picture in drawn_pictures(3)]


def scores(network: Niqe, pictures: list[Pixels]) -> list[float]:
    with torch.inference_mode():
        return [float(network(torch.from_numpy(np.stack([apply_view(picture, VIEW)])))) for picture in pictures]


def test_features_and_scores_are_those_of_a_plain_implementation(clean: CleanModel) -> None:
    picture = np.ascontiguousarray(drawn_pictures(4)[3][:192, :288])
    pixels = torch.from_numpy(np.stack([picture]))
    features, sharpness = NiqeFeatures()(pixels)
    assert features.shape == (1, 6, 36)
    assert sharpness.shape == (1, 6)
    np.testing.assert_allclose(features[0], oracle.niqe_features(picture), atol=1e-9)
    expected = oracle.niqe(picture, clean.mean, clean.covariance)
    assert float(Niqe(clean)(pixels)) == pytest.approx(expected, rel=1e-9)


def test_a_score_does_not_depend_on_the_batch(clean: CleanModel) -> None:
    pictures = drawings()
    with torch.inference_mode():
        together = Niqe(clean)(torch.from_numpy(np.stack(pictures)))
    np.testing.assert_allclose(together, scores(Niqe(clean), pictures), rtol=1e-12)


def test_blocks_without_texture_are_left_out(clean: CleanModel) -> None:
    picture = drawn_pictures(2)[1][:192, :192].copy()
    picture = np.concatenate([np.tile(picture, (1, 2, 1)), np.full((96, 384, 3), 200, np.uint8)])
    features, _ = NiqeFeatures()(torch.from_numpy(picture[None]))
    assert features.isnan().any(2).sum() == 4
    assert scores(Niqe(clean), [picture])[0] == pytest.approx(oracle.niqe(picture, clean.mean, clean.covariance))
    assert np.isnan(scores(Niqe(clean), [np.full((192, 192, 3), 7, np.uint8)])).all()


def test_studio_range_is_another_scale(clean: CleanModel) -> None:
    full, studio = (scores(Niqe(clean, luma), drawings()[:1])[0] for luma in ("full", "studio"))
    assert full != pytest.approx(studio, rel=1e-3)


@needs_published
def test_with_the_published_parameters_photographs_are_natural_and_spoilt_ones_are_not() -> None:
    network = Niqe(read_clean_model(PUBLISHED))
    for image, _ in photographs("kodak", 1):
        spoilt = [image.filter(ImageFilter.GaussianBlur(2)), Image.effect_noise(image.size, 60).convert("RGB")]
        good, *bad = scores(network, [np.array(picture) for picture in (image, *spoilt)])
        assert 2 < good < 5
        assert min(bad) > good + 1


def test_all_files_of_parameters_read_alike(clean: CleanModel, tmp_path: Path) -> None:
    savemat(tmp_path / "a.mat", {"mu_prisparam": clean.mean, "cov_prisparam": clean.covariance})
    np.savez(tmp_path / "b.npz", mu_pris_param=clean.mean[None], cov_pris_param=clean.covariance)
    save_file({"mean": clean.mean, "covariance": clean.covariance}, tmp_path / "c.safetensors")
    for file in ("a.mat", "b.npz", "c.safetensors"):
        read = read_clean_model(tmp_path / file)
        assert np.array_equal(read.mean, clean.mean)
        assert np.array_equal(read.covariance, clean.covariance)


def test_parameters_that_do_not_fit_are_refused_with_the_list(clean: CleanModel, tmp_path: Path) -> None:
    file = tmp_path / "bad.npz"
    np.savez(file, mu_pris_param=np.zeros(35), other=np.zeros(2))
    with pytest.raises(CheckpointError) as caught:
        load(file)
    assert "wrongly shaped: mu_pris_param is [35], should be [36]" in str(caught.value)
    assert "missing: cov_prisparam or cov_pris_param or covariance" in str(caught.value)
    assert "the file holds: mu_pris_param, other" in str(caught.value)
    np.savez(file, mean=np.full(36, np.nan), covariance=clean.covariance)
    with pytest.raises(CheckpointError, match="not finite: mean"):
        load(file)
    np.savez(file, mean=clean.mean, covariance=-clean.covariance)
    with pytest.raises(CheckpointError, match="not positive definite"):
        load(file)
    np.savez(file, mean=clean.mean, covariance=np.triu(clean.covariance))
    with pytest.raises(CheckpointError, match="not symmetric"):
        load(file)
    np.savez(file, mean=np.array([{"pickled": "object"}], dtype=object))
    with pytest.raises(CheckpointError, match=r"not a readable \.npz file"):
        load(file)
    (tmp_path / "text.mat").write_text("no matrix")
    with pytest.raises(CheckpointError, match=r"not a readable \.mat file"):
        load(tmp_path / "text.mat")
    with pytest.raises(CheckpointError, match="none of the parameter files"):
        load(tmp_path / "weights.pt")


@pytest.mark.slow
def test_a_bundle_serves_pictures_of_several_sizes(clean: CleanModel, tmp_path: Path) -> None:
    np.savez(tmp_path / "clean.npz", mean=clean.mean, covariance=clean.covariance)
    command = ["niqe", "--checkpoint", str(tmp_path / "clean.npz"), "--out", str(tmp_path / "models"), "--count", "4"]
    assert main([*command, "--max-batch", "2"]) == 0
    session = open_session(tmp_path / "models" / "niqe" / "1" / "statistics.onnx", threads=1)
    plain = np.ascontiguousarray(drawn_pictures(4)[3][:192, :288])
    expected = oracle.niqe(plain, clean.mean, clean.covariance)
    assert session.run(None, {"image": plain[None]})[0].item() == pytest.approx(expected, rel=1e-9)
    pictures = [*drawn_pictures(6)[4:], drawn_pictures(1)[0][:100, :40]]
    flags = ["--models", str(tmp_path / "models"), "--default", "niqe", "--load", "niqe"]
    with server_process(flags, tmp_path / "log") as server, Client(server.grpc) as client:
        results = [client.score(picture) for picture in pictures]
        with pytest.raises(InvalidArgument, match="no value for pictures with fewer than two blocks"):
            client.score(np.full((200, 300, 3), 128, np.uint8))
    found = [result["naturalness"].raw for result in results]
    np.testing.assert_allclose(found, scores(Niqe(clean), pictures), rtol=1e-6)
    assert [result.image.resized for result in results] == [False, False, True]
