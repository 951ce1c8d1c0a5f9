"""Heads learn from stored features what those tell, and become bundles that are served from the same store."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from critiq import AsyncClient
from critiq_exporters.families.eliq.checkpoint import build as build_eliq
from critiq_exporters.families.ma_agiqa.checkpoint import build as build_ma_agiqa
from critiq_exporters.features.build import Plan, Progress, build
from critiq_exporters.features.catalogue import Asked
from critiq_exporters.features.sources import open_source
from critiq_exporters.heads.data import load_features
from critiq_exporters.training.cli import app
from critiq_server.features.disk import DiskStore
from critiq_server.runtime.lmm.base import Instruction, Pixels, rounded
from critiq_server.runtime.lmm.instructions import QUESTIONS, BackboneName, ask, find_instructions, standard_backbone
from tests.exporters.families.rule_made import tiny_state
from tests.support.servers import make_settings, running

WIDTH = 24
COUNT = 60


class TellingExtractor:
    """Stands for an LMM that knows: its answer lies in one direction for bright pictures, and against it for dark ones.

    Asked about alignment, what counts is whether the prompt names the picture's level.
    """

    provider, concurrency, gathers = "telling", 1, True

    def bucket(self, height: int, width: int) -> Hashable:
        return None

    def extract(
        self, pictures: Sequence[Pixels], prompts: Sequence[str] | None, instructions: Sequence[Instruction]
    ) -> NDArray[np.float32]:
        assert prompts is not None
        return np.stack(
            [
                np.stack([self._answer(picture, prompt, one) for one in instructions])
                for picture, prompt in zip(pictures, prompts, strict=True)
            ]
        )

    def close(self) -> None:
        pass

    def _answer(self, picture: Pixels, prompt: str, instruction: Instruction) -> NDArray[np.float32]:
        level = int(picture[0, 0, 0])
        told = f"level {level}" in prompt if instruction.reads_prompt else level / 255
        direction = np.random.default_rng(len(instruction.id)).standard_normal(WIDTH)
        noise = np.random.default_rng([level, len(prompt)]).standard_normal(WIDTH)
        return rounded((100 * (float(told) - 0.5) * direction + 3 * noise).astype(np.float32), "float16")


def build_store(root: Path, kind: BackboneName) -> Path:
    backbone = standard_backbone(kind, "telling", "0" * 64, WIDTH)
    questions = [Asked(ask(backbone, one)) for one in find_instructions(QUESTIONS[kind])]
    source = open_source(root / "list.jsonl")
    progress = Progress(source.count)
    with DiskStore(root / "store") as store:
        build(source.items(), Plan(questions), TellingExtractor(), store, progress)
    assert not progress.failures
    return root / "store"


def write_sources(root: Path) -> None:
    """Pictures of all grey levels, each with its own prompt and once with another's."""
    rows = []
    for level in range(0, 4 * COUNT, 4):
        Image.new("RGB", (32, 32), (level, level, level)).save(root / f"{level}.png")
        rows.append({"file": f"{level}.png", "prompt": f"level {level} and {'more ' * (level % 5)}"})
        rows.append({"file": f"{level}.png", "prompt": f"level {level + 1}", "id": f"{level} mismatched"})
    (root / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture(scope="module")
def eliq_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("eliq")
    write_sources(root)
    build_store(root, "qwen3-vl")
    with (root / "pairs.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["picture", "technical_negative", "aesthetic_negative", "alignment_negative"])
        for level in range(40, 4 * COUNT, 4):
            names = [f"{level}.png", f"{level - 32}.png", f"{level - 40}.png", f"{level} mismatched"]
            writer.writerow(names if level % 3 else [names[0], "", *names[2:]])
    with (root / "opinions.jsonl").open("w") as stream:
        for level in range(0, 4 * COUNT, 4):
            stream.write(json.dumps({"picture": f"{level}.png", "visual_quality": 1 + level / 64}) + "\n")
    return root


def run(*arguments: object) -> str:
    """What the command said; it must have ended well."""
    outcome = CliRunner().invoke(app, list(map(str, arguments)))
    assert outcome.exit_code == 0, outcome.output
    return outcome.output


SMALL = ("--hidden", 16, "--width", 16, "--heads", 2, "--layers", 1, "--rate", 0.003, "--epochs", 25)


@pytest.mark.slow
async def test_eliq_learns_the_order_and_is_served_from_the_store(eliq_root: Path) -> None:
    out, bundles = eliq_root / "heads.safetensors", eliq_root / "models"
    store, labels = eliq_root / "store", eliq_root / "pairs.csv"
    said = run("eliq", "--features", store, "--labels", labels, "--out", out, "--bundle", bundles, *SMALL)
    shares = {kind: float(share) for kind, share in re.findall(r"held out, (\w+) negative: ([\d.]+)%", said)}
    assert shares.keys() == {"technical", "aesthetic", "alignment"}
    assert min(shares.values()) > 90
    settings = make_settings(
        bundles,
        default="eliq",
        lmm={"on_miss": "stored"},
        features={"disk": {"path": store, "read_only": True}},
    )
    features = load_features(store, QUESTIONS["qwen3-vl"])
    name = "160.png"
    with torch.inference_mode():
        answers = [features.of(one, [name]) for one in QUESTIONS["qwen3-vl"]]
        expected = [score.item() for score in build_eliq(load_file(out), heads=2)(*answers)]
    async with running(settings) as server, AsyncClient(f"127.0.0.1:{server.grpc_port}") as client:
        score = await client.score(eliq_root / name, f"level 160 and {'more ' * (160 % 5)}")
        other = await client.score(eliq_root / name, "level 161")
    found = [score["visual_quality"].raw, score["alignment"].raw]
    assert found == pytest.approx(expected, abs=1e-3)
    assert other["alignment"].raw < score["alignment"].raw


def test_a_few_opinions_put_eliq_on_their_scale(eliq_root: Path, tmp_path: Path) -> None:
    out, store = tmp_path / "heads.safetensors", eliq_root / "store"
    ranked = tmp_path / "ranked.safetensors"
    run("eliq", "--features", store, "--labels", eliq_root / "pairs.csv", "--out", ranked, *SMALL)
    labels = ("--labels", eliq_root / "pairs.csv", "--opinions", eliq_root / "opinions.jsonl")
    said = run("eliq", "--features", store, *labels, "--opinion-share", 0.3, "--out", out, *SMALL)
    fitted, srcc, judged = re.findall(r"visual_quality: fitted to (\d+) opinions; SRCC ([\d.]+) on (\d+)", said)[0]
    assert int(fitted) + int(judged) == COUNT
    assert 8 < int(fitted) < 30
    assert float(srcc) > 0.9
    # Only the last layer of that one head was fitted.
    before, after = load_file(ranked), load_file(out)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"visual_head.2.weight", "visual_head.2.bias"}
    features = load_features(store, QUESTIONS["qwen3-vl"])
    names = [f"{level}.png" for level in range(0, 4 * COUNT, 4)]
    with torch.inference_mode():
        scores, _ = build_eliq(after, heads=2)(*(features.of(one, names) for one in QUESTIONS["qwen3-vl"]))
    opinions = torch.tensor([1 + level / 64 for level in range(0, 4 * COUNT, 4)])
    assert (scores - opinions).abs().mean() < 0.35


@pytest.fixture(scope="module")
def owl_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ma_agiqa")
    write_sources(root)
    build_store(root, "mplug-owl2")
    save_file({name: value.contiguous() for name, value in tiny_state().items()}, root / "maniqa.safetensors")
    with (root / "opinions.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "mos"])
        for level in range(0, 4 * COUNT, 4):
            writer.writerow([f"{level}.png", 1 + level / 64])
    return root


def train_fusion(root: Path, *more: object) -> str:
    command = ["ma-agiqa", "--features", root / "store", "--labels", root / "opinions.csv"]
    command += ["--checkpoint", root / "maniqa.safetensors", "--images", root / "list.jsonl"]
    return run(*command, "--out", root / "ma_agiqa.safetensors", "--epochs", 12, *more)


def test_ma_agiqas_fusion_learns_opinions(owl_root: Path) -> None:
    said = train_fusion(owl_root)
    srcc, plcc = map(float, re.findall(r"SRCC ([\d.]+), PLCC ([\d.]+) on", said)[-1])
    assert srcc > 0.9
    assert plcc > 0.9
    # The tower is that of the checkpoint it came from, and its votes are there for the next training.
    state, tower = load_file(owl_root / "ma_agiqa.safetensors"), tiny_state()
    assert all(torch.equal(state[name], tower[name].float()) for name in state if not name.startswith(FUSION))
    (votes,) = owl_root.glob("ma_agiqa.votes-*.safetensors")
    written = votes.stat().st_mtime_ns
    assert said.endswith(train_fusion(owl_root))  # but for what it says of the votes
    assert votes.stat().st_mtime_ns == written


@pytest.mark.slow
async def test_ma_agiqa_trained_on_a_store_is_served_from_it(owl_root: Path) -> None:
    bundles, store = owl_root / "models", owl_root / "store"
    train_fusion(owl_root, "--bundle", bundles)
    settings = make_settings(
        bundles,
        default="ma-agiqa",
        lmm={"on_miss": "stored"},
        features={"disk": {"path": store, "read_only": True}},
    )
    names = ["20.png", "120.png", "220.png"]
    async with running(settings) as server, AsyncClient(f"127.0.0.1:{server.grpc_port}") as client:
        found = [(await client.score(owl_root / name))["visual_quality"].raw for name in names]
    assert found == sorted(found)
    networks = build_ma_agiqa(load_file(owl_root / "ma_agiqa.safetensors"))
    features = load_features(store, QUESTIONS["mplug-owl2"])
    side = networks.votes.shape.image
    pixels = [np.full((side, side, 3), int(name.removesuffix(".png")), np.uint8) for name in names]
    with torch.inference_mode():
        votes = networks.votes(torch.from_numpy(np.stack(pixels)))
        expected = networks.fusion(votes, *(features.of(one, names) for one in QUESTIONS["mplug-owl2"]))
    assert found == pytest.approx(expected.tolist(), abs=2e-3)


FUSION = ("fc784_784", "fc4096_784", "gating", "output_fc")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("", "holds no labels"),
        ("picture,technical_negative\nnobody.png,0.png\n", "without features in the store (nobody.png)"),
        ("picture,technical_negative\n0.png,\n", "holds no pairs"),
        ("picture,score\n0.png,1\n", "none of the columns technical_negative"),
        ("first,technical_negative\n0.png,4.png\n", "none of the columns picture"),
    ],
)
def test_labels_that_make_no_sense_are_refused(eliq_root: Path, tmp_path: Path, labels: str, message: str) -> None:
    (tmp_path / "labels.csv").write_text(labels)
    command = ["eliq", "--features", str(eliq_root / "store"), "--labels", str(tmp_path / "labels.csv")]
    outcome = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "out.safetensors")])
    assert outcome.exit_code == 2
    assert message in outcome.output
    assert not (tmp_path / "out.safetensors").exists()


def test_opinions_must_be_numbers(owl_root: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("name,mos\n0.png,good\n")
    command = ["ma-agiqa", "--features", owl_root / "store", "--labels", tmp_path / "labels.csv"]
    command += ["--checkpoint", owl_root / "maniqa.safetensors", "--images", owl_root / "list.jsonl"]
    outcome = CliRunner().invoke(app, [*map(str, command), "--out", str(tmp_path / "out.safetensors")])
    assert outcome.exit_code == 2
    assert "mos of '0.png' is 'good', not a finite number" in outcome.output


def test_a_store_of_other_questions_is_refused(owl_root: Path, eliq_root: Path, tmp_path: Path) -> None:
    command = ["eliq", "--features", owl_root / "store", "--labels", eliq_root / "pairs.csv", "--out", tmp_path / "o"]
    outcome = CliRunner().invoke(app, list(map(str, command)))
    assert outcome.exit_code == 2
    assert "holds no question 'eliq-technical-1'; it holds ma-agiqa-coherence" in outcome.output
