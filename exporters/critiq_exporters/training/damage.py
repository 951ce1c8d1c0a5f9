"""The damage network: what was done to a picture, seen at native resolution, cell by cell.

Means over a picture tell blur from noise but lose what is local (a melted hand, garbled letters) and what only pixels
show (colour that runs over edges, grids). This network reads the pixels of the windows with convolutions of its own,
joins them with the maps of the frozen network, and pools both the usual and the worst of all cells.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from critiq_exporters.training.features import MAP_CHANNELS, Maps

HIDDEN = 64
NUMBERS = ("spoilt", "severity", "similarity", "closeness")
"""What the network states outright: log-odds that the picture is spoilt, how badly, how like its clean picture."""
DAMAGE = HIDDEN + len(NUMBERS)
_PIXEL_CHANNELS = (16, 32, 48, 96)
_CELL_CHANNELS = 96
_WHOLE_CHANNELS = 64
_POOLED = 2 * (_CELL_CHANNELS + _WHOLE_CHANNELS)
_DROPOUT = 0.2


class DamageNetwork(nn.Module):
    """Windows uint8 ``[batch, windows, side, side, 3]`` and ``Maps`` to float32 ``[batch, DAMAGE]``.

    The last entries are ``NUMBERS``. The side of a window is 16 times that of its map.
    """

    def __init__(self) -> None:
        super().__init__()
        first, second, third, fourth = _PIXEL_CHANNELS
        self.pixels = nn.Sequential(
            _convolution(3, first, 3, 2),
            _convolution(first, second, 3, 2),
            _convolution(second, second, 3),
            _convolution(second, third, 3, 2),
            _convolution(third, third, 3),
            _convolution(third, fourth, 3, 2),
        )
        self.window_maps = nn.Sequential(nn.BatchNorm2d(MAP_CHANNELS), _convolution(MAP_CHANNELS, _CELL_CHANNELS, 1))
        self.cells = nn.Sequential(
            _convolution(fourth + _CELL_CHANNELS, _CELL_CHANNELS, 1), _convolution(_CELL_CHANNELS, _CELL_CHANNELS, 3)
        )
        self.whole_maps = nn.Sequential(
            nn.BatchNorm2d(MAP_CHANNELS),
            _convolution(MAP_CHANNELS, _WHOLE_CHANNELS, 1),
            _convolution(_WHOLE_CHANNELS, _WHOLE_CHANNELS, 3),
        )
        self.dropout = nn.Dropout(_DROPOUT)
        self.hidden = nn.Linear(_POOLED, HIDDEN)
        self.numbers = nn.Linear(HIDDEN, len(NUMBERS))

    def forward(self, windows: Tensor, maps: Maps) -> Tensor:
        count = windows.shape[1]
        rgb = windows.flatten(0, 1).permute(0, 3, 1, 2).to(torch.float32) - 128.0  # whole numbers: exact in bfloat16
        together = torch.cat([self.pixels(rgb), self.window_maps(maps.windows.flatten(0, 1))], 1)
        cells = self.cells(together)
        mean, worst = cells.mean((2, 3)), cells.amax((2, 3))
        whole = self.whole_maps(maps.whole)
        pooled = torch.cat(
            [
                mean.reshape(-1, count, _CELL_CHANNELS).mean(1),
                worst.reshape(-1, count, _CELL_CHANNELS).amax(1),
                whole.mean((2, 3)),
                whole.amax((2, 3)),
            ],
            1,
        ).float()
        hidden = F.gelu(self.hidden(self.dropout(pooled)))
        return torch.cat([hidden, self.numbers(hidden)], 1)


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
