"""``critiq bulk`` from end to end, on this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet
import pytest

from critiq_server.bulk.cli import main
from critiq_server.bulk.errors import BulkError
from critiq_server.bulk.inputs import Columns
from critiq_server.bulk.local import CRASHES, _Crew
from critiq_server.bulk.run import Stop
from critiq_server.bulk.task import Model, Task, choose_model
from critiq_server.bulk.units import Unit
from tests.support.bulk import SHADES, rows_of, samples, score_in_bulk, write_folder, write_table, write_tar
from tests.support.bundles import write_bundle
from tests.support.servers import make_settings

ENTRIES = samples(30)
TOKENS = {"a cat": 4, "a red house": 5, "dog": 3}


WRITERS: dict[str, Callable[[Path], Path]] = {
    "folder": lambda root: write_folder(root / "in", ENTRIES),
    "parquet": lambda root: write_table(root / "in.parquet", ENTRIES),
    "tar": lambda root: write_tar(root / "in.tar", ENTRIES),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_row_is_scored_whatever_it_comes_in(tmp_path: Path, bundles: Path, kind: str) -> None:
    outcome = score_in_bulk(WRITERS[kind](tmp_path), tmp_path / "out", bundles)
    assert (outcome.finished, outcome.rows, outcome.failed) == (True, 30, {})
    rows = rows_of(tmp_path / "out")
    assert [row["row"] for row in rows] == list(range(30))
    for number, (row, entry) in enumerate(zip(rows, ENTRIES, strict=True)):
        brightness = number * SHADES % 256 / 255
        assert row["id"].removesuffix(".png") == entry.name
        assert row["status"] == "OK"
        assert row["brightness_raw"] == pytest.approx(brightness, abs=1e-6)
        assert row["wordiness_raw"] == pytest.approx(brightness * TOKENS[entry.prompt], abs=1e-5)
        assert row["brightness_calibrated"] == pytest.approx(brightness, abs=1e-4)
        assert row["brightness_percentile"] is not None
        assert (row["brightness_degraded"], row["prompt_truncated"]) == (False, False)
        assert (row["model"], row["model_version"]) == ("tiny", "1")
        assert (row["format"], row["width"], row["height"]) == ("PNG", 24, 24)
    manifest = json.loads((tmp_path / "out" / "_SUCCESS").read_text())
    assert (manifest["rows"], manifest["scored"], manifest["parts"]) == (30, 30, 4)
    again = score_in_bulk(tmp_path / ("in" if kind == "folder" else f"in.{kind}"), tmp_path / "out", bundles)
    assert (again.before, again.rows) == (True, 30)


def test_what_fails_is_a_row(tmp_path: Path, bundles: Path) -> None:
    images: list[bytes | str] = [entry.data for entry in ENTRIES[:8]]
    images[1] = b"not a picture"
    images[2] = images[2][:60]  # type: ignore[index]
    images[3] = b""
    images[5] = b"x" * 5000
    prompts = [entry.prompt for entry in ENTRIES[:8]]
    prompts[6] = ""
    source = write_table(tmp_path / "in.parquet", ENTRIES[:8], image=images, prompt=prompts)
    limits = {"limits": {"image": {"max_bytes": 4000}}}
    outcome = score_in_bulk(source, tmp_path / "out", bundles, sections=limits, dimensions=("wordiness",), checkpoint=3)
    assert outcome.failed == {"INVALID_ARGUMENT": 4, "TOO_LARGE": 1}
    rows = rows_of(tmp_path / "out")
    bad, large = "INVALID_ARGUMENT", "TOO_LARGE"
    assert [row["status"] for row in rows] == ["OK", bad, bad, bad, "OK", large, bad, "OK"]
    assert "5,000 bytes" in rows[5]["message"]
    assert "needs the prompt" in rows[6]["message"]
    assert rows[1]["wordiness_raw"] is None
    assert rows[4]["wordiness_raw"] is not None
    assert "brightness_raw" not in rows[0]
    manifest = json.loads((tmp_path / "out" / "_SUCCESS").read_text())
    assert manifest["failed"] == outcome.failed


def test_without_prompts_what_needs_none_is_judged(tmp_path: Path, bundles: Path) -> None:
    score_in_bulk(write_folder(tmp_path / "in", ENTRIES[:3], sidecars=False), tmp_path / "out", bundles)
    for row in rows_of(tmp_path / "out"):
        assert row["brightness_raw"] is not None
        assert row["wordiness_raw"] is row["wordiness_degraded"] is None


def test_addresses_go_by_the_servers_rules(tmp_path: Path, bundles: Path) -> None:
    source = write_table(tmp_path / "in.parquet", ENTRIES[:1], image=["https://example.org/a.png"])
    score_in_bulk(source, tmp_path / "out", bundles)
    (row,) = rows_of(tmp_path / "out")
    assert row["status"] == "PERMISSION_DENIED"
    assert "urls.hosts" in row["message"]


def test_another_model_or_input_is_refused_unless_started_anew(tmp_path: Path, bundles: Path) -> None:
    source = write_folder(tmp_path / "in", ENTRIES[:4])
    score_in_bulk(source, tmp_path / "out", bundles)
    other = tmp_path / "others"
    write_bundle(other, bias=0.5)
    with pytest.raises(BulkError, match="model_digest was"):
        score_in_bulk(source, tmp_path / "out", other)
    with pytest.raises(BulkError, match=r'dimensions was \["brightness", "wordiness"\]'):
        score_in_bulk(source, tmp_path / "out", bundles, dimensions=("brightness",))
    (source / "0003.png").unlink()
    with pytest.raises(BulkError, match=r"input_fingerprint was .*--restart"):
        score_in_bulk(source, tmp_path / "out", bundles)
    assert len(rows_of(tmp_path / "out")) == 4
    assert score_in_bulk(source, tmp_path / "out", other, restart=True).rows == 3
    assert rows_of(tmp_path / "out")[0]["brightness_raw"] == pytest.approx(0.5)


def test_workers_refuse_another_model_than_the_run_began_with(
    tmp_path: Path, bundles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(*asked: Any) -> Model:
        return replace(choose_model(*asked), digest="0" * 64)

    monkeypatch.setattr("critiq_server.bulk.run.choose_model", other)
    with pytest.raises(BulkError, match="here is not what the run began with"):
        score_in_bulk(write_folder(tmp_path / "in", ENTRIES[:1]), tmp_path / "out", bundles)


def test_one_file(tmp_path: Path, bundles: Path) -> None:
    source, output = write_folder(tmp_path / "in", ENTRIES), tmp_path / "scores.parquet"
    assert score_in_bulk(source, output, bundles).finished
    assert len(rows_of(output)) == 30
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "scores.parquet", "scores.parquet.json"]
    assert score_in_bulk(source, output, bundles).before
    with pytest.raises(BulkError, match="is of another run"):
        score_in_bulk(source, output, bundles, checkpoint=9)
    assert not score_in_bulk(source, output, bundles, checkpoint=9, restart=True).before
    (tmp_path / "scores.parquet.json").unlink()
    with pytest.raises(BulkError, match="is not of a bulk run"):
        score_in_bulk(source, output, bundles)


def test_places_that_cannot_be_written_to(tmp_path: Path, bundles: Path) -> None:
    source = write_folder(tmp_path / "in", ENTRIES[:1])
    with pytest.raises(BulkError, match="lies inside the input"):
        score_in_bulk(source, source / "out", bundles)
    with pytest.raises(BulkError, match="lies inside the input"):
        score_in_bulk(f"{source}/*.png", source / "scores.parquet", bundles)
    (tmp_path / "file").write_text("")
    with pytest.raises(BulkError, match="cannot write to"):
        score_in_bulk(source, tmp_path / "file" / "out", bundles)
    with pytest.raises(BulkError, match="in an object store the output is a folder"):
        score_in_bulk(source, "memory://bulk/out.parquet", bundles)


def test_output_into_an_object_store(tmp_path: Path, bundles: Path) -> None:
    """There is none here; fsspec's store in memory goes the same way through pyarrow."""
    source = write_table(tmp_path / "in.parquet", ENTRIES)
    store = fsspec.filesystem("memory")
    if store.exists("/bulk-out"):
        store.rm("/bulk-out", recursive=True)
    assert score_in_bulk(source, "memory://bulk-out", bundles).rows == 30
    assert score_in_bulk(source, "memory://bulk-out", bundles).before
    for name in ("part-000000.parquet", "part-000003.parquet", "_SUCCESS"):
        (tmp_path / name).write_bytes(store.cat(f"/bulk-out/{name}"))
    assert len(rows_of(tmp_path / "part-000003.parquet")) == 6
    store.rm("/bulk-out/part-000001.parquet")
    assert not score_in_bulk(source, "memory://bulk-out", bundles).before
    assert store.exists("/bulk-out/part-000001.parquet")


