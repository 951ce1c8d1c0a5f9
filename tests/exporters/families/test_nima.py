"""NIMA: the three public layouts against the same networks put together from torch's own layers, and served."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from critiq import Client
from critiq_exporters.cli import main
from critiq_exporters.core.checkpoints import CheckpointError, read_state
from critiq_exporters.core.pictures import drawn_pictures
from critiq_exporters.families.nima.checkpoint import build
from critiq_exporters.families.nima.family import load, view
from critiq_server.bundles.manifest import CropsView, ImageInput, ResizeView
from critiq_server.images.views import apply_view
from tests.exporters.families.rule_made import rule_made
from tests.support.servers import server_process

PICTURES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8))
PLAN = ((1, 1, 1), (6, 2, 2), (6, 3, 2), (6, 4, 2), (6, 3, 1), (6, 3, 2), (6, 1, 1))
"""Expansion, blocks and first stride of MobileNetV2's groups (its paper's table 2)."""
WIDTHS = (4, 4, 6, 6, 8, 8, 10)


def vgg16() -> nn.Module:
    """As yunxiaoshi/Neural-IMage-Assessment builds it on torchvision's, eight times as narrow."""
    layers: list[nn.Module] = []
    inputs = 3
    for width in (8, 8, 0, 16, 16, 0, 32, 32, 32, 0, 64, 64, 64, 0, 64, 64, 64, 0):
        layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()] if width else [nn.MaxPool2d(2)]
        inputs = width or inputs
    head = nn.Sequential(nn.Dropout(0.75), nn.Linear(64 * 49, 10), nn.Softmax(dim=1))
    return Named({"features": nn.Sequential(*layers), "classifier": head})


def mobilenet(own: bool) -> nn.Module:
    """As truskovskiyk/nima.pytorch builds it (``own``), or on torchvision's, narrow."""

    def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
        layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        return [layer, nn.BatchNorm2d(outputs)]

    layers: list[nn.Module] = [nn.Sequential(*conv(3, 8, 3, 2), nn.ReLU() if own else nn.ReLU6())]
    inputs = 8
    for (expansion, repeats, stride), width in zip(PLAN, WIDTHS, strict=True):
        for repeat in range(repeats):
            hidden, step = inputs * expansion, 1 if repeat else stride
            parts = [[*conv(inputs, hidden, 1), nn.ReLU6()]] if own or expansion > 1 else []
            parts.append([*conv(hidden, hidden, 3, step, hidden), nn.ReLU6()])
            project = conv(hidden, width, 1)
            body = [layer for part in parts for layer in part] if own else [nn.Sequential(*part) for part in parts]
            layers.append(Residual(nn.Sequential(*body, *project), step == 1 and inputs == width))
            inputs = width
    layers.append(nn.Sequential(*conv(inputs, 20, 1), nn.ReLU() if own else nn.ReLU6()))
    if own:
        head = nn.Sequential(nn.ReLU(), nn.Dropout(0.75), nn.Linear(20, 10), nn.Softmax(dim=1))
        features = nn.Sequential(nn.Sequential(*layers, nn.AvgPool2d(7)))
        return Named({"base_model": features, "head": head})
    features = nn.Sequential(*layers)
    return Named(
        {"features": features, "classifier": nn.Sequential(nn.Dropout(0.2), nn.Linear(20, 10), nn.Softmax(dim=1))},
        pooled=True,
    )


class Residual(nn.Module):
    def __init__(self, conv: nn.Module, residual: bool) -> None:
        super().__init__()
        self.conv, self.residual = conv, residual

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + y if self.residual else y


class Named(nn.Module):
    """Two modules by their names in the checkpoint: convolutions, then the head."""

    def __init__(self, parts: dict[str, nn.Module], pooled: bool = False) -> None:
        super().__init__()
        self.parts, self.pooled = list(parts), pooled
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        x = getattr(self, self.parts[0])(x)
        x = x.mean((2, 3)) if self.pooled else x.flatten(1)
        y: Tensor = getattr(self, self.parts[1])(x)
        return y


def filled(network: nn.Module) -> nn.Module:
    """With rule-made weights, and running statistics far enough from 0 and 1 to matter."""
    for name, tensor in network.state_dict(keep_vars=True).items():
        if not name.endswith("num_batches_tracked"):
            value = rule_made(name, tuple(tensor.shape))
            scale = 3.0 if tensor.ndim > 1 else 1.0
            tensor.data.copy_(1 + 10 * value.abs() if name.endswith("running_var") else scale * value)
    return network.eval()


