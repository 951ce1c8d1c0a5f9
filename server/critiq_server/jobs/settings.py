"""Where jobs are kept, how many there may be, and who is told of them."""

from __future__ import annotations

import base64
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator
from standardwebhooks import Webhook

from critiq_server.outbound.urls import UrlRules


class CallbackSettings(UrlRules):
    """Messages to callers' servers when a job ends, in the form of Standard Webhooks. Off until hosts are named."""

    model_config = ConfigDict(hide_input_in_errors=True)

    secrets: tuple[SecretStr, ...] = Field(
        (),
        description="Keys that messages are signed with, whsec_ and base64 of 24 to 64 bytes. Several, for the time in "
        "which receivers change over: each message carries a signature of each.",
    )
    secrets_file: Path | None = Field(None, description="A file with more of them, one a line; read at the start.")
    timeout_seconds: float = Field(15.0, gt=0, description="For one try, looking up the name included.")
    first_pause_seconds: float = Field(5.0, gt=0, description="Pause after the first failed try; doubles with each.")
    longest_pause_seconds: float = Field(3600.0, gt=0, description="Longest pause between tries.")
    give_up_seconds: float = Field(86_400.0, gt=0, description="How long after the job's end the last try may be.")
    link_base: str = Field(
        "", description="What stands before /v1/jobs/ID in messages, for instance https://critiq.example.com."
    )

    @field_validator("secrets")
    @classmethod
    def _secrets_sign(cls, secrets: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for position, secret in enumerate(secrets):
            if not is_secret(secret.get_secret_value()):
                raise ValueError(f"entry {position} is not whsec_ and base64 of 24 to 64 bytes")
        return secrets

    @model_validator(mode="after")
    def _messages_are_signed(self) -> CallbackSettings:
        if self.secrets_file is not None:
            for number, line in enumerate(_lines(self.secrets_file), start=1):
                if not is_secret(line):
                    raise ValueError(f"{self.secrets_file}, line {number} is not whsec_ and base64 of 24 to 64 bytes")
        if self.hosts and not self.keys():
            raise ValueError(
                "callbacks are signed: set secrets or secrets_file (make a key: whsec_$(openssl rand -base64 32))"
            )
        return self

    def keys(self) -> list[Webhook]:
        """What signs, in the order of the settings."""
        texts = [secret.get_secret_value() for secret in self.secrets]
        if self.secrets_file is not None:
            texts += _lines(self.secrets_file)
        return [Webhook(text) for text in texts]


class JobSettings(BaseModel):
    """Asynchronous jobs (docs/jobs.md). Off until a file is named."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path | None = Field(
        None, description="SQLite file of the jobs, on a local disk; made if it is not there. Empty: no jobs."
    )
    keep_seconds: float = Field(86_400.0, gt=0, description="How long a job and its results are kept after its end.")
    max_jobs: int = Field(1000, gt=0, description="Jobs queued or running; beyond it 429 / RESOURCE_EXHAUSTED.")
    max_bytes: int = Field(2**30, gt=0, description="Bytes of pictures and prompts that wait in them; beyond it 429.")
    max_kept: int = Field(
        10_000, gt=0, description="Jobs kept in all, ended ones too; beyond it those that ended longest ago go."
    )
    max_items: int = Field(1000, gt=0, description="Pictures of one job; may exceed limits.batch_items.")
    at_once: int = Field(2, gt=0, description="Jobs that are scored at the same time; others are queued.")
    portion: int = Field(16, gt=0, description="Pictures of one job under way at once.")
    tries: int = Field(5, gt=0, description="How often a picture is tried whose failure may pass.")
    callbacks: CallbackSettings = Field(default_factory=CallbackSettings, description="Who is told of a job's end.")


def is_secret(text: str) -> bool:
    """Whether a text is a key of Standard Webhooks."""
    if not text.startswith("whsec_"):
        return False
    try:
        key = base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except ValueError:
        return False
    return 24 <= len(key) <= 64


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