def test_the_command(
    tmp_path: Path, bundles: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("critiq_server.bulk.cli.configure", lambda settings: None)  # of the whole process
    source = write_folder(tmp_path / "in", ENTRIES[:4])
    (source / "bad.png").write_bytes(b"x")
    flags = ["--models", str(bundles), "--input", str(source), "--output", str(tmp_path / "out")]
    assert main([*flags, "--model", "tiny"]) == 1
    told = capsys.readouterr().err
    assert "critiq bulk: 4 rows scored, 1 failed (INVALID_ARGUMENT 1) in " in told
    for wrong, message in (
        (["--model", "gone"], "there is no model 'gone'; known: critiq-builtin, simulated, tiny"),
        (["--model", "tiny", "--version", "9"], "model 'tiny' has no version '9'; it has 1"),
        (["--model", "tiny", "--dimensions", "charm"], "has no dimension 'charm'; it has brightness, wordiness"),
        (["--model", "tiny", "--checkpoint", "0"], "--checkpoint"),
        (["--set", "limits.gone=1"], "limits.gone"),
        (["--set", "limits.in_flight=1"], "limits.batch_items"),
    ):
        assert main([*flags, *wrong]) == 2
        told = capsys.readouterr().err
        assert message in told
        assert told.startswith("critiq bulk: ")
        assert told.count("\n") == 1


def test_a_unit_that_kills_every_worker_ends_the_run(bundles: Path) -> None:
    settings = make_settings(bundles)
    task = Task(settings, choose_model(settings, "", "", ()), False, Columns(), "out")
    crew = _Crew(task, [], lambda done: None, Stop(lambda: None))
    poison = Unit(7, "in.tar", "tar", 100, 10)
    for number in range(CRASHES - 1):
        crew._take_back({7: poison, number: replace(poison, number=number)})
    with pytest.raises(BulkError, match=r"3 workers ended while they had rows 100 to 109 of in.tar"):
        crew._take_back({7: poison})


def test_what_workers_are_told_holds_settings_and_secrets(tmp_path: Path, bundles: Path) -> None:
    redis = {"features": {"redis": {"url": "redis://user:hunter2@host/0"}}}
    settings = make_settings(bundles, **redis)
    task = Task(settings, choose_model(settings, "", "", ("wordiness",)), True, Columns(id="uid"), "s3://out")
    told = Task.from_json(task.to_json())
    assert told.settings.features.redis.url is not None
    assert told.settings.features.redis.url.get_secret_value() == "redis://user:hunter2@host/0"
    assert (told.model, told.columns, told.output, told.explicit) == (task.model, task.columns, "s3://out", True)
    assert "hunter2" not in repr(task)


def test_an_alias_stands_for_its_version(bundles: Path) -> None:
    settings = make_settings(
        bundles, models={"aliases": {"default": "simulated:1", "both": ["tiny:1=50", "simulated:1"]}}
    )
    assert choose_model(settings, "", "", ()).name == "simulated"
    with pytest.raises(BulkError, match="the alias 'both' is shared by"):
        choose_model(settings, "both", "", ())
    assert choose_model(settings, "tiny", "", ()).version == "1"


def test_the_schema_is_the_same_for_every_part(tmp_path: Path, bundles: Path) -> None:
    source = write_table(tmp_path / "in.parquet", ENTRIES[:9], image=[b"x"] * 8 + [ENTRIES[8].data])
    score_in_bulk(source, tmp_path / "out", bundles)
    schemas = [pyarrow.parquet.read_schema(path) for path in sorted((tmp_path / "out").glob("part-*"))]
    assert len(schemas) == 2
    assert schemas[0] == schemas[1]
    assert os.path.exists(tmp_path / "out" / "_critiq" / "run.json")
