"""The report's files: readable by programs, complete, self-contained, and safe against what label files hold."""

from __future__ import annotations

import csv
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from critiq_evaluation.datasets.types import Dataset, Preference, Problem, RatedPicture, Scale
from critiq_evaluation.judging import Evaluation, judge
from critiq_evaluation.protocols import Options, plan
from critiq_evaluation.report.data import About
from critiq_evaluation.report.writing import write_report
from critiq_evaluation.scoring import Asked
from tests.evaluation.made_up import dimension, model, scores

ABOUT = About("2026-01-01", "0.1", {"models": "good, flat", "seed": "0"}, "Ratings are made up.")
EVIL = "<script>alert(1)</script> & | 50% $x_1$"
VOID = {"meta", "img", "br", "link", "input", "hr", "path", "use", "rect", "line", "image"}


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    generator = np.random.default_rng(3)
    truth = generator.uniform(1, 5, 60)
    pictures = tuple(
        RatedPicture(
            f"{i}.png",
            {"quality": float(rating)},
            prompt=EVIL if i % 2 else "a cat",
            groups={"generator": ["one_a", "t$wo", "three", "four"][i % 4]},
        )
        for i, rating in enumerate(truth)
    )
    asked = [Asked(picture.image, picture.prompt) for picture in pictures]
    good = {one: {"quality": float(t + generator.normal(0, 0.7))} for one, t in zip(asked, truth, strict=True)}
    failed = {asked[0]: "cannot read '0.png': <gone>"}
    del good[asked[0]]
    flat = {one: {"quality": 1.0} for one in asked}
    dataset = Dataset(
        "made & <sharp>",
        {"quality": Scale(1, 5)},
        pictures,
        preferences=(Preference("1.png", "2.png", EVIL), Preference("1.png", "3.png", EVIL)),
        problems=(Problem("made.csv line 7", f"prompt {EVIL}: a duplicate"),),
    )
    answers = [
        scores(model("good", dimension("quality")), good, failed),
        scores(model("flat", dimension("quality")), flat),
        scores(
            model("lower", dimension("quality", "lower_is_better", within_prompt=True)),
            {one: {"quality": -(float(value) ** 3)} for one, value in zip(asked, truth, strict=True)},
        ),
    ]
    plans = [plan(name, dataset, Options(repeats=3)) for name in ("all", "random", "ma-agiqa")]
    return judge(dataset, answers, plans, resamples=100)