NETWORKS = {"vgg16": vgg16, "mobilenet": lambda: mobilenet(own=True), "torchvision": lambda: mobilenet(own=False)}


@pytest.mark.parametrize("layout", NETWORKS)
@pytest.mark.parametrize("imagenet", [False, True])
def test_every_layout_gives_the_distribution_of_the_network_it_was_saved_from(layout: str, imagenet: bool) -> None:
    theirs = filled(NETWORKS[layout]())
    x = PICTURES.permute(0, 3, 1, 2).float() / 255
    if imagenet:
        x = (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
            :, None, None
        ]
    ours = build(theirs.state_dict(), imagenet)
    with torch.inference_mode():
        expected, found = theirs(x), ours.distribution(PICTURES)
        mean, spread = ours(PICTURES)
    assert expected.std(dim=1).min() > 1e-3  # not all the same
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    ratings = np.arange(1, 11)
    for row, shares in enumerate(expected.double().numpy()):
        assert float(mean[row]) == pytest.approx(shares @ ratings, abs=1e-5)
        assert float(spread[row]) == pytest.approx(np.sqrt(shares @ (ratings - shares @ ratings) ** 2), abs=1e-5)


def test_convolutions_trained_in_parallel_read_alike() -> None:
    state = filled(vgg16()).state_dict()
    parallel = {name.replace("features.", "features.module."): tensor for name, tensor in state.items()}
    with torch.inference_mode():
        assert torch.equal(build(parallel, False)(PICTURES)[0], build(state, False)(PICTURES)[0])


def test_preparation_follows_the_layout_unless_told(tmp_path: Path) -> None:
    torch.save(filled(vgg16()).state_dict(), tmp_path / "epoch-34.pkl")
    torch.save(filled(mobilenet(own=True)).state_dict(), tmp_path / "mobile.pth")
    crop, whole = view(middle=True), view(middle=False)
    assert isinstance(crop, CropsView)
    assert isinstance(whole, ResizeView)
    for file, preparation, expected in (
        ("epoch-34.pkl", "layout", crop),
        ("epoch-34.pkl", "squeezed", whole),
        ("mobile.pth", "layout", whole),
        ("mobile.pth", "middle", crop),
    ):
        source = load(tmp_path / file, preparation=preparation).stages[0].inputs["image"]
        assert isinstance(source, ImageInput)
        assert source.view == expected


@pytest.mark.parametrize("layout", NETWORKS)
def test_what_is_missing_unknown_or_wrongly_shaped_is_listed(layout: str) -> None:
    state = dict(NETWORKS[layout]().state_dict())
    head = "head.2" if layout == "mobilenet" else "classifier.1"
    state[f"{head}.weight"] = torch.zeros(5, 20)
    del state[f"{head}.bias"]
    with pytest.raises(CheckpointError) as caught:
        build(state | {"extra": torch.zeros(1)}, False)
    message = str(caught.value)
    group = head[:-1] + "*"
    assert f"missing: 1 parameters\n    {group}.bias" in message
    assert "unknown: 1 parameters\n    extra" in message
    assert f"{group}.weight is [5, 20], should be [10, " in message


@pytest.mark.slow
def test_a_bundle_is_served_with_both_dimensions(tmp_path: Path) -> None:
    checkpoint = tmp_path / "mobile.pth"
    torch.save(filled(mobilenet(own=True)).state_dict(), checkpoint)
    command = ["nima", "--checkpoint", str(checkpoint), "--out", str(tmp_path / "models"), "--count", "4"]
    assert main([*command, "--max-batch", "2"]) == 0
    pictures = drawn_pictures(6)[4:]
    network = build(read_state(checkpoint), imagenet=True)
    with torch.inference_mode():
        mean, spread = network(torch.from_numpy(np.stack([apply_view(picture, view(False)) for picture in pictures])))
    flags = ["--models", str(tmp_path / "models"), "--default", "nima", "--load", "nima"]
    with server_process(flags, tmp_path / "log") as server, Client(server.grpc) as client:
        results = [client.score(picture) for picture in pictures]
    np.testing.assert_allclose([result["aesthetics"].raw for result in results], mean, atol=1e-5)
    np.testing.assert_allclose([result["disagreement"].raw for result in results], spread, atol=1e-5)
    assert results[0]["aesthetics"].calibrated == pytest.approx((float(mean[0]) - 1) / 9, abs=1e-3)
