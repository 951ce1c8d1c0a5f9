"""``critiq features`` from the command line to a server: what was built ahead is served without the LMM."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from safetensors import safe_open

from critiq import AsyncClient, FeaturesMissing
from critiq_exporters.cli import main as export_main
from critiq_exporters.families.eliq.family import load as load_eliq
from critiq_exporters.families.eliq.network import Scorer, Shape
from critiq_exporters.families.ma_agiqa.family import load as load_ma_agiqa
from critiq_exporters.features.cli import main
from critiq_exporters.features.questions import NAMES
from critiq_server.features.disk import DiskStore
from critiq_server.features.files import DATA_FILE
from critiq_server.settings import Settings
from tests.exporters.features.conftest import draw
from tests.support.lmms import QWEN_WIDTH, save_qwen
from tests.support.pooling import Answer, pooled, pooling_server, question_of
from tests.support.servers import make_settings, running, server_process

PROMPTS = {f"{number}.png": f"a drawing of {number} things" for number in range(6)}
QUESTIONS = ("eliq-technical-1", "eliq-aesthetic-1", "eliq-alignment-1")


@dataclass(frozen=True)
class Place:
    root: Path
    bundle: Path
    lmm: Path
    images: Path
    store: Path

    def build(self, *more: str) -> list[str]:
        return ["build", "--images", str(self.images), "--model", str(self.lmm), "--device", "cpu", *more]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """An exported ELIQ bundle with a tiny Qwen3-VL, pictures, and the store that was built for them."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("features")
    lmm = save_qwen(root / "qwen")
    torch.manual_seed(0)
    shape = Shape(feature=QWEN_WIDTH, hidden=40, width=32, layers=2, heads=4)
    torch.save(Scorer(shape).state_dict(), root / "heads.pt")
    command = ["eliq", "--checkpoint", str(root / "heads.pt"), "--out", str(root / "models"), "--heads", "4"]
    command += ["--lmm", str(lmm), "--lmm-name", "tiny", "--lmm-dtype", "float32", "--max-pixels", "25600"]
    assert export_main([*command, "--count", "4", "--max-batch", "4"]) == 0
    for name, prompt in PROMPTS.items():
        draw(root / "images" / name, int(name[0]))
        (root / "images" / name).with_suffix(".txt").write_text(prompt)
    found = Place(root, root / "models" / "eliq" / "1", lmm, root / "images", root / "store")
    assert main(found.build("--bundle", str(found.bundle), "--store", str(found.store))) == 0
    return found


def computing(place: Place, **more: Any) -> Settings:
    """A server that holds the LMM."""
    lmm = {"folders": {"tiny": place.lmm}, "device": "cpu"}
    return make_settings(place.root / "models", default="eliq", lmm=lmm, **more)


async def scores(address: str, place: Place) -> dict[str, tuple[float, float]]:
    async with AsyncClient(address) as client:
        found = {name: await client.score(place.images / name, prompt=prompt) for name, prompt in PROMPTS.items()}
    return {name: (one["visual_quality"].raw, one["alignment"].raw) for name, one in found.items()}


def holds_torch(process: int) -> bool:
    """Whether a process has loaded torch's library; false where the system does not tell."""
    maps = Path(f"/proc/{process}/maps")
    return maps.exists() and "libtorch" in maps.read_text()


async def test_what_was_built_is_served_without_the_lmm_as_if_it_were_computed(place: Place, tmp_path: Path) -> None:
    async with running(computing(place)) as app:
        computed = await scores(f"127.0.0.1:{app.grpc_port}", place)
        assert holds_torch(os.getpid())
    before = (place.store / DATA_FILE).read_bytes()
    disk = json.dumps({"path": str(place.store), "read_only": True})
    flags = ["--models", str(place.root / "models"), "--default", "eliq", "--load", "eliq"]
    flags += ["--set", "lmm.on_miss=stored", "--set", f"features.disk={disk}"]
    with server_process(flags, tmp_path / "log") as server:
        assert not holds_torch(server.process.pid)
        from_store = await scores(server.grpc, place)
        async with AsyncClient(server.grpc) as client:
            with pytest.raises(FeaturesMissing, match="eliq-alignment-1"):
                await client.score(place.images / "0.png", prompt="another prompt, which the store does not know")
    assert (place.store / DATA_FILE).read_bytes() == before
    assert from_store.keys() == computed.keys()
    for name, values in from_store.items():
        # The head's input is the same up to the batches that the LMM computed it in.
        assert values == pytest.approx(computed[name], abs=2e-3)
    assert len(set(from_store.values())) == len(PROMPTS)


