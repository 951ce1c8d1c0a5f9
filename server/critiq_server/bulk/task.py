"""What the workers of a run are told once: by which model and with which settings they score, and where to."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr

from critiq_server.bulk.errors import BulkError
from critiq_server.bulk.inputs import Columns
from critiq_server.bundles.manifest import MANIFEST_FILE
from critiq_server.bundles.repository import BUILTIN, find_bundles
from critiq_server.settings import Settings, load_settings

_SECTIONS = ("models", "limits", "urls", "engine", "features", "runtime", "lmm", "drift", "log")


@dataclass(frozen=True, slots=True)
class Model:
    """The version that a run is scored by. ``digest`` is of its manifest, which has the digests of all its files."""

    name: str
    version: str
    digest: str
    dimensions: tuple[str, ...]
    """Those that are asked for, in the model's order."""


def choose_model(settings: Settings, name: str, version: str, dimensions: tuple[str, ...]) -> Model:
    """The version of a model that is found on disk: the newest where none is named; its dimensions, all by default.

    An alias of the settings stands for its version; those that were changed on a running server are not looked at.

    Raises:
        BulkError: there is no such model, version or dimension.
    """
    bundles = find_bundles([*settings.models.directories, BUILTIN])
    name, version = _without_alias(settings, name, version)
    versions = bundles.get(name)
    if versions is None:
        raise BulkError(f"there is no model {name!r}; known: {', '.join(bundles)}")
    version = version or next(reversed(versions))
    if version not in versions:
        raise BulkError(f"model {name!r} has no version {version!r}; it has {', '.join(versions)}")
    bundle = versions[version]
    known = [dimension.name for dimension in bundle.manifest.dimensions]
    for dimension in dimensions:
        if dimension not in known:
            raise BulkError(f"model {name!r} has no dimension {dimension!r}; it has {', '.join(known)}")
    digest = hashlib.sha256((bundle.directory / MANIFEST_FILE).read_bytes()).hexdigest()
    return Model(name, version, digest, tuple(entry for entry in known if not dimensions or entry in dimensions))


def _without_alias(settings: Settings, name: str, version: str) -> tuple[str, str]:
    aliases = settings.models.aliases
    name = name or ("default" if "default" in aliases else settings.models.default)
    if name not in aliases or version:
        return name, version
    targets = aliases[name].parsed()
    if len(targets) > 1:
        raise BulkError(
            f"the alias {name!r} is shared by {', '.join(map(str, targets))}, and a run is scored by one version; "
            "name it with --model and --version"
        )
    return targets[0].model, targets[0].version


@dataclass(frozen=True, slots=True)
class Task:
    """What workers of a run are told once.

    Attributes:
        explicit: whether the dimensions were named; else those that a row without a prompt cannot have stay empty.
    """

    settings: Settings
    model: Model
    explicit: bool
    columns: Columns
    output: str

    def to_json(self) -> str:
        """All of it, secrets too: only for workers' ears."""
        settings = {name: _revealed(getattr(self.settings, name)) for name in _SECTIONS}
        return json.dumps(
            {
                **{name: getattr(self, name) for name in ("explicit", "output")},
                "settings": settings,
                "model": asdict(self.model),
                "columns": asdict(self.columns),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Task:
        told = json.loads(text)
        model = Model(**{**told["model"], "dimensions": tuple(told["model"]["dimensions"])})
        columns = Columns(**told["columns"])
        return cls(load_settings(None, told["settings"]), model, told["explicit"], columns, told["output"])


def for_bulk(settings: Settings, model: Model, batch: int) -> Settings:
    """The settings of a worker: the run's model alone, a window of ``batch`` pictures, no watch for drift."""
    limits = settings.limits
    changes: dict[str, Any] = {
        "models": settings.models.model_copy(
            update={
                "default": model.name,
                "load": (f"{model.name}:{model.version}",),
                "aliases": {},
                "state_file": None,
            }
        ),
        "limits": limits.model_copy(update={"stream_window": batch, "in_flight": max(limits.in_flight, 2 * batch)}),
        "drift": settings.drift.model_copy(update={"enabled": False}),
    }
    return settings.model_copy(update=changes)


def _revealed(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return {name: _revealed(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, dict):
        return {name: _revealed(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_revealed(entry) for entry in value]
    if isinstance(value, Path):
        return str(value.absolute())  # workers may stand elsewhere
    return value
