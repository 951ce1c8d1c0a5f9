"""Writes the built-in bundle: graphs, golden file, manifest; and scores pictures with a bundle as the server does."""

from __future__ import annotations

import datetime
import hashlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from tokenizers import Tokenizer as TokenizerFile

from critiq_exporters.training.degradations import Pixels
from critiq_exporters.training.export import strip_traces
from critiq_exporters.training.golden import PROMPTS, drawings
from critiq_server.bundles.manifest import (
    GOLDEN_FILE,
    MANIFEST_FILE,
    Dimension,
    ImageInput,
    Licence,
    Manifest,
    PromptInput,
    Provenance,
    Stage,
    StageInput,
    Tokenizer,
)
from critiq_server.images.views import apply_view

NAME, FAMILY = "critiq-builtin", "eliq-compact"


@dataclass
class Parts:
    """What one side of the model (visual quality, alignment) adds to the manifest."""

    stages: list[Stage]
    dimensions: list[Dimension]
    tokenizers: dict[str, Tokenizer] = field(default_factory=dict)


class BundleScorer:
    """Scores pictures through onnxruntime, one at a time, straight from the files of a bundle.

    It follows the manifest alone: what it prints is what a server would answer. Raises ``FileNotFoundError`` where the
    directory holds no bundle.
    """

    def __init__(self, folder: Path, manifest: Manifest | None = None, threads: int = 1) -> None:
        self.manifest = manifest or Manifest.model_validate_json((folder / MANIFEST_FILE).read_text("utf-8"))
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._sessions = {
            stage.name: ort.InferenceSession(folder / stage.graph, options, providers=["CPUExecutionProvider"])
            for stage in self.manifest.stages
            if stage.graph is not None
        }
        self._tokenizers = {
            name: TokenizerFile.from_file(str(folder / item.file)) for name, item in self.manifest.tokenizers.items()
        }

    def score(self, pixels: Pixels, prompt: str | None, dimensions: list[str] | None = None) -> dict[str, float]:
        """Raw values by dimension; those that need a prompt are left out where it is ``None``."""
        wanted = [
            item
            for item in self.manifest.dimensions
            if (dimensions is None or item.name in dimensions) and (prompt is not None or not item.needs_prompt)
        ]
        done: dict[str, dict[str, NDArray[Any]]] = {}
        return {
            item.name: float(self._stage(item.stage, pixels, prompt, done)[item.output].ravel()[0]) for item in wanted
        }

    def _stage(
        self, name: str, pixels: Pixels, prompt: str | None, done: dict[str, dict[str, NDArray[Any]]]
    ) -> dict[str, NDArray[Any]]:
        if name not in done:
            stage = self.manifest.stage(name)
            arrays: dict[str, NDArray[Any]] = {}
            for tensor, source in stage.inputs.items():
                if isinstance(source, ImageInput):
                    arrays[tensor] = apply_view(pixels, source.view)[None]
                elif isinstance(source, PromptInput):
                    arrays[tensor] = self._tokens(source, prompt or "")
                elif isinstance(source, StageInput):
                    arrays[tensor] = self._stage(source.stage, pixels, prompt, done)[source.output]
            values = self._sessions[name].run(stage.outputs, arrays)
            done[name] = dict(zip(stage.outputs, values, strict=True))
        return done[name]

    def _tokens(self, source: PromptInput, prompt: str) -> NDArray[np.int64]:
        item = self.manifest.tokenizers[source.tokenizer]
        tokenizer = self._tokenizers[source.tokenizer]
        tokenizer.no_padding()
        tokenizer.enable_truncation(item.max_length)
        ids = tokenizer.encode(prompt).ids
        length = min(-(-len(ids) // item.pad_to_multiple) * item.pad_to_multiple, item.max_length)
        padding = length - len(ids)
        values = ids + [item.pad_id] * padding if source.field == "ids" else [1] * len(ids) + [0] * padding
        return np.array([values], dtype=np.int64)


def copied_parts(bundle: Path, staging: Path, dimension: str) -> Parts:
    """Copies the stages behind ``dimension`` of the bundle at ``bundle``, with their tokenizers, into ``staging``.

    Raises ``FileNotFoundError`` where there is no bundle, ``ValueError`` where it has no such dimension.
    """
    manifest = Manifest.model_validate_json((bundle / MANIFEST_FILE).read_text("utf-8"))
    dimensions = [item for item in manifest.dimensions if item.name == dimension]
    if not dimensions:
        known = ", ".join(item.name for item in manifest.dimensions)
        raise ValueError(f"{bundle} has no dimension {dimension!r} to take over; it has {known}")
    wanted = {dimensions[0].stage}
    for stage in reversed(manifest.stages):  # a stage comes after those that it reads
        if stage.name in wanted:
            wanted |= {item.stage for item in stage.inputs.values() if isinstance(item, StageInput)}
    stages = [stage for stage in manifest.stages if stage.name in wanted]
    prompts = [item for stage in stages for item in stage.inputs.values() if isinstance(item, PromptInput)]
    tokenizers = {item.tokenizer: manifest.tokenizers[item.tokenizer] for item in prompts}
    for name in [*(stage.graph for stage in stages if stage.graph), *(item.file for item in tokenizers.values())]:
        shutil.copyfile(bundle / name, staging / name)
    return Parts(stages, dimensions, tokenizers)


def write_bundle(
    folder: Path, staging: Path, parts: list[Parts], *, version: str, command: str, notes: str
) -> Manifest:
    """Completes ``staging``, which holds the graphs that ``parts`` name, and moves it to ``folder``.

    What was at ``folder`` is replaced, at the end, by one rename.
    """
    for graph in sorted(staging.glob("*.onnx")):
        strip_traces(graph)
    draft = _manifest(staging, parts, version, command, notes)
    write_golden(staging, BundleScorer(staging, draft))
    manifest = _manifest(staging, parts, version, command, notes)
    (staging / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=1) + "\n", "utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging.rename(folder)
    return manifest


def write_golden(folder: Path, scorer: BundleScorer) -> None:
    """Records drawn pictures, prompts and the raw value of every dimension in ``golden.npz``."""
    pictures = drawings()
    names = [item.name for item in scorer.manifest.dimensions]
    rows = [scorer.score(picture, prompt) for picture, prompt in zip(pictures, PROMPTS, strict=True)]
    arrays: dict[str, NDArray[Any]] = {f"image_{index}": picture for index, picture in enumerate(pictures)}
    np.savez_compressed(
        folder / GOLDEN_FILE,
        **arrays,  # type: ignore[arg-type]
        prompts=np.array(PROMPTS),
        dimensions=np.array(names),
        expected=np.array([[row[name] for name in names] for row in rows], dtype=np.float64),
    )


def _manifest(folder: Path, parts: list[Parts], version: str, command: str, notes: str) -> Manifest:
    files = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST_FILE
    }
    return Manifest(
        name=NAME,
        version=version,
        family=FAMILY,
        title="critiq built-in model",
        description="Visual quality and prompt alignment of AI-generated pictures, trained without human labels.",
        stages=[stage for part in parts for stage in part.stages],
        tokenizers={name: item for part in parts for name, item in part.tokenizers.items()},
        dimensions=[dimension for part in parts for dimension in part.dimensions],
        licence=Licence(
            code="Apache-2.0",
            weights="Apache-2.0",
            data="see docs/models/builtin.md: each set under its own licence, none of it in the bundle",
        ),
        provenance=Provenance(
            created=datetime.datetime.now(datetime.UTC).date().isoformat(),
            command=command,
            source="starts from MobileNetV2 (ImageNet, Apache-2.0); pictures as listed in docs/models/builtin.md",
            notes=notes,
        ),
        files=files,
    )
