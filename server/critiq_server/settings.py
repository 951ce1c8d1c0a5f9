"""Every setting of the server: defaults < YAML file < environment ``CRITIQ_*`` < command-line flags."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, YamlConfigSettingsSource

from critiq_server.features.settings import FeatureSettings
from critiq_server.images.limits import ImageLimits
from critiq_server.images.remote import UrlSettings
from critiq_server.jobs.settings import JobSettings
from critiq_server.page.settings import PageSettings
from critiq_server.routing.settings import AliasSettings, ShadowSettings
from critiq_server.runtime.lmm.settings import LmmSettings
from critiq_server.runtime.onnx import RuntimeSettings
from critiq_server.scoring.drift_settings import DriftSettings
from critiq_server.scoring.moderation_settings import ModerationSettings
from critiq_server.security.settings import ConnectionLimits, SecuritySettings
from critiq_server.strict_yaml import strict_load
from critiq_server.telemetry.settings import TelemetrySettings


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ServerSettings(_Section):
    """Where the server listens and how it stops."""

    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="Address to listen on. Anything but loopback lets others in: see security.keys_file.",
    )
    allowed_hosts: tuple[str, ...] = Field(
        (),
        description="Names by which HTTP callers may call: `name` or `*.name`; addresses always do. Empty: any, but on "
        "loopback without keys only localhost, as else websites could call it from a browser.",
    )
    rest_port: int = Field(8000, ge=0, le=65535, description="REST. 0: any free port.")
    grpc_port: int = Field(8001, ge=0, le=65535, description="gRPC. 0: any free port.")
    grpc_socket: Path | None = Field(
        None, description="Unix socket that answers gRPC too, for programs of the same user. Empty: none."
    )
    metrics_port: int = Field(8002, ge=0, le=65535, description="Prometheus metrics. 0: any free port.")
    workers: int = Field(
        1, ge=1, le=256, description="Serving processes, which share the ports (docs/workers.md). Not on Windows."
    )
    start_seconds: float = Field(
        600.0, gt=0, description="How long one of several processes may take until it is ready; then it is replaced."
    )
    drain_seconds: float = Field(30.0, ge=0, description="How long stopping waits for accepted requests.")


class ModelSettings(_Section):
    """Which models are served."""

    directories: tuple[Path, ...] = Field(
        (), description="Directories that hold bundles, searched before the built-in one."
    )
    load: tuple[str, ...] = Field(
        (), description="Models to load at start, NAME or NAME:VERSION. Empty: the newest version of every model found."
    )
    default: str = Field("critiq-builtin", description="Model of requests that name none.")
    allow_changes: bool = Field(False, description="Whether callers may load and unload models, and change aliases.")
    aliases: dict[str, AliasSettings] = Field(
        {},
        description="Names for versions: MODEL:VERSION, a list of MODEL:VERSION=PERCENT, or {targets, shadow}. The "
        "alias `default` answers requests that name no model (docs/upgrades.md).",
    )
    state_file: Path | None = Field(
        None, description="File in which aliases that were changed outlive the process. Empty: they do not."
    )
    shadow: ShadowSettings = Field(default_factory=ShadowSettings, description="Bounds of what shadows do.")


class LimitSettings(ConnectionLimits):
    """What bounds the work. Beyond each, the caller gets a definite answer."""

    in_flight: int = Field(
        256,
        gt=0,
        description="Pictures accepted and not yet answered; beyond it 429 / RESOURCE_EXHAUSTED with a retry hint.",
    )
    in_flight_bytes: int = Field(512 * 2**20, gt=0, description="Bytes of their encoded or raw data.")
    request_bytes: int = Field(64 * 2**20, gt=0, description="Bytes of one request; beyond it 413.")
    received_bytes: int = Field(
        2**30,
        gt=0,
        description="Bytes of REST bodies held at once, from when they come until they are answered; beyond it 429. A "
        "single one may exceed it.",
    )
    batch_items: int = Field(256, gt=0, description="Pictures in one batch, ranking or stream window.")
    stream_window: int = Field(64, gt=0, description="Items of one stream under way at once.")
    prompt_bytes: int = Field(8192, gt=0, description="UTF-8 bytes of a prompt.")
    timeout_seconds: float = Field(30.0, gt=0, description="Deadline of calls that set none.")
    max_timeout_seconds: float = Field(300.0, gt=0, description="Longest deadline that a caller may set.")
    grpc_metadata_bytes: int = Field(16 * 2**10, gt=0, description="Bytes of a gRPC call's metadata.")
    grpc_idle_seconds: float = Field(
        300.0, gt=0, description="How long a gRPC connection may have no call; clients connect again by themselves."
    )
    grpc_age_seconds: float = Field(
        0.0,
        ge=0,
        description="How long a gRPC connection may last before its client is asked to connect again, which spreads "
        "clients over servers; calls under way end in peace. 0: no limit.",
    )
    grpc_keepalive_seconds: float = Field(
        60.0,
        gt=0,
        description="Silence after which a gRPC client is asked whether it is there; after 20 more it is not.",
    )
    image: ImageLimits = Field(default_factory=ImageLimits, description="Limits of one picture.")

    @model_validator(mode="after")
    def _a_batch_fits(self) -> LimitSettings:
        if self.batch_items > self.in_flight:
            raise ValueError(
                f"limits.batch_items ({self.batch_items}) may not exceed limits.in_flight ({self.in_flight})"
            )
        return self


class EngineSettings(_Section):
    """How pictures become batches."""

    max_delay_ms: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="How long an incomplete batch may wait for company although the runtime is idle.",
    )
    max_batch: int = Field(
        0,
        ge=0,
        description="Upper limit on every stage's batch. 0: what the bundle says, and on a CPU what its cache holds.",
    )
    store_mb: int = Field(256, ge=0, description="Memory for stored stage outputs, in MiB. 0: store nothing.")
    background: tuple[int, int, int] = Field(
        (255, 255, 255), description="Colour (red, green, blue, 0..255) behind transparent pictures."
    )


class RewardSettings(_Section):
    """What one reward's name stands for. Rewards are larger for better pictures on every scale."""

    model: str = Field("", description="Default: the server's default model.")
    version: str = Field("", description="Default: the newest loaded version.")
    dimension: str = Field(description="Dimension of that model.")
    scale: Literal["calibrated", "percentile", "raw"] = Field(
        "calibrated",
        description="calibrated: 0..1; percentile: 0..100; raw: the model's own, negated where lower is better.",
    )


