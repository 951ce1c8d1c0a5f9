"""What the quality encoder measures on a picture: scene statistics, texture, layout and content.

Windows at native resolution carry detail (noise, blur, compression, texture); the whole picture at a small size carries
composition and content. Both go through one MobileNetV2; the windows leave it early, where features are still local.
The same levels, not averaged over the picture, are the maps that the damage network reads (``damage.py``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from critiq_exporters.training.alignment.mobilenet import MobileNetV2, load_mobilenet
from critiq_exporters.training.degradations import Pixels
from critiq_exporters.training.export import export_graph
from critiq_exporters.training.nss import FEATURES as STATISTICS
from critiq_exporters.training.nss import SceneStatistics
from critiq_server.bundles.manifest import CropsView, ResizeView
from critiq_server.images.views import apply_view

CROPS = CropsView(height=192, width=192, rows=2, columns=2, shorter_min=224, shorter_max=512)
"""Four windows of 192 pixels; pictures with a shorter side of 224 to 512 are seen at their own resolution."""
WHOLE = ResizeView(height=224, width=224)

_STEM_TAPS = {1: 16, 3: 24, 6: 32, 10: 64, 13: 96}
_TAIL_TAPS = {2: 160, 4: 1280}
_STEM_LENGTH, _TAIL_LENGTH = 14, 5

TEXTURE = 2 * sum(_STEM_TAPS.values())
LAYOUT = sum(channels for index, channels in _STEM_TAPS.items() if index > 1) + _TAIL_TAPS[2]
CONTENT = _TAIL_TAPS[4]
GROUPS = {"statistics": STATISTICS, "texture": TEXTURE, "layout": LAYOUT, "content": CONTENT}
"""Length of each group of features of the frozen network."""
_SPREAD_TAPS = (1, 3, 6)
"""Levels finer than a map's cells, of which the spread within a cell is kept too."""
MAP_CHANNELS = sum(_STEM_TAPS.values()) + sum(_STEM_TAPS[index] for index in _SPREAD_TAPS)
WINDOW_CELLS, WHOLE_CELLS = 12, 14
"""Cells of 16 pixels along each side of a window's map, and of the whole picture's."""
_CHUNK = 4


WINDOWS = "windows"
MAPS = ("window_maps", "whole_maps")
_OUTPUTS = (*GROUPS, *MAPS)


class Maps(NamedTuple):
    """What five levels of the network say cell by cell: mean, and for the finer levels spread."""

    windows: Tensor
    """``[batch, 4, MAP_CHANNELS, WINDOW_CELLS, WINDOW_CELLS]``."""
    whole: Tensor
    """``[batch, MAP_CHANNELS, WHOLE_CELLS, WHOLE_CELLS]``."""


class PictureFeatures(nn.Module):
    """Views to feature groups.

    ``windows``: uint8 ``[batch, 4, 192, 192, 3]``; ``whole``: uint8 ``[batch, 224, 224, 3]``. Returns float32
    ``[batch, GROUPS[name]]`` by name, the window features averaged over the windows; and the maps.
    """

    def __init__(self, network: MobileNetV2) -> None:
        super().__init__()
        self.stem = network.stem
        self.tail = nn.Sequential(*list(network.tail)[:_TAIL_LENGTH])
        self.statistics = SceneStatistics()

    def forward(self, windows: Tensor, whole: Tensor) -> tuple[dict[str, Tensor], Maps]:
        pixels = windows.flatten(0, 1).permute(0, 3, 1, 2).to(torch.float32)
        texture: list[Tensor] = []
        levels = _taps(self.stem, pixels / 127.5 - 1.0, _STEM_TAPS)
        for features in levels:
            mean = features.mean((2, 3))
            variance = (features * features).mean((2, 3)) - mean * mean
            texture += [mean, (variance.clamp_min(0.0) + 1e-5).sqrt()]
        picture = whole.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1.0
        early = _taps(self.stem, picture, _STEM_TAPS)
        late = _taps(self.tail, early[-1], _TAIL_TAPS)
        window_maps = _cells(levels, WINDOW_CELLS)
        maps = Maps(window_maps.reshape(-1, windows.shape[1], *window_maps.shape[1:]), _cells(early, WHOLE_CELLS))
        groups = {
            "statistics": _over_windows(self.statistics(pixels), windows.shape[1]),
            "texture": _over_windows(torch.cat(texture, 1), windows.shape[1]),
            "layout": torch.cat([features.mean((2, 3)) for features in [*early[1:], late[0]]], 1),
            "content": late[1].mean((2, 3)),
        }
        return groups, maps


