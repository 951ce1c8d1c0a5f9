"""BRISQUE: against a plain implementation, with libsvm's text files, exported and served."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from critiq import Client
from critiq_exporters.cli import main
from critiq_exporters.core.checkpoints import CheckpointError
from critiq_exporters.core.pictures import drawn_pictures
from critiq_exporters.families.natural_scene.brisque import Brisque, BrisqueFeatures
from critiq_exporters.families.natural_scene.brisque_family import VIEW, load
from critiq_exporters.families.natural_scene.libsvm import read_regression
from critiq_server.images.views import apply_view
from tests.exporters.families import natural_scene_oracle as oracle
from tests.support.servers import server_process

GAMMA, RHO = 0.05, -53.5


def write_files(folder: Path, vectors: int = 7) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A model and ranges as libsvm writes them, about the features of drawings: ranges, weights, vectors."""
    rng = np.random.default_rng(5)
    features = np.array([oracle.brisque_features(picture[:64, :96]) for picture in drawn_pictures(3)])
    ranges = np.stack([features.min(axis=0) - 0.1, features.max(axis=0) + 0.1], axis=1)
    weights, support = rng.normal(0, 40, vectors), rng.uniform(-1, 1, (vectors, 36))
    support[:, 3] = 0  # libsvm leaves zeros out
    lines = [
        f"{weight!r} " + " ".join(f"{index + 1}:{float(value)!r}" for index, value in enumerate(row) if value)
        for weight, row in zip(weights.tolist(), support, strict=True)
    ]
    head = f"svm_type epsilon_svr\nkernel_type rbf\ngamma {GAMMA}\nnr_class 2\ntotal_sv {vectors}\nrho {RHO}\n"
    (folder / "allmodel").write_text(f"{head}probA 3.2\nSV\n" + "\n".join(lines) + "\n")
    bounds = "\n".join(f"{index + 1} {low!r} {high!r}" for index, (low, high) in enumerate(ranges.tolist()))
    (folder / "allrange").write_text(f"x\n-1 1\n{bounds}\n")
    return ranges, weights, support


def test_scores_are_those_of_a_plain_implementation(tmp_path: Path) -> None:
    ranges, weights, support = write_files(tmp_path)
    picture = drawn_pictures(4)[3][:70, :130]
    features = np.array(oracle.brisque_features(picture))
    pixels = torch.from_numpy(np.stack([picture, picture[::-1]]))
    np.testing.assert_allclose(BrisqueFeatures()(pixels)[0], features, atol=1e-9)
    scaled = -1 + 2 * (features - ranges[:, 0]) / (ranges[:, 1] - ranges[:, 0])
    kernel = [np.exp(-GAMMA * np.sum((scaled - vector) ** 2)) for vector in support]
    network = Brisque(read_regression(tmp_path / "allmodel", tmp_path / "allrange"))
    assert float(network(pixels)[0]) == pytest.approx(float(np.dot(weights, kernel)) - RHO, rel=1e-9)
    assert np.isnan(float(network(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))))


def test_a_folder_or_two_files_will_do(tmp_path: Path) -> None:
    write_files(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / "allrange").rename(tmp_path / "elsewhere" / "ranges.txt")
    with pytest.raises(
        CheckpointError, match=r"allrange does not exist; BRISQUE needs svm-scale's ranges \(see --ranges"
    ):
        load(tmp_path)
    assert "allmodel (SHA-256 " in load(tmp_path / "allmodel", ranges=moved).source


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("allmodel", ("epsilon_svr", "c_svc"), "not a libsvm regression with a Gaussian kernel: svm_type c_svc"),
        ("allmodel", ("total_sv 7", "total_sv 774"), "holds 7 support vectors, its header says 774"),
        ("allmodel", ("\nrho -53.5", ""), "gives no number for rho"),
        ("allmodel", (" 36:", " 37:"), "support vector 1: BRISQUE has the features 1 to 36, not 37"),
        ("allmodel", (" 36:", " 36:nan#"), "support vector 1: could not convert"),
        ("allrange", ("x\n", "y\n"), "begins with 'y', not with 'x'"),
        ("allrange", ("\n7 ", "\n8 "), "gives no range to the features 7"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, file: str, change: tuple[str, str], message: str) -> None:
    write_files(tmp_path)
    text = (tmp_path / file).read_text()
    assert change[0] in text
    (tmp_path / file).write_text(text.replace(*change))
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


@pytest.mark.slow
def test_a_bundle_serves_pictures_of_several_sizes(tmp_path: Path) -> None:
    write_files(tmp_path)
    command = ["brisque", "--checkpoint", str(tmp_path), "--out", str(tmp_path / "models"), "--count", "4"]
    assert main([*command, "--max-batch", "2"]) == 0
    network = Brisque(read_regression(tmp_path / "allmodel", tmp_path / "allrange"))
    pictures = [*drawn_pictures(6)[4:], drawn_pictures(1)[0][:101, :41]]
    with torch.inference_mode():
        expected = [float(network(torch.from_numpy(np.stack([apply_view(picture, VIEW)])))) for picture in pictures]
    flags = ["--models", str(tmp_path / "models"), "--default", "brisque", "--load", "brisque"]
    with server_process(flags, tmp_path / "log") as server, Client(server.grpc) as client:
        found = [item.unwrap()["visual_quality"].raw for item in client.score_batch(pictures)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
