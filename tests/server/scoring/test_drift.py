"""The monitor: what it collects, how much it keeps, and that it survives a restart."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from structlog.testing import capture_logs

from critiq.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from critiq.types import ImageReport, Score
from critiq_server.bundles.manifest import Manifest
from critiq_server.scoring.drift import FORMATS, DriftMonitor
from critiq_server.scoring.drift_files import NAME
from critiq_server.scoring.drift_labels import caller_label
from critiq_server.scoring.drift_report import DriftJson
from critiq_server.scoring.drift_settings import DriftSettings
from tests.support.bundles import write_bundle

START = 1_800_000_000.0


class Clock:
    now = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    directory = write_bundle(tmp_path_factory.mktemp("bundles"))
    return Manifest.model_validate_json((directory / "manifest.json").read_bytes())


def monitor_of(clock: Clock | None = None, **settings: Any) -> DriftMonitor:
    return DriftMonitor(DriftSettings(**{"baseline_requests": 300, **settings}), clock or Clock())


def answer(monitor: DriftMonitor, manifest: Manifest, raw: float, **changes: Any) -> None:
    degraded = changes.pop("degraded", False)
    score = Score("brightness", raw, None, None, "higher_is_better", "absolute", "tiny", "1", False, degraded)
    report = ImageReport(changes.get("format", "PNG"), changes.get("width", 64), 64)
    monitor.observe(manifest, [score], report, changes.get("size", 1000), changes.get("prompt", 5))


def feed(monitor: DriftMonitor, manifest: Manifest, count: int, mean: float = 0.5, **changes: Any) -> None:
    for raw in np.random.default_rng(count).normal(mean, 0.1, count):
        answer(monitor, manifest, float(raw), **changes)
    monitor.flush()


def states(monitor: DriftMonitor) -> dict[str, str]:
    return {series.name: series.state for *_, series in monitor.all()}


def told(monitor: DriftMonitor) -> DriftJson:
    """What a monitor answers, as a caller reads it."""
    return DriftJson.model_validate_json(asyncio.run(monitor.report()).model_dump_json())


def test_scores_and_what_pictures_are_like_become_series(manifest: Manifest) -> None:
    monitor = monitor_of()
    feed(monitor, manifest, 300)
    feed(monitor, manifest, 300, format="JPEG", width=32, size=400)
    monitor.look_at_all()
    assert states(monitor) == {
        "brightness": "steady",
        "pixels": "alarm",
        "bytes": "alarm",
        "format": "alarm",
        "prompt_length": "steady",
    }
    answered = told(monitor)
    assert answered.state == "alarm"
    formats = next(entry for entry in answered.series if entry.name == "format").histogram
    assert formats is not None
    assert formats.categories == list(FORMATS)
    assert formats.shares["baseline"] == pytest.approx([0, 1, 0, 0, 0, 0])
    assert formats.shares["window"] == pytest.approx([1, 0, 0, 0, 0, 0])


def test_scores_of_a_fallback_head_and_pictures_without_a_prompt_are_left_out(manifest: Manifest) -> None:
    monitor = monitor_of()
    feed(monitor, manifest, 20, degraded=True, prompt=0)
    assert {series.name: series.count for *_, series in monitor.all()} == {"pixels": 20, "bytes": 20, "format": 20}


def test_labels_are_kept_apart_and_bounded(manifest: Manifest) -> None:
    monitor = monitor_of(labels=("web", "batch"))
    for label, count in (("web", 3), ("batch", 2), ("unknown", 4), ("", 5), (None, 6)):
        monitor.labels.set(label)
        feed(monitor, manifest, count)
    caller_label.set("")
    counts = {label: series.count for _, _, label, series in monitor.all(name="brightness")}
    assert counts == {"web": 3, "batch": 2, "other": 4, "": 11}


@pytest.mark.parametrize("wrong", [{"alarms_per_year": 2}, {"keep_days": 0.001}])
def test_settings_that_contradict_each_other_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="may not exceed"):
        DriftSettings(**wrong)


@pytest.mark.parametrize("label", ["", "x" * 65, "ä", "a\nb", "other"])
def test_labels_must_be_short_names(label: str) -> None:
    with pytest.raises(ValidationError, match="is no label"):
        DriftSettings(labels=(label,))


def test_the_longest_unused_traffic_goes_when_there_is_too_much(manifest: Manifest) -> None:
    monitor = monitor_of(labels=("a", "b", "c"), max_series=10)
    with capture_logs() as logs:
        for label in ("a", "b", "a", "c"):
            monitor.labels.set(label)
            feed(monitor, manifest, 1)
    caller_label.set("")
    assert {label for _, _, label, _ in monitor.all()} == {"a", "c"}
    assert [entry["label"] for entry in logs if entry["log_level"] == "warning"] == ["b"]


def test_a_change_of_state_is_logged_once(manifest: Manifest) -> None:
    monitor = monitor_of()
    feed(monitor, manifest, 300)
    with capture_logs() as logs:
        for _ in range(3):
            feed(monitor, manifest, 200, mean=0.7)
            monitor.look_at_all()
    assert [(entry["name"], entry["state"]) for entry in logs] == [("brightness", "alarm")]


def test_one_embedding_of_so_many_is_compared_by_its_mean(manifest: Manifest) -> None:
    monitor = monitor_of(embedding_every=4, baseline_requests=800)
    monitor.serve(manifest, {"other": (), "image_encoder": ("one", "two"), "later": ("three",)})
    rng = np.random.default_rng(0)

    def embed(count: int, mean: float) -> None:
        for _ in range(count):
            vector = {"one": rng.normal(mean, 1, 6).astype(np.float32), "two": rng.normal(0, 1, 10).astype(np.float32)}
            monitor.embed(manifest, "image_encoder", vector)
            monitor.embed(manifest, "later", {"three": np.ones(3, np.float32)})
        monitor.flush()
        monitor.look_at_all()

    embed(800, 0)
    embed(800, 0)
    ((_, _, _, series),) = monitor.all()
    assert (series.kind, series.name, series.count, series.state) == ("embedding", "image_encoder", 400, "steady")
    embed(800, 1.0)
    assert series.state == "alarm"
    assert series.latest is not None
    # From one mean to another, in 6 of 16 coordinates; half of the window is from before.
    assert series.latest.comparisons["baseline"].size == pytest.approx(0.5 * (6 / 16) ** 0.5, abs=0.06)


def test_all_is_there_again_after_a_restart(manifest: Manifest, tmp_path: Path) -> None:
    clock = Clock()
    monitor = monitor_of(clock, directory=tmp_path / "new", labels=("web",))
    monitor.serve(manifest, {"image_encoder": ("one",)})
    monitor.labels.set("web")
    feed(monitor, manifest, 400)
    feed(monitor, manifest, 200, mean=0.8)
    for _ in range(3200):
        monitor.embed(manifest, "image_encoder", {"one": np.ones(2, np.float32)})
    monitor.look_at_all()
    caller_label.set("")
    before = told(monitor)
    monitor.close()
    again = monitor_of(clock, directory=tmp_path / "new", labels=("web",))
    again.serve(manifest, {"image_encoder": ("one",)})
    assert told(again) == before
    assert states(again)["brightness"] == "alarm"
    assert [path.name for path in (tmp_path / "new").iterdir()] == [NAME]


def test_a_finished_baseline_is_saved_at_once(manifest: Manifest, tmp_path: Path) -> None:
    monitor = monitor_of(directory=tmp_path)
    feed(monitor, manifest, 200)
    assert not list(tmp_path.iterdir())
    feed(monitor, manifest, 200)
    again = monitor_of(directory=tmp_path)
    again.serve(manifest, {})
    assert states(again)["brightness"] == "steady"


@pytest.mark.parametrize("damage", ["cut", "flipped", "format", "text", "empty"])
def test_a_broken_file_is_set_aside_and_reported(manifest: Manifest, tmp_path: Path, damage: str) -> None:
    monitor = monitor_of(directory=tmp_path)
    feed(monitor, manifest, 400)
    monitor.close()
    file = tmp_path / NAME
    data = file.read_bytes()
    broken = {
        "cut": data[:-100],
        "flipped": data[:-100] + bytes([data[-100] ^ 1]) + data[-99:],
        "format": data.replace(b'"format":1', b'"format":9', 1),
        "text": b"no JSON",
        "empty": b"",
    }[damage]
    file.write_bytes(broken)
    with capture_logs() as logs:
        again = monitor_of(directory=tmp_path)
    again.serve(manifest, {})
    assert again.all() == []
    (entry,) = logs
    assert Path(entry["kept"]).read_bytes() == broken
    feed(again, manifest, 400)
    again.close()  # the next start finds a sound file
    with capture_logs() as logs:
        monitor_of(directory=tmp_path)
    assert logs == []


def test_a_directory_that_cannot_be_written_is_reported_not_raised(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monitor = monitor_of(directory=tmp_path / "file" / "below")
    with capture_logs() as logs:
        feed(monitor, manifest, 400)
        monitor.close()
    assert {entry["log_level"] for entry in logs} == {"warning"}


def test_baselines_are_set_where_the_settings_allow_it(manifest: Manifest) -> None:
    clock = Clock()
    with pytest.raises(PermissionDenied, match=r"drift\.allow_changes"):
        monitor_of().set_baseline("tiny", requests=100)
    monitor = monitor_of(clock, allow_changes=True)
    with pytest.raises(NotFound, match="no such series"):
        monitor.set_baseline("tiny", requests=100)
    feed(monitor, manifest, 300)
    for wrong in ({}, {"hours": 1, "requests": 100}, {"hours": 0}, {"hours": 169}, {"requests": 99}):
        with pytest.raises(InvalidArgument):
            monitor.set_baseline("tiny", **wrong)
    with pytest.raises(
        FailedPrecondition, match="the last 2 hours have 0 values since the last baseline, and 100 are needed"
    ):
        monitor.set_baseline("tiny", hours=2)  # the baseline took it all
    feed(monitor, manifest, 99, mean=0.9)
    with pytest.raises(FailedPrecondition, match="99 values"):
        monitor.set_baseline("tiny", hours=2)
    feed(monitor, manifest, 401, mean=0.9)
    monitor.look_at_all()
    assert states(monitor)["brightness"] == "alarm"
    answered = monitor.set_baseline("tiny", "1", "", "brightness", hours=2)
    assert [(entry.name, entry.state) for entry in answered.series] == [("brightness", "steady")]
    assert answered.series[0].baseline is not None
    assert answered.series[0].baseline.count == 500
    assert {entry.state for entry in monitor.set_baseline("tiny", requests=1000).series} == {"learning"}


def test_what_is_switched_off_keeps_nothing(manifest: Manifest) -> None:
    monitor = monitor_of(enabled=False)
    monitor.serve(manifest, {"image_encoder": ("one",)})
    feed(monitor, manifest, 300)
    monitor.embed(manifest, "image_encoder", {"one": np.ones(2, np.float32)})
    assert told(monitor).enabled is False
    assert monitor.all() == []