def picture_features(weights: Path) -> PictureFeatures:
    """The features over the network in ``weights``; raises what ``load_mobilenet`` raises."""
    return PictureFeatures(load_mobilenet(weights)).eval()


class Extractor:
    """Pictures of any size to feature groups, through onnxruntime: on a CPU it takes a third of torch's time."""

    def __init__(self, graph: Path, threads: int = 1) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def __call__(self, pictures: list[Pixels]) -> dict[str, NDArray[Any]]:
        """By name: ``GROUPS`` float16 ``[pictures, length]``; ``WINDOWS``, the uint8 windows; and both ``MAPS``."""
        windows = np.stack([apply_view(item, CROPS) for item in pictures])
        whole = np.stack([apply_view(item, WHOLE) for item in pictures])
        parts: list[list[NDArray[np.float32]]] = []
        for start in range(0, len(pictures), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            parts.append(self._session.run(None, {"windows": windows[chunk], "whole": whole[chunk]}))
        found = {
            name: np.concatenate([part[index].astype(np.float16) for part in parts])
            for index, name in enumerate(_OUTPUTS)
        }
        return {WINDOWS: windows, **found}


def save_extractor(weights: Path, graph: Path) -> None:
    """Writes the graph that ``Extractor`` runs; under its name only once it was checked."""
    partial = graph.with_suffix(".partial.onnx")
    export_graph(_AsTuple(picture_features(weights)), example_views(2), ["windows", "whole"], list(_OUTPUTS), partial)
    partial.rename(graph)


def example_views(count: int) -> tuple[Tensor, Tensor]:
    """Random windows and whole pictures for ``count`` pictures, as tracing needs them."""
    generator = torch.Generator().manual_seed(0)
    windows = torch.randint(0, 256, (count, 4, CROPS.height, CROPS.width, 3), generator=generator, dtype=torch.uint8)
    whole = torch.randint(0, 256, (count, WHOLE.height, WHOLE.width, 3), generator=generator, dtype=torch.uint8)
    return windows, whole


class _AsTuple(nn.Module):
    def __init__(self, features: PictureFeatures) -> None:
        super().__init__()
        self.features = features

    def forward(self, windows: Tensor, whole: Tensor) -> tuple[Tensor, ...]:
        groups, maps = self.features(windows, whole)
        return (*(groups[name] for name in GROUPS), *maps)


def _taps(layers: nn.Module, x: Tensor, wanted: dict[int, int]) -> list[Tensor]:
    found: list[Tensor] = []
    for index, layer in enumerate(layers.children()):
        x = layer(x)
        if index in wanted:
            found.append(x)
    return found


def _cells(levels: list[Tensor], cells: int) -> Tensor:
    """Levels of ``_STEM_TAPS`` brought to one grid, ``[batch, MAP_CHANNELS, cells, cells]``."""
    means, spreads = [], []
    for index, features in zip(_STEM_TAPS, levels, strict=True):
        size = features.shape[-1] // cells
        mean = F.avg_pool2d(features, size) if size > 1 else features
        means.append(mean)
        if index in _SPREAD_TAPS:
            square = F.avg_pool2d(features * features, size)
            spreads.append((square - mean * mean).clamp_min(0.0).add(1e-5).sqrt())
    return torch.cat([*means, *spreads], 1)


def _over_windows(values: Tensor, count: int) -> Tensor:
    return values.reshape(-1, count, values.shape[1]).mean(1)