async def test_a_server_fills_a_store_with_the_keys_of_a_build(place: Place, tmp_path: Path) -> None:
    async with running(computing(place, features={"disk": {"path": tmp_path / "store"}})) as app:
        await scores(f"127.0.0.1:{app.grpc_port}", place)
    with DiskStore(tmp_path / "store", read_only=True) as by_server, DiskStore(place.store, read_only=True) as built:
        keys = [key for key, _ in built.records()]
        assert keys == [key for key, _ in by_server.records()]
        assert len(keys) == 3 * len(PROMPTS)


def test_a_backbone_named_by_hand_gives_the_same_store(place: Place, tmp_path: Path) -> None:
    options = ["--backbone", "qwen3-vl", "--name", "tiny", "--dtype", "float32", "--max-pixels", "25600"]
    assert main(place.build(*options, "--store", str(tmp_path / "store"))) == 0
    with DiskStore(tmp_path / "store", read_only=True) as one, DiskStore(place.store, read_only=True) as other:
        assert one.content_digest() == other.content_digest()


def test_the_lmms_are_called_what_the_exporters_call_them() -> None:
    for backbone, family in (("qwen3-vl", load_eliq), ("mplug-owl2", load_ma_agiqa)):
        assert inspect.signature(family).parameters["lmm_name"].default == NAMES[backbone]


