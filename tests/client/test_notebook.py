"""What results show in a notebook, and as data frames."""

from __future__ import annotations

import base64
import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import critiq
from critiq import _notebook
from tests.fixtures.images import encoded, oriented, photo

torch = pytest.importorskip("torch")


class Reader(HTMLParser):
    """Balance of tags, texts of cells, sources of pictures, labels of bars."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.pictures: list[str] = []
        self.bars: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.tags.append(tag)
        if tag == "img":
            self.pictures.append(values["src"] or "")
        else:
            self.open.append(tag)
        if values.get("role") == "img":
            self.bars.append(values["aria-label"] or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def score(dimension: str = "visual_quality", calibrated: float | None = 0.5, **changes: Any) -> critiq.Score:
    values: dict[str, Any] = {
        "dimension": dimension,
        "raw": 1.25,
        "calibrated": calibrated,
        "percentile": 40.0,
        "direction": "higher_is_better",
        "scope": "absolute",
        "model": "tiny",
        "model_version": "1",
        "from_store": False,
    }
    return critiq.Score(**(values | changes))


REPORT = critiq.ImageReport("PNG", 30, 20)
RESULT = critiq.ScoreResult((score(), score("alignment", 0.9)), REPORT)
HOSTILE = "<script>alert(1)</script>&\"'"


@pytest.fixture
def thumbnails() -> Iterator[None]:
    critiq.show_thumbnails(True)
    yield
    critiq.show_thumbnails(None)


def test_scores_are_bars_with_their_numbers() -> None:
    seen = Reader(RESULT._repr_html_())
    assert seen.bars == ["visual_quality 0.500 of 1", "alignment 0.900 of 1"]
    assert {"40.0", "1.2500", "0.900"} <= set(seen.texts)
    assert seen.pictures == []
    bare = critiq.ScoreResult((score(calibrated=None, percentile=None, degraded=True),), REPORT)
    assert "raw 1.2500 (degraded)" in Reader(bare._repr_html_()).texts


def test_text_of_others_is_escaped_everywhere() -> None:
    named = score(HOSTILE, model=HOSTILE)
    result = critiq.ScoreResult((named,), critiq.ImageReport(HOSTILE, 1, 1))
    item = critiq.ItemResult(HOSTILE, result=result)
    failed = critiq.ItemResult("b", error=critiq.InvalidArgument(HOSTILE, field=HOSTILE))
    entries = (
        critiq.RankedImage(0, 1, score=named, others=(named,), reason=HOSTILE),
        critiq.RankedImage(1, 0, error=critiq.TooBusy(HOSTILE)),
    )
    comparison = critiq.DimensionComparison(HOSTILE, "first", named, named)
    for value in (
        result,
        item,
        failed,
        critiq.Results([item, failed]),
        critiq.RankResult(HOSTILE, entries),
        critiq.CompareResult((comparison,), REPORT, REPORT),
    ):
        text = value._repr_html_()
        seen = Reader(text)
        assert "script" not in seen.tags
        assert "<script" not in text
        assert any(HOSTILE in entry for entry in (*seen.texts, *seen.bars))


def test_a_batch_is_a_list_still() -> None:
    results = critiq.Results([critiq.ItemResult(str(at), result=RESULT) for at in range(300)])
    assert isinstance(results, list)
    assert isinstance(results[2:4], critiq.Results)
    assert results[3].id == "3"
    assert [entry.id for entry in results[:2] + results[5:6]] == ["0", "1", "5"]
    seen = Reader(results._repr_html_())
    assert "100 more are not shown" in seen.texts
    assert seen.tags.count("tr") == 201
    assert Reader(critiq.Results()._repr_html_()).tags.count("tr") == 1


def test_data_frames() -> None:
    frame = RESULT.to_pandas()
    assert frame["dimension"].tolist() == ["visual_quality", "alignment"]
    assert frame["calibrated"].tolist() == [0.5, 0.9]
    failed = critiq.ItemResult("b", error=critiq.InvalidArgument("broken", field="image"))
    frame = critiq.Results([critiq.ItemResult("a", result=RESULT), failed]).to_pandas()
    assert frame["id"].tolist() == ["a", "b"]
    assert frame["alignment"][0] == 0.9
    assert np.isnan(frame["alignment_percentile"][1])
    assert frame["error"].tolist() == ["", "INVALID_ARGUMENT: image: broken"]
    ranking = critiq.RankResult("visual_quality", (critiq.RankedImage(1, 1, score=score(), others=(score("x"),)),))
    row = ranking.to_pandas().iloc[0]
    assert (row["rank"], row["index"], row["visual_quality"], row["x_raw"]) == (1, 1, 0.5, 1.25)
    pair = critiq.CompareResult((critiq.DimensionComparison("x", "tie", score(), score()),), REPORT, REPORT)
    assert pair.to_pandas()["first_calibrated"].tolist() == [0.5]


def test_plain_values() -> None:
    assert RESULT.to_dict()["scores"][1]["calibrated"] == 0.9
    failed = critiq.ItemResult("b", error=critiq.TooBusy("full", retry_after=1.5))
    error = {"code": "TOO_BUSY", "message": "full", "field": "", "retry_after_ms": 1500}
    assert critiq.Results([failed]).to_dicts() == [{"id": "b", "result": None, "error": error}]


def test_without_pandas_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        RESULT.to_pandas()


def decoded(url: str) -> Image.Image:
    assert url.startswith("data:image/jpeg;base64,")
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def test_thumbnails_of_whatever_is_at_hand(tmp_path: Path) -> None:
    picture = photo(600, 400)
    array = np.asarray(picture)
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(picture))
    sources = [
        path,
        str(path),
        path.read_bytes(),
        picture,
        array,
        np.float32(array) / 255,
        torch.from_numpy(array.copy()).permute(2, 0, 1),
        (torch.from_numpy(array.copy()).permute(2, 0, 1) / 255).bfloat16(),
    ]
    small = np.asarray(picture.resize((128, 85)), np.float32)
    for url in _notebook._made(sources):
        shown = decoded(url)
        assert shown.size in {(128, 85), (128, 86), (127, 85), (128, 84)}
        assert np.abs(np.asarray(shown.resize((128, 85)), np.float32) - small).mean() < 12
        assert len(url) < 20_000
    assert picture.size == (600, 400)  # the caller's own picture is not shrunk
    grey = decoded(_notebook._made([array[:, :, 0]])[0])
    assert grey.getpixel((3, 3)) == pytest.approx((int(array[12, 12, 0]),) * 3, abs=25)
    assert decoded(_notebook._made([oriented(picture, 6)])[0]).size == (85, 128)
    red = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert decoded(_notebook._made([red])[0]).getpixel((4, 4)) == (255, 255, 255)


def test_no_thumbnail_of_what_is_not_at_hand(tmp_path: Path) -> None:
    file = io.BytesIO(encoded(photo()))
    assert set(_notebook._made([file, critiq.ImageUrl("https://a/b.png"), b"broken", tmp_path / "none.png", 5])) == {""}
    assert file.tell() == 0


def test_thumbnails_keep_to_their_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_notebook, "BUDGET", 0.0)
    assert _notebook._made([photo()]) == ("",)
    monkeypatch.setattr(_notebook, "BUDGET", 60.0)
    assert len(_notebook._made([photo(8, 8)] * 80)) == _notebook.MOST


@pytest.mark.usefixtures("thumbnails")
def test_results_of_calls_show_their_pictures(connect: Callable[..., Any]) -> None:
    pictures = [photo(40, 30, seed) for seed in range(3)]
    client = connect()
    assert len(Reader(client.score(pictures[0])._repr_html_()).pictures) == 1
    batch = client.score_batch([pictures[0], (pictures[1], "a prompt"), critiq.Item(pictures[2])])
    assert len(set(Reader(batch._repr_html_()).pictures)) == 3
    ranked = client.rank(np.stack([np.asarray(picture) for picture in pictures]))
    assert len(Reader(ranked._repr_html_()).pictures) == 3
    assert len(Reader(client.rank(picture for picture in pictures)._repr_html_()).pictures) == 0
    pair = client.compare(pictures[0], pictures[1])
    assert len(Reader(pair._repr_html_()).pictures) == 2
    again = pickle.loads(pickle.dumps(batch))  # noqa: S301
    assert again == batch
    assert Reader(again._repr_html_()).pictures == []
    assert copy.copy(pair) == pair


def test_outside_a_notebook_there_are_none(connect: Callable[..., Any]) -> None:
    assert not _notebook.wanted()
    assert Reader(connect().score(photo(40, 30))._repr_html_()).pictures == []


def test_in_a_notebook_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shell:
        kernel = object()

    class IPython:
        get_ipython = staticmethod(Shell)

    monkeypatch.setitem(sys.modules, "IPython", IPython())
    assert _notebook.wanted()
    critiq.show_thumbnails(False)
    assert not _notebook.wanted()
    critiq.show_thumbnails(None)


def test_a_caller_without_a_notebook_loads_nothing_for_it() -> None:
    code = "import sys, critiq; print({'pandas', 'PIL', 'critiq._notebook_html'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
