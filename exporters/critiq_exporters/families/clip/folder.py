"""A CLIP checkpoint on disk: which file holds the weights, what the settings beside it say, where the tokenizer is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from critiq_exporters.core.checkpoints import CheckpointError, read_state
from critiq_exporters.families.clip.checkpoint import Settings, build
from critiq_exporters.families.clip.network import Clip
from critiq_exporters.families.clip.tokenizer import TextTokenizer, clip_tokenizer

Activation = Literal["config", "quick_gelu", "gelu"]
Channels = tuple[float, float, float]

MEAN: Channels = (0.48145466, 0.4578275, 0.40821073)
STD: Channels = (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP's training pictures, each channel in 0..1."""

_HUGGING_FACE_FILES = ("model.safetensors", "pytorch_model.bin")
_OPEN_CLIP_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
_SHARDS = "model.safetensors.index.json"
_LEGACY_END = 2
"""In old settings files; transformers then reads a text's embedding at the largest id, which is the closing token's."""
_VISION_KEYS = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio", "patch_dropout"}
_TEXT_KEYS = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}
_NEUTRAL: tuple[object, ...] = (None, False, 0, 0.0, [], {})


@dataclass(frozen=True)
class Folder:
    """What a family builds its stages of."""

    network: Clip
    tokenizer: TextTokenizer
    mean: Channels
    std: Channels


def open_clip_folder(
    checkpoint: Path,
    *,
    tokenizer: Path | None = None,
    activation: Activation = "config",
    prefix: str = "",
    straighten: bool = False,
    positions: bool = True,
    preferred: tuple[str, ...] = (),
) -> Folder:
    """Reads a checkpoint in Hugging Face's or in OpenCLIP's layout.

    Args:
        checkpoint: the folder with its settings, or a bare file of weights.
        tokenizer: folder or file of the tokenizer; the folder of the checkpoint where left out.
        activation: of the transformers' perceptrons; ``config`` takes it from the settings, which a bare file lacks.
        prefix: put before every text.
        straighten: see :func:`clip_tokenizer`.
        positions: whether a residual picture tower uses its table of positions.
        preferred: names of the weights to take where a folder holds several and no settings.

    Raises:
        CheckpointError: something is missing, does not fit, or is of another architecture; the message says what.
    """
    settings, mean, std = _settings(checkpoint, activation)
    text = clip_tokenizer(tokenizer or _folder_of(checkpoint), prefix, straighten)
    if settings.end not in (None, text.end):
        raise CheckpointError(
            f"the settings in {checkpoint} say that token {settings.end} closes a text, the tokenizer closes it with "
            f"{text.end}: they do not belong together"
        )
    network = build(_state(checkpoint, preferred), settings, text.end, positions)
    if text.words > network.text.shape.words:
        raise CheckpointError(
            f"the tokenizer knows {text.words} tokens, the checkpoint's table has {network.text.shape.words}: "
            "they do not belong together"
        )
    return Folder(network, text, mean, std)


def _folder_of(checkpoint: Path) -> Path:
    return checkpoint if checkpoint.is_dir() else checkpoint.parent


def _state(checkpoint: Path, preferred: tuple[str, ...]) -> dict[str, Tensor]:
    if not checkpoint.is_dir():
        return read_state(checkpoint)
    files = _OPEN_CLIP_FILES if _is_open_clip(checkpoint) else _HUGGING_FACE_FILES
    if (checkpoint / _SHARDS).is_file():
        return _shards(checkpoint)
    for name in (*files, *preferred):
        if (checkpoint / name).is_file():
            return read_state(checkpoint / name)
    return read_state(checkpoint)


def _shards(folder: Path) -> dict[str, Tensor]:
    """Weights in several files, as the index beside them tells."""
    files = sorted(set(_json(folder / _SHARDS).get("weight_map", {}).values()))
    if lacking := [name for name in files if not (folder / name).is_file()]:
        raise CheckpointError(f"{folder / _SHARDS} names files that are not there: {', '.join(lacking)}")
    state: dict[str, Tensor] = {}
    for name in files:
        state |= read_state(folder / name)
    return state


def _is_open_clip(folder: Path) -> bool:
    """A folder can hold both layouts, then Hugging Face's is taken; or OpenCLIP's beside one of another library."""
    if not (folder / "open_clip_config.json").is_file():
        return False
    weights = any((folder / name).is_file() for name in (*_HUGGING_FACE_FILES, _SHARDS))
    other = folder / "config.json"
    return not (weights and other.is_file() and _json(other).get("model_type") == "clip")