def test_only_some_questions(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--bundle", str(place.bundle), "--store", str(tmp_path / "store")]
    assert main(place.build(*options, "--questions", "eliq-technical-1,alignment")) == 0
    assert main(["stat", str(tmp_path / "store"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    asked = {one["instruction"]: one["pictures"] for one in found["questions"].values()}
    assert asked == {"eliq-technical-1": 6, "eliq-alignment-1": 6}
    assert (found["features"], found["pictures"]) == (12, 6)


def test_an_lmm_served_elsewhere_builds_too_and_its_end_is_the_builds(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def behave(body: dict[str, Any], number: int) -> Answer:
        picture, text = question_of(body)
        if limit and number > limit:
            return 400, {"error": "no more"}
        return pooled(np.full(QWEN_WIDTH, float(picture.mean()) + len(text), np.float32))

    command = ["build", "--images", str(place.images), "--bundle", str(place.bundle), "--batch", "1"]
    command += ["--store", str(tmp_path / "store"), "--remote"]
    limit = 7  # two pictures with three questions each, and one question more
    with pooling_server(behave) as server:
        assert main([*command, server.url]) == 1
    assert "critiq features: " in capsys.readouterr().err
    with DiskStore(tmp_path / "store", read_only=True) as store:
        assert store.status().entries == 6
    limit = 0
    with pooling_server(behave) as server:
        assert main([*command, server.url]) == 0
        assert len(server.bodies) == 3 * (len(PROMPTS) - 2)


def test_the_summary_says_what_the_time_went_into(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(tmp_path / "in" / "good.png", 1)
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")
    command = ["build", "--images", str(tmp_path / "in"), "--model", str(place.lmm), "--bundle", str(place.bundle)]
    assert main([*command, "--store", str(tmp_path / "store")]) == 1
    said = capsys.readouterr().err
    assert "1 pictures computed, 0 already stored, 1 failed" in said
    assert "of the time: LMM " in said
    (failure,) = map(json.loads, (tmp_path / "store" / "failures.jsonl").read_text().splitlines())
    assert failure["name"] == "bad.png"
    (tmp_path / "in" / "bad.png").unlink()
    assert main([*command, "--store", str(tmp_path / "store")]) == 0
    assert not (tmp_path / "store" / "failures.jsonl").exists()


def test_looking_into_a_store(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = str(place.store)
    assert main(["stat", store]) == 0
    assert "18 features of 6 pictures" in capsys.readouterr().out
    assert main(["verify", store]) == 0
    verified = capsys.readouterr().out
    assert "18 features of 6 pictures: 0 damaged, 0 pictures incomplete" in verified
    with DiskStore(place.store, read_only=True) as opened:
        assert f"content {opened.content_digest()}" in verified
    assert main(["get", store, "3.png", "--question", QUESTIONS[0], "--output", str(tmp_path / "f.npz")]) == 0
    printed = capsys.readouterr().out
    assert f"{QUESTIONS[0]} feature float32[{QWEN_WIDTH}] key " in printed
    key = printed.split(" key ")[1].split()[0]
    with np.load(tmp_path / "f.npz") as saved:
        assert saved[QUESTIONS[0]].shape == (QWEN_WIDTH,)
    assert main(["get", store, key]) == 0
    assert main(["get", store, "f" * 64]) == 1


def test_exporting_to_train_elsewhere(place: Place, tmp_path: Path) -> None:
    assert main(["export", str(place.store), str(tmp_path / "all.safetensors")]) == 0
    assert main(["export", str(place.store), str(tmp_path / "all.parquet")]) == 0
    with safe_open(tmp_path / "all.safetensors", "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dictionary
        metadata = file.metadata()
    assert tensors.keys() == set(QUESTIONS)
    names = json.loads(metadata["names"])
    assert sorted(names) == sorted(PROMPTS)
    assert json.loads(metadata["prompts"]) == [PROMPTS[name] for name in names]
    table = pyarrow.parquet.read_table(tmp_path / "all.parquet").to_pydict()
    assert table["name"] == names
    with DiskStore(place.store, read_only=True) as store:
        for question in QUESTIONS:
            assert tensors[question].dtype == np.float16
            np.testing.assert_array_equal(np.array(table[question], np.float32), tensors[question].astype(np.float32))
        kept = [features["feature"] for features in store.get_many([key for key, _ in store.records()]).values()]
    # Nothing was lost on the way.
    exported = {row.tobytes() for question in QUESTIONS for row in tensors[question].astype(np.float32)}
    assert exported == {row.tobytes() for row in kept}


def test_merging_and_compacting(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", str(tmp_path / "into"), str(place.store), str(place.store)]) == 0
    assert "18 features and 6 pictures added" in capsys.readouterr().out
    assert main(["compact", str(tmp_path / "into")]) == 0
    with DiskStore(tmp_path / "into", read_only=True) as one, DiskStore(place.store, read_only=True) as other:
        assert one.content_digest() == other.content_digest()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "--images", "IMAGES", "--store", "S"], "either --bundle or --backbone"),
        (["build", "--images", "IMAGES", "--store", "S", "--bundle", "BUNDLE"], "--model is missing"),
        (["build", "--images", "IMAGES", "--store", "S", "--bundle", "BUNDLE", "--dtype", "x"], "--backbone"),
        (["build", "--images", "gone", "--store", "S", "--bundle", "BUNDLE"], "no such file or directory: gone"),
        (["build", "--images", "IMAGES", "--store", "S", "--bundle", "IMAGES"], "manifest.json cannot be read"),
        (["build", "--images", "IMAGES", "--store", "S", "--bundle", "BUNDLE", "--model", "IMAGES"], "safetensors"),
        (
            ["build", "--images", "IMAGES", "--store", "S", "--bundle", "BUNDLE", "--questions", "why"],
            "does not ask 'why'; it asks eliq-technical-1",
        ),
        (["build", "--images", "IMAGES", "--store", "S", "--backbone", "gpt"], "known are qwen3-vl, mplug-owl2"),
        (
            ["build", "--images", "IMAGES", "--store", "S", "--backbone", "mplug-owl2", "--max-pixels", "9"],
            "--max-pixels goes with",
        ),
        (["build", "--images", "IMAGES", "--store", "S", "--bundle", "BUNDLE", "--shard", "0/2"], "1/4 to 4/4"),
        (["stat", "gone"], "there is no feature store in gone"),
        (["get", "STORE", "nobody.png"], "knows no picture 'nobody.png'"),
        (["get", "STORE", "1.png", "--question", "why"], "holds no question 'why'; it holds eliq-"),
        (["export", "STORE", "out.csv"], ".safetensors or .parquet"),
        (["build"], "Missing option"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(
    place: Place, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str, tmp_path: Path
) -> None:
    known = {"IMAGES": place.images, "BUNDLE": place.bundle, "STORE": place.store, "S": tmp_path / "store"}
    capsys.readouterr()
    assert main([str(known.get(argument, argument)) for argument in arguments]) in (1, 2)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("critiq features: ")
    assert message in last


def test_looking_into_a_store_needs_no_torch(place: Place) -> None:
    code = (
        "import sys; from critiq_exporters.features.cli import main\n"
        "assert main(['stat', sys.argv[1]]) == main(['verify', sys.argv[1]]) == 0\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(place.store)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_client_hands_over() -> None:
    command = [sys.executable, "-m", "critiq.cli", "features", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "build" in done.stdout