@pytest.fixture(scope="module")
def report(evaluation: Evaluation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = tmp_path_factory.mktemp("images")
    for i in range(1, 60):
        Image.new("RGB", (30, 20), (4 * i, 100, 50)).save(images / f"{i}.png")
    out = tmp_path_factory.mktemp("out") / "deep"
    written = write_report(evaluation, ABOUT, images, out)
    assert written[0] == out / "report.html"
    assert all(path.is_file() for path in written)
    return out


class Page(HTMLParser):
    """Collects what the tests ask about, and checks that elements close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def page(report: Path) -> Page:
    return Page((report / "report.html").read_text())


def test_the_page_loads_nothing_and_runs_nothing(page: Page) -> None:
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed"}
    for _, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href") and value:
                assert value.startswith(("data:image/", "#"))
    styles = "".join(value for _, attributes in page.elements if (value := attributes.get("style")))
    assert "url(http" not in styles + "".join(page.text)


def test_the_page_is_accessible(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(attributes.get("alt") for tag, attributes in page.elements if tag == "img")
    drawings = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(drawings) == 4  # three scatter plots, one figure of bars
    assert all(drawing.get("role") == "img" and drawing.get("aria-label") for drawing in drawings)
    targets = {value[1:] for tag, a in page.elements if tag == "a" and (value := a.get("href"))}
    assert targets <= set(ids)
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(headings))
    html = next(attributes for tag, attributes in page.elements if tag == "html")
    assert html["lang"] == "en"


def test_the_page_says_what_matters(page: Page, evaluation: Evaluation) -> None:
    text = " ".join(" ".join(page.text).split())
    good = evaluation.comparisons[0].whole.agreement
    assert f"{good.srcc:.3f}" in text
    assert "good:1 quality has no score for 1 of 60 pictures" in text
    assert "all 60 scores are 1; a constant correlates with nothing" in text
    assert "scores are negated: for this dimension lower is better" in text
    assert "1 to 5, higher is better" in text
    assert "lower:1 quality compares pictures of one prompt only" in text
    assert "cannot read '0.png': <gone>" in text
    assert "made.csv line 7" in text
    assert EVIL in text
    assert "random.seed(20)" in text
    assert "Ratings are made up." in text
    assert "100.0% of pairs of one prompt ordered as by people's quality" in text


def test_programs_can_read_the_figures(report: Path, evaluation: Evaluation) -> None:
    document = json.loads((report / "results.json").read_text(), parse_constant=pytest.fail)
    whole = document["comparisons"][0]["whole"]["agreement"]
    assert whole["srcc"] == evaluation.comparisons[0].whole.agreement.srcc
    assert document["comparisons"][1]["whole"]["agreement"]["srcc"] is None
    assert document["comparisons"][1]["whole"]["agreement"]["fit"]["state"] == "failed"
    assert document["dataset"]["problems"][0]["row"] == "made.csv line 7"
    with (report / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["srcc"]) == pytest.approx(whole["srcc"])
    assert {row["protocol"] for row in rows} == {"all", "random", "ma-agiqa", "by generator"}
    assert next(row for row in rows if row["model"] == "flat:1")["srcc"] == ""
    with (report / "pictures.csv").open(newline="") as file:
        pictures = list(csv.DictReader(file))
    assert len(pictures) == 59 + 60 + 60
    assert pictures[0]["prompt"] == EVIL


def test_tables_are_well_formed(report: Path, evaluation: Evaluation) -> None:
    markdown = (report / "tables.md").read_text()
    for block in re.findall(r"(?:^\|.*\|\n)+", markdown, re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1
    srcc = evaluation.comparisons[0].whole.agreement.srcc
    assert f"{srcc:.4f}" in markdown
    assert "fit: failed" not in markdown  # a constant has no correlation at all, which is said instead
    assert "flat:1 quality: all 60 scores are 1" in markdown
    latex = (report / "tables.tex").read_text()
    assert latex.count("\\begin{tabular}") == latex.count("\\end{tabular}") == markdown.count("### ")
    body = "\n".join(line for line in latex.splitlines() if not line.startswith("%"))
    assert "one\\_a" in body
    assert not re.search(r"(?<!\\)_", body)


def test_figures_stand_alone(report: Path) -> None:
    for path in (report / "figures").glob("*.svg"):
        root = ElementTree.parse(path).getroot()  # noqa: S314 - our own file
        assert root.tag.endswith("svg")
    with Image.open(report / "figures" / "worst_1.jpg") as sheet:
        assert sheet.width > 1000


def test_a_failed_fit_is_said_everywhere(tmp_path: Path) -> None:
    # Raw scores far from the ratings' scale, on which pyiqa's start stays a line.
    generator = np.random.default_rng(0)
    place = generator.uniform(0, 1, 300)
    truth = 100 / (1 + np.exp(-11 * (place - 0.5))) + generator.normal(0, 20, 300)
    pictures = tuple(RatedPicture(f"{i}.png", {"quality": float(value)}) for i, value in enumerate(truth))
    dataset = Dataset("made", {"quality": Scale(0, 100)}, pictures)
    values = {Asked(f"{i}.png"): {"quality": 0.2 + 0.15 * float(p)} for i, p in enumerate(place)}
    answer = scores(model("clip", dimension("quality")), values)
    found = judge(dataset, [answer], [plan("all", dataset)], fit="logistic5-pyiqa", resamples=0)
    write_report(found, ABOUT, tmp_path, tmp_path / "out")
    for name in ("report.html", "tables.md"):
        assert "fit: failed" in (tmp_path / "out" / name).read_text()
    assert '"state": "failed"' in (tmp_path / "out" / "results.json").read_text()


def test_a_model_that_fails_on_every_picture_still_has_a_report(tmp_path: Path) -> None:
    dataset = Dataset(
        "made", {"quality": Scale(0, 5)}, tuple(RatedPicture(f"{i}.png", {"quality": 1}) for i in range(9))
    )
    failed = scores(model("m", dimension("quality")), {}, {Asked(f"{i}.png"): "out of order" for i in range(9)})
    write_report(judge(dataset, [failed], [plan("random", dataset)]), ABOUT, tmp_path, tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text()
    assert "has no score for 9 of 9 pictures" in text
    assert "out of order" in text


def test_preferences_alone_make_a_report(tmp_path: Path) -> None:
    pairs = tuple(Preference(f"{i}.png", f"{i + 1}.png") for i in range(0, 40, 2))
    values = {Asked(f"{i}.png"): {"quality": -float(i % 7)} for i in range(41)}
    found = judge(Dataset("pairs", {}, preferences=pairs), [scores(model("m", dimension("quality")), values)], [])
    write_report(found, ABOUT, tmp_path, tmp_path / "out")
    html = Page((tmp_path / "out" / "report.html").read_text())
    text = " ".join(" ".join(html.text).split())
    assert "Agreement with preferences" in text
    assert "of pairs judged as people did" in text


def test_many_pictures_do_not_make_a_large_page(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    truth = generator.uniform(1, 5, 5000)
    pictures = tuple(RatedPicture(f"{i}.png", {"quality": float(value)}) for i, value in enumerate(truth))
    values = {Asked(f"{i}.png"): {"quality": float(value)} for i, value in enumerate(truth)}
    dataset = Dataset("large", {"quality": Scale(1, 5)}, pictures)
    found = judge(dataset, [scores(model("m", dimension("quality")), values)], [], resamples=0)
    write_report(found, ABOUT, tmp_path, tmp_path / "out")
    assert (tmp_path / "out" / "report.html").stat().st_size < 600_000