class FaceSettings(_Section):
    """A face for clients that exist. Off unless it is enabled or has listeners."""

    enabled: bool = Field(False, description="Whether the REST port answers under /compat/.")
    listeners: tuple[str, ...] = Field((), description="Further ports, each with the face at its root.")


class CosmosSettings(FaceSettings):
    """Jobs that are put in and fetched later."""

    token: SecretStr = Field(SecretStr(""), description="Bearer token that callers must send. Empty: none.")
    jobs: int = Field(1024, gt=0, description="Jobs whose outcome is kept; beyond it the oldest finished one goes.")
    keep_seconds: float = Field(600.0, gt=0, description="How long an outcome is kept.")


class CompatSettings(_Section):
    """Faces that existing trainers' clients call (docs/trainers.md). All are off by default."""

    host: str = Field("127.0.0.1", description="Address of the listeners.")
    rewards: dict[str, RewardSettings] = Field(
        {}, description="Rewards by name. A name that is not here: that dimension of the default model, calibrated."
    )
    timeout_seconds: float = Field(
        100.0, gt=0, description="Deadline of their calls, whose clients give up at 60..300."
    )
    pickle: FaceSettings = Field(
        default_factory=FaceSettings, description="/compat/pickle/REWARD; listeners PORT=REWARD. Plain data only."
    )
    flow_factory: FaceSettings = Field(
        default_factory=FaceSettings, description="/compat/flow_factory/REWARD; listeners PORT=REWARD."
    )
    unirl: FaceSettings = Field(default_factory=FaceSettings, description="/compat/unirl; listeners PORT.")
    cosmos: CosmosSettings = Field(default_factory=CosmosSettings, description="/compat/cosmos; listeners PORT.")

    @field_validator("rewards", mode="before")
    @classmethod
    def _a_dimension_alone_will_do(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: {"dimension": entry} if isinstance(entry, str) else entry for name, entry in value.items()}

    @model_validator(mode="after")
    def _listeners_have_their_form(self) -> CompatSettings:
        for name, form in (("pickle", _PORT_NAME), ("flow_factory", _PORT_NAME), ("unirl", _PORT), ("cosmos", _PORT)):
            for listener in getattr(self, name).listeners:
                if not re.fullmatch(form, listener) or int(listener.partition("=")[0]) > 65535:
                    due = "PORT=REWARD" if form == _PORT_NAME else "PORT"
                    raise ValueError(f"compat.{name}.listeners: {listener!r} is not of the form {due}")
        return self