def _settings(checkpoint: Path, activation: Activation) -> tuple[Settings, Channels, Channels]:
    if checkpoint.is_dir() and _is_open_clip(checkpoint):
        file = checkpoint / "open_clip_config.json"
        return _open_clip_settings(file, _json(file), activation)
    if checkpoint.is_dir() and (checkpoint / "config.json").is_file():
        file = checkpoint / "config.json"
        return _hugging_face_settings(file, _json(file), activation)
    if activation == "config" and checkpoint.exists():
        raise CheckpointError(
            f"{checkpoint} has no settings beside its weights (config.json, open_clip_config.json), and they alone do "
            "not tell the activation: pass the folder that has both, or --activation quick_gelu for OpenAI's weights "
            "and --activation gelu for LAION's"
        )
    return Settings(quick_gelu=activation == "quick_gelu"), MEAN, STD


def _hugging_face_settings(
    file: Path, config: Mapping[str, Any], activation: Activation
) -> tuple[Settings, Channels, Channels]:
    kind = config.get("model_type")
    if kind != "clip":
        raise CheckpointError(f"{file} describes a model of type {kind!r}; only 'clip' can be exported")
    # What is left out of the file has transformers' own defaults.
    vision, text = config.get("vision_config") or {}, config.get("text_config") or {}
    towers = {name: part.get("hidden_act", "quick_gelu") for name, part in (("vision", vision), ("text", text))}
    if unknown := {name: act for name, act in towers.items() if act not in ("quick_gelu", "gelu")}:
        raise CheckpointError(f"{file}: activation {unknown} is not supported; only quick_gelu and gelu are")
    if len(set(towers.values())) > 1:
        raise CheckpointError(f"{file}: the towers have different activations, {towers}; they must be alike")
    end = text.get("eos_token_id")
    settings = Settings(
        quick_gelu=_chosen(activation, towers["vision"] == "quick_gelu"),
        image_heads=vision.get("num_attention_heads", 12),
        text_heads=text.get("num_attention_heads", 8),
        image_eps=vision.get("layer_norm_eps", 1e-5),
        text_eps=text.get("layer_norm_eps", 1e-5),
        end=None if end == _LEGACY_END else end,
    )
    beside = file.parent / "preprocessor_config.json"
    prepared = _json(beside) if beside.is_file() else {}
    if prepared.get("resample", 3) != 3:
        raise CheckpointError(f"{beside}: resample {prepared['resample']} is not supported; only 3 (bicubic) is")
    return settings, _channels(beside, prepared, "image_mean", MEAN), _channels(beside, prepared, "image_std", STD)


def _open_clip_settings(
    file: Path, config: Mapping[str, Any], activation: Activation
) -> tuple[Settings, Channels, Channels]:
    model = config.get("model_cfg") or {}
    vision, text = model.get("vision_cfg") or {}, model.get("text_cfg") or {}
    parts = (("vision_cfg", vision, _VISION_KEYS), ("text_cfg", text, _TEXT_KEYS))
    unknown = [
        f"{part}.{key} = {value!r}"
        for part, given, known in parts
        for key, value in given.items()
        if key not in known and value not in _NEUTRAL
    ]
    if model.get("multimodal_cfg"):
        unknown.append("multimodal_cfg")
    if unknown or not vision or not text:
        raise CheckpointError(
            f"{file} describes an architecture that is not supported: {', '.join(unknown) or 'no towers'}; "
            "supported are OpenAI's transformers (ViT-B, L, H, g, bigG) and residual networks (RN50 and larger)"
        )
    resnet = isinstance(vision.get("layers"), list)
    settings = Settings(
        quick_gelu=_chosen(activation, bool(model.get("quick_gelu", False))),
        image_heads=None if resnet else vision["width"] // vision.get("head_width", 64),
        text_heads=text.get("heads", 8),
    )
    prepared = config.get("preprocess_cfg") or {}
    if prepared.get("interpolation", "bicubic") != "bicubic" or prepared.get("resize_mode", "shortest") != "shortest":
        raise CheckpointError(
            f"{file}: preprocess_cfg asks for {prepared}; only interpolation 'bicubic' and resize_mode 'shortest' "
            "are supported"
        )
    return settings, _channels(file, prepared, "mean", MEAN), _channels(file, prepared, "std", STD)


def _chosen(activation: Activation, quick: bool) -> bool:
    return quick if activation == "config" else activation == "quick_gelu"


def _channels(file: Path, given: Mapping[str, Any], key: str, usual: Channels) -> Channels:
    values = given.get(key) or usual
    if len(values) != 3 or not all(isinstance(value, int | float) for value in values):
        raise CheckpointError(f"{file}: {key} must be three numbers, it is {values!r}")
    return float(values[0]), float(values[1]), float(values[2])


def _json(file: Path) -> dict[str, Any]:
    try:
        held = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON: {error}") from error
    if not isinstance(held, dict):
        raise CheckpointError(f"{file} must hold a JSON object")
    return held
