"""Settings of watching for drift (docs/drift.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class DriftSettings(BaseModel):
    """Whether scores and pictures stay what they were (docs/drift.md)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = Field(True, description="Whether distributions are kept and compared.")
    labels: tuple[str, ...] = Field(
        (),
        max_length=32,
        description="Values of the header `critiq-label` (gRPC: metadata) that are kept apart; any other counts as "
        "'other'. Empty: the header is not read.",
    )
    against: Literal["baseline", "reference"] = Field(
        "baseline",
        description="What alarms go by. baseline: the caller's own earlier traffic. reference: the bundle's "
        "population, where a dimension has one.",
    )
    baseline_requests: int = Field(
        10_000, ge=100, description="Scores that become a baseline, of each model version and label."
    )
    check_seconds: float = Field(60.0, gt=0, description="How often the windows are looked at.")
    slot_seconds: float = Field(300.0, gt=0, description="The shortest window.")
    keep_days: float = Field(7.0, gt=0, description="The longest window.")
    alarms_per_year: float = Field(
        0.01, gt=0, le=100, description="False alarms of one series to expect in a year, at the most."
    )
    warnings_per_year: float = Field(
        1.0, gt=0, le=1000, description="False warnings of one series to expect in a year, at the most."
    )
    count_as_one: float = Field(
        1.0,
        ge=1,
        le=1000,
        description="Scores that count as one. Pictures of one prompt score alike, so they say less than as many of "
        "different prompts: with 4 of each prompt, correlated 0.5, it is 1 + 3 x 0.5 = 2.5.",
    )
    least_ks: float = Field(
        0.02,
        ge=0,
        lt=1,
        description="Differences that are smaller (Kolmogorov-Smirnov, 0..1) neither warn nor alarm, however certain; "
        "of embeddings five times as much, in standard deviations.",
    )
    least_count: int = Field(100, ge=10, description="Scores that a window needs to be looked at.")
    clear_seconds: float = Field(
        3600.0, ge=0, description="How long a warning or an alarm must have lacked its cause until it ends."
    )
    embedding_every: int = Field(
        16, ge=0, description="One of so many computed embeddings enters the comparison of embeddings. 0: none."
    )
    embedding_stage: str = Field(
        "", description="Stage whose vectors these are. Empty: the model's first that sees the picture and gives any."
    )
    max_series: int = Field(
        128,
        gt=0,
        description="Distributions kept at once (each up to 0.5 MiB); the longest unused go first.",
    )
    directory: Path | None = Field(
        None, description="Where baselines and windows are kept over a restart. Its own for each server."
    )
    allow_changes: bool = Field(False, description="Whether callers may set baselines (POST /v1/drift/baseline).")

    @model_validator(mode="after")
    def _rates_and_times_are_in_order(self) -> DriftSettings:
        if self.alarms_per_year > self.warnings_per_year:
            raise ValueError(
                f"alarms_per_year ({self.alarms_per_year:g}) may not exceed warnings_per_year "
                f"({self.warnings_per_year:g}): an alarm is the surer of the two"
            )
        if self.slot_seconds > self.keep_days * 86400:
            raise ValueError(f"slot_seconds ({self.slot_seconds:g}) may not exceed keep_days ({self.keep_days:g})")
        return self

    @field_validator("labels")
    @classmethod
    def _labels_are_short_names(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        for label in labels:
            if not 0 < len(label) <= 64 or not label.isprintable() or not label.isascii() or label == "other":
                raise ValueError(f"{label[:80]!r} is no label: 1 to 64 printable ASCII characters, not 'other'")
        return labels