_PORT = "[0-9]{1,5}"
_PORT_NAME = r"[0-9]{1,5}=[^/\s]+"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class LogSettings(_Section):
    """What is logged. Prompts and pixels never are."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severity.")
    format: Literal["console", "json"] = Field("console", description="For people or for machines.")
    access: bool = Field(False, description="A line for every request.")


class Settings(BaseSettings):
    """All settings. In the environment, two underscores separate levels: ``CRITIQ_SERVER__REST_PORT=9000``."""

    model_config = SettingsConfigDict(
        env_prefix="CRITIQ_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    server: ServerSettings = Field(default_factory=ServerSettings)
    models: ModelSettings = Field(default_factory=ModelSettings)
    limits: LimitSettings = Field(default_factory=LimitSettings)
    urls: UrlSettings = Field(default_factory=UrlSettings)
    jobs: JobSettings = Field(default_factory=JobSettings)
    engine: EngineSettings = Field(default_factory=EngineSettings)
    features: FeatureSettings = Field(default_factory=FeatureSettings)
    runtime: RuntimeSettings = Field(default_factory=RuntimeSettings)
    lmm: LmmSettings = Field(default_factory=LmmSettings)
    compat: CompatSettings = Field(default_factory=CompatSettings)
    moderation: ModerationSettings = Field(default_factory=ModerationSettings)
    page: PageSettings = Field(default_factory=PageSettings)
    drift: DriftSettings = Field(default_factory=DriftSettings)
    log: LogSettings = Field(default_factory=LogSettings)
    security: SecuritySettings = Field(default_factory=SecuritySettings)
    telemetry: TelemetrySettings = Field(default_factory=TelemetrySettings)

    @model_validator(mode="after")
    def _one_process_for_what_one_process_keeps(self) -> Settings:
        cosmos = self.compat.cosmos
        if self.server.workers > 1 and (cosmos.enabled or cosmos.listeners):
            raise ValueError(
                f"compat.cosmos keeps its jobs in one process, and server.workers is {self.server.workers}; set it "
                "to 1, or run that face in a server of its own"
            )
        return self

    @model_validator(mode="after")
    def _pickles_stay_on_this_machine(self) -> Settings:
        """Nobody should be surprised to find that strangers may send pickles."""
        beyond = self.server.host not in LOOPBACK and self.compat.host in LOOPBACK
        if self.compat.pickle.enabled and beyond:
            raise ValueError(
                f"compat.pickle.enabled would take pickles from beyond this machine, as server.host is "
                f"{self.server.host}; set compat.host to that address too if you want it, or use "
                "compat.pickle.listeners"
            )
        return self

    def written_to(self) -> dict[str, Path]:
        """The directories that the server writes to, by use."""
        features = None if self.features.disk.read_only else self.features.disk.path
        jobs = None if self.jobs.path is None else self.jobs.path.absolute().parent
        used = {"features": features, "jobs": jobs, "drift": self.drift.directory}
        return {use: directory for use, directory in used.items() if directory is not None}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, YamlConfigSettingsSource(settings_cls, _config_file)


_config_file: Path | None = None


def load_settings(config: Path | None = None, flags: dict[str, Any] | None = None) -> Settings:
    """The settings from all sources.

    Args:
        config: YAML file; must exist if given.
        flags: nested values that win over everything.

    Raises:
        OSError: there is no such file, or it cannot be read.
        yaml.YAMLError: it is no YAML, or says something twice.
        pydantic.ValidationError: a value is wrong.
        ValueError: the file is no mapping, or a variable of the environment names no section.
    """
    global _config_file  # noqa: PLW0603 - pydantic-settings takes its sources from the class
    if config is not None and not config.is_file():
        raise FileNotFoundError(f"there is no configuration file {config}")
    if config is not None:
        _check_file(config)
    _check_environment()
    _config_file = config
    return Settings(**(flags or {}))


def _check_file(config: Path) -> None:
    """A section that stands there twice would be ignored in part: the one that says who may call, for instance."""
    try:
        found = strict_load(config.read_bytes())
    except (UnicodeDecodeError, yaml.reader.ReaderError) as error:
        raise ValueError(f"{config} is no YAML text in UTF-8 ({type(error).__name__})") from error
    if not isinstance(found or {}, dict):
        raise ValueError(f"{config} holds no settings; it needs sections such as server: and limits:")


def _check_environment() -> None:
    """A misspelt section would be ignored: pydantic-settings looks only for the names that it knows."""
    for name in os.environ:
        section, _, setting = name.upper().removeprefix("CRITIQ_").partition("__")
        if name.upper().startswith("CRITIQ_") and setting and section.lower() not in Settings.model_fields:
            known = ", ".join(Settings.model_fields)
            raise ValueError(f"the environment variable {name} names no section of the settings; known: {known}")


def print_settings(settings: Settings) -> str:
    """The settings as YAML, secrets hidden."""
    return yaml.safe_dump(_plain(settings), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, SecretStr):
        return "**********" if value.get_secret_value() else ""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
