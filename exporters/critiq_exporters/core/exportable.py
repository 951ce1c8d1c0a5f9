"""What a family hands to the exporter: networks as stages, what they judge, and where they come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from critiq_exporters.core.lmm_features import FeatureSource
from critiq_server.bundles.manifest import Dimension, Licence, Stage, Tokenizer

Options = Mapping[str, str | float | int]
"""A family's own settings of one export, by name: enough to build the same networks from the same checkpoint again."""


@dataclass(frozen=True)
class Card:
    """What a user should know about a family before exporting it; the table of families is made of these."""

    family: str
    title: str
    judges: str
    raw_range: str
    direction: str
    scope: str
    paper: str
    code_licence: str
    weights: str
    """Where published weights come from, and their licence."""
    memory: str
    """Of the fp32 graph, with the number of parameters."""


@dataclass(frozen=True)
class Exportable:
    """One model, ready to be exported.

    ``modules`` holds a module in evaluation mode for each stage but those of LMMs: it takes the stage's inputs in the
    manifest's order, batch first (pictures as uint8, straight from the view), and returns the stage's outputs in their
    order.
    """

    card: Card
    description: str
    stages: tuple[Stage, ...]
    modules: Mapping[str, nn.Module]
    dimensions: tuple[Dimension, ...]
    licence: Licence
    source: str
    options: Options = field(default_factory=dict)
    tokenizers: Mapping[str, Tokenizer] = field(default_factory=dict)
    files: Mapping[str, Path | bytes] = field(default_factory=dict)
    """Further files of the bundle (the tokenizers'), or their content, by the name that they get."""
    features: FeatureSource | None = None
    """What the LMM stages give, for gates and golden records; drawn at random where left out."""


@dataclass(frozen=True)
class Family:
    """What ``critiq export`` knows of a family.

    ``load`` makes the model from a checkpoint (a file, or a folder where the published layout is one). Its other
    parameters have defaults and become options of the family's command: their types (``str``, ``int``, ``float``,
    ``bool``, a ``Literal``, ``Path | None``) say what is accepted, ``Annotated[..., Doc("...")]`` what they mean.
    It raises ``CheckpointError`` for a checkpoint that does not fit, ``ValueError`` for a bad option.
    """

    card: Card
    load: Callable[..., Exportable]
