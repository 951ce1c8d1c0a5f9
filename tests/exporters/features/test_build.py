"""Building a store: each picture once, whatever interrupts it, and with the keys that a server looks up."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from PIL import Image

from critiq_exporters.features import build as build_module
from critiq_exporters.features.build import Progress
from critiq_exporters.features.catalogue import entries, find_entry, questions
from critiq_exporters.features.contents import Merged, merge, verify
from critiq_exporters.features.progress import progress_line
from critiq_exporters.features.sources import Shard
from critiq_server.features.disk import DiskStore
from critiq_server.features.keys import pixels_key, prompt_key
from critiq_server.images.source import EncodedImage
from critiq_server.runtime.lmm.base import LmmUnreachable, feature_key
from tests.exporters.features.drawn_extractor import (
    AESTHETIC,
    ALIGNMENT,
    TECHNICAL,
    DrawnExtractor,
    asked,
    build_store,
)

PICTURES, TWINS = 60, 2
"""Of the fixture, without the broken file."""


def content(path: Path) -> str:
    with DiskStore(path, read_only=True) as store:
        return store.content_digest()


@pytest.fixture(scope="module")
def built(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("built") / "store"
    progress = build_store(pictures, path, DrawnExtractor())
    assert progress.computed == PICTURES - TWINS
    assert progress.stored == TWINS
    return path


def test_every_picture_has_its_features_under_the_keys_of_the_server(pictures: Path, built: Path) -> None:
    with DiskStore(built, read_only=True) as store:
        assert store.status().entries == 2 * (PICTURES - TWINS) + PICTURES - TWINS
        found = list(entries(store))
        assert len(found) == PICTURES
        entry = find_entry(store, "1/005.png")
        assert entry is not None
        assert entry.prompt == "a picture of 5"
        picture = pixels_key(np.asarray(Image.open(pictures / "1" / "005.png")))
        for one in asked():
            key = feature_key(one.lmm, picture, prompt_key("a picture of 5"))
            assert entry.features[one.digest] == key.hex()
            assert store.get_many([key])[key]["feature"].shape == (16,)
        assert questions(store) == {one.digest: one for one in asked()}


def test_what_fails_is_told_and_stops_nothing(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for level in (10, 20, 30):
        Image.new("RGB", (64, 64), (level, level, level)).save(tmp_path / "in" / f"{level}.png")
    (tmp_path / "in" / "text.jpg").write_bytes(b"no picture")
    progress = build_store(tmp_path / "in", tmp_path / "store", DrawnExtractor(failing=[20]))
    assert progress.computed == 2
    told = {failure.name: failure.error for failure in progress.failures}
    assert told.keys() == {"20.png", "text.jpg"}
    assert "out of memory" in told["20.png"]
    # What failed is tried again next time, and only that.
    extractor = DrawnExtractor()
    progress = build_store(tmp_path / "in", tmp_path / "store", extractor)
    assert (progress.computed, progress.stored, len(progress.failures)) == (1, 2, 1)
    assert [count for count, _ in extractor.calls] == [1]


def test_a_fault_of_a_decoder_is_that_pictures_alone(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = build_module.decode

    def fail(source: EncodedImage, *arguments: Any) -> Any:
        if source.data == (pictures / "1" / "005.png").read_bytes():
            raise ZeroDivisionError("a bug")
        return decode(source, *arguments)

    monkeypatch.setattr(build_module, "decode", fail)
    progress = build_store(pictures, tmp_path / "store", DrawnExtractor())
    assert {failure.name: failure.error for failure in progress.failures}["1/005.png"] == "ZeroDivisionError: a bug"
    assert progress.computed == PICTURES - TWINS - 1


def test_the_remaining_time_follows_from_the_rate() -> None:
    progress = Progress(1000, stored=500, computed=100, started=0.0)
    assert progress_line(progress, 50.0) == "600 of 1,000 pictures, 2.00 computed a second, 3 min 20 s left"
    assert progress_line(Progress(None, computed=9, started=0.0), 3.0) == "9 pictures, 3.00 computed a second"


def test_pictures_with_as_many_tokens_share_batches(pictures: Path, tmp_path: Path) -> None:
    extractor = DrawnExtractor()
    build_store(pictures, tmp_path / "store", extractor)
    sizes = [count for count, _ in extractor.calls]
    assert max(sizes) == 4
    assert len(sizes) <= 24  # 20 or so in each of three buckets, in two windows


def test_a_second_build_computes_nothing(pictures: Path, built: Path) -> None:
    before = content(built)
    extractor = DrawnExtractor()
    progress = build_store(pictures, built, extractor)
    assert not extractor.calls
    assert (progress.computed, progress.stored, len(progress.failures)) == (0, PICTURES, 1)
    assert content(built) == before


def test_a_further_question_is_asked_alone(pictures: Path, tmp_path: Path, built: Path) -> None:
    build_store(pictures, tmp_path / "store", DrawnExtractor(), questions=[TECHNICAL, ALIGNMENT])
    extractor = DrawnExtractor()
    build_store(pictures, tmp_path / "store", extractor, questions=[TECHNICAL, ALIGNMENT, AESTHETIC])
    assert {instructions for _, instructions in extractor.calls} == {(AESTHETIC,)}
    assert content(tmp_path / "store") == content(built)


def test_a_changed_file_or_prompt_is_computed_anew(pictures: Path, built: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures, tmp_path / "in")
    shutil.copytree(built, tmp_path / "store")
    (tmp_path / "in" / "0" / "000.txt").write_text("another prompt")
    (tmp_path / "in" / "1" / "001.png").write_bytes((pictures / "2" / "002.png").read_bytes())
    extractor = DrawnExtractor()
    build_store(tmp_path / "in", tmp_path / "store", extractor)
    # The prompt matters to one question only; the picture is known, but not with this prompt.
    assert sorted(extractor.calls) == [(1, (ALIGNMENT,)), (1, (ALIGNMENT,))]


def test_the_same_picture_saved_anew_costs_no_computation(pictures: Path, built: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures, tmp_path / "in")
    shutil.copytree(built, tmp_path / "store")
    with Image.open(pictures / "0" / "004.png") as image:
        image.save(tmp_path / "in" / "0" / "004.png", compress_level=1)
    assert (tmp_path / "in" / "0" / "004.png").read_bytes() != (pictures / "0" / "004.png").read_bytes()
    extractor = DrawnExtractor()
    build_store(tmp_path / "in", tmp_path / "store", extractor)
    assert not extractor.calls


def test_a_damaged_feature_is_computed_again(pictures: Path, built: Path, tmp_path: Path) -> None:
    shutil.copytree(built, tmp_path / "store")
    with DiskStore(built, read_only=True) as store:
        entry = find_entry(store, "1/005.png")
        assert entry is not None
    key = bytes.fromhex(entry.features[asked(TECHNICAL)[0].digest])
    environment = lmdb.open(str(tmp_path / "store"), max_dbs=8)
    with environment.begin(environment.open_db(b"records"), write=True) as transaction:
        transaction.put(key, b"damaged")
    environment.close()
    verdict = verify(tmp_path / "store")
    assert len(verdict.damaged) == 1
    assert verdict.incomplete == ["1/005.png"]
    extractor = DrawnExtractor()
    build_store(pictures, tmp_path / "store", extractor)
    assert extractor.calls == [(1, (TECHNICAL,))]
    assert verify(tmp_path / "store").good


def test_shards_share_the_work_and_merge_into_the_whole(pictures: Path, tmp_path: Path) -> None:
    build_store(pictures, tmp_path / "whole", DrawnExtractor(), batch=1)
    parts = []
    for number in (1, 2, 3):
        progress = build_store(pictures, tmp_path / str(number), DrawnExtractor(), shard=Shard(number, 3), batch=1)
        parts.append(progress.seen)
    assert sum(parts) == PICTURES + 1
    assert min(parts) > 10
    with DiskStore(tmp_path / "merged") as into:
        for _ in range(2):  # again, as after an interruption
            for number in (3, 1, 2):
                with DiskStore(tmp_path / str(number), read_only=True) as part:
                    merged = Merged()
                    merge(into, part, merged)
                    assert not merged.conflicts
    assert content(tmp_path / "merged") == content(tmp_path / "whole")


def test_names_in_conflict_are_told_and_keep_their_features(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"in{number}").mkdir()
        Image.new("RGB", (64, 64), (number, 0, 0)).save(tmp_path / f"in{number}" / "same.png")
        build_store(tmp_path / f"in{number}", tmp_path / f"store{number}", DrawnExtractor())
    with DiskStore(tmp_path / "store1") as one, DiskStore(tmp_path / "store2", read_only=True) as two:
        merged = Merged()
        merge(one, two, merged)
        assert merged.conflicts == ["same.png"]
        assert one.status().entries == 6


def test_killed_at_any_moment_a_build_ends_as_if_nothing_had_happened(pictures: Path, tmp_path: Path) -> None:
    reference = tmp_path / "uninterrupted"
    build_store(pictures, reference, DrawnExtractor())
    path = tmp_path / "store"
    command = [sys.executable, "-m", "tests.exporters.features.drawn_extractor", str(pictures), str(path), "0.05"]
    computed = []
    for attempt in range(4):
        process = subprocess.Popen(command)
        until = time.monotonic() + 30
        features = held(path)
        while held(path) <= features and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.017 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        computed.append(held(path))
        assert verify(path).good  # a half-built store is usable for what it holds
    assert 0 < computed[0] < computed[-1] < held(reference)
    extractor = DrawnExtractor()
    build_store(pictures, path, extractor)
    # At most the batch in flight was lost: nothing that was committed is computed again.
    assert sum(count for count, _ in extractor.calls) * 3 == held(reference) - computed[-1]
    assert content(path) == content(reference)


def held(path: Path) -> int:
    """Features in the store; none where there is no store yet."""
    try:
        with DiskStore(path, read_only=True) as store:
            return store.status().entries
    except Exception:
        return 0


def test_an_lmm_that_stops_answering_ends_the_build_and_keeps_what_was_done(pictures: Path, tmp_path: Path) -> None:
    class Stopping(DrawnExtractor):
        def extract(self, *arguments: object, **named: object) -> np.ndarray:  # type: ignore[override]
            if len(self.calls) == 3:
                raise LmmUnreachable("it does not answer")
            return super().extract(*arguments, **named)  # type: ignore[arg-type]

    extractor = Stopping()
    with pytest.raises(LmmUnreachable):
        build_store(pictures, tmp_path / "store", extractor)
    assert held(tmp_path / "store") == 3 * sum(count for count, _ in extractor.calls) > 0
    build_store(pictures, tmp_path / "store", DrawnExtractor())
    assert verify(tmp_path / "store").good
