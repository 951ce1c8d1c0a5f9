"""Which LMM a build asks, and what: from a bundle's own stages, or from a backbone and the names of questions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from critiq.cli.exits import UsageError
from critiq_exporters.features.catalogue import Asked
from critiq_server.bundles.lmm import Backbone, FloatFormat
from critiq_server.bundles.manifest import ImageInput
from critiq_server.bundles.model import read_manifest
from critiq_server.runtime.lmm.base import Extractor
from critiq_server.runtime.lmm.folder import check_revision, fingerprint, read_config
from critiq_server.runtime.lmm.instructions import QUESTIONS, BackboneName, ask, find_instructions, standard_backbone
from critiq_server.runtime.lmm.settings import RemoteSettings

NAMES: dict[str, str] = {
    "qwen3-vl": "Qwen/Qwen3-VL-8B-Instruct",
    "mplug-owl2": "MAGAer13/mplug-owl2-llama2-7b",
}
"""What the families' exporters call their LMM where they are told nothing else: a part of every feature's name."""

_MIN_PIXELS = 65_536


@dataclass(frozen=True, slots=True)
class Inquiry:
    """Questions to one LMM, and what answers them once it is opened, which may take minutes."""

    questions: tuple[Asked, ...]
    open: Callable[[], Extractor]


@dataclass(frozen=True, slots=True)
class Computing:
    """Where the LMM runs: in this process, on torch's ``device``, or behind vLLM's pooling endpoint."""

    folder: Path | None = None
    device: str = "auto"
    batch_tokens: int = 16_384
    remote: RemoteSettings | None = None


def of_bundle(bundle: Path, wanted: Sequence[str], computing: Computing) -> Inquiry:
    """The LMM stages of a bundle, all or those whose stage or instruction is ``wanted``.

    Raises:
        BrokenBundle: there is no valid manifest.
        UsageError: it asks no LMM, not the one ``wanted``, or several LMMs.
        LmmUnavailable: the folder does not hold the LMM that the bundle was made with.
    """
    asked: dict[str, Asked] = {}
    for stage in read_manifest(bundle).stages:
        image = stage.inputs.get("image")
        if stage.lmm is not None and isinstance(image, ImageInput):
            asked[stage.name] = Asked(stage.lmm, image.view)
    if not asked:
        raise UsageError(f"{bundle} has no stages that ask an LMM")
    unknown = [name for name in wanted if name not in asked and name not in _instructions(asked.values())]
    if unknown:
        raise UsageError(
            f"{bundle} does not ask {unknown[0]!r}; it asks {', '.join(_instructions(asked.values()))} "
            f"(stages {', '.join(asked)})"
        )
    chosen = [one for name, one in asked.items() if not wanted or name in wanted or one.lmm.instruction in wanted]
    if len({(one.lmm.asked(), one.view) for one in chosen}) > 1:
        raise UsageError(f"{bundle} asks several LMMs; build one after the other, with --questions")
    backbone = chosen[0].lmm.asked()
    if computing.folder is not None:
        check_revision(computing.folder, backbone.model, backbone.revision)
    return Inquiry(tuple(chosen), lambda: _open(backbone, computing))


def of_backbone(
    name: str,
    wanted: Sequence[str],
    computing: Computing,
    *,
    model: str = "",
    dtype: str = "",
    stored: str = "",
    max_pixels: int | None = None,
) -> Inquiry:
    """A backbone as its family reads it, asked the registered questions ``wanted`` (none: the family's).

    Args:
        name: of the backbone.
        wanted: ids of instructions.
        computing: where; the folder is needed, since its fingerprint is part of every feature's name.
        model: what the LMM is called in bundles; empty: as in ``NAMES``.
        dtype: to compute in; empty: the family's.
        stored: to keep in; empty: the family's.
        max_pixels: of Qwen3-VL: larger pictures are shrunk to it; ``None``: the family's.

    Raises:
        UsageError: a name is unknown, an option does not fit the backbone, or there is no folder.
        LmmUnavailable: the folder holds no LMM.
    """
    if name not in get_args(BackboneName):
        raise UsageError(f"no backbone is called {name!r}; known are {', '.join(get_args(BackboneName))}")
    for option, value in (("--dtype", dtype), ("--stored", stored)):
        if value and value not in get_args(FloatFormat):
            raise UsageError(f"{option} {value!r} is none of {', '.join(get_args(FloatFormat))}")
    if max_pixels is not None and name != "qwen3-vl":
        raise UsageError("--max-pixels goes with --backbone qwen3-vl; mPLUG-Owl2 sees every picture at 448 x 448")
    processor = {"min_pixels": min(_MIN_PIXELS, max_pixels), "max_pixels": max_pixels} if max_pixels else {}
    if computing.folder is None:
        raise UsageError(
            "--backbone needs --model, the LMM's folder, even if it is asked elsewhere: the fingerprint of its files "
            "names the features"
        )
    try:
        known = cast(BackboneName, name)
        instructions = find_instructions(wanted or QUESTIONS[known])
        backbone = standard_backbone(
            known,
            model or NAMES[known],
            fingerprint(computing.folder),
            _width(computing.folder),
            dtype=cast(FloatFormat, dtype) if dtype else None,
            stored=cast(FloatFormat, stored) if stored else None,
            **cast(Any, processor),
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    questions = tuple(Asked(ask(backbone, instruction)) for instruction in instructions)
    return Inquiry(questions, lambda: _open(backbone, computing))


def _instructions(asked: Iterable[Asked]) -> list[str]:
    return [one.lmm.instruction for one in asked]


def _width(folder: Path) -> int:
    """Of the language model's hidden states, from its configuration."""
    config = read_config(folder)
    text = config.get("text_config", config)
    width = text.get("hidden_size") if isinstance(text, dict) else None
    if not isinstance(width, int):
        raise UsageError(f"{folder / 'config.json'} does not say the language model's hidden_size")
    return width


def _open(backbone: Backbone, computing: Computing) -> Extractor:
    if computing.remote is not None:
        from critiq_server.runtime.remote import RemoteExtractor

        return RemoteExtractor(backbone, computing.remote)
    if computing.folder is None:
        raise UsageError("--model is missing: the folder of the LMM, or --remote with the address of one")
    from critiq_server.runtime.lmm.pool import open_extractor

    return open_extractor(computing.folder, backbone, computing.device, computing.batch_tokens)
