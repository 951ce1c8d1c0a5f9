"""Datasets in their published layouts: read as they are, recognised, and all that is wrong with them is said."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from critiq_evaluation.datasets.layouts import Layout, normal_path, to_dataset, why_bad_path
from critiq_evaluation.datasets.reading import READERS, check_pictures, read, recognise
from critiq_evaluation.datasets.tables import Row, Table
from critiq_evaluation.datasets.types import Preference, Scale
from critiq_evaluation.errors import EvaluationError
from tests.support.datasets import LAYOUTS, PROMPTS, write_dataset, write_preferences

MOS = Path(__file__).parents[3].parent / "shared" / "data" / "mos"
AGIQA_3K = "name,prompt,adj1,adj2,style,mos_quality,std_quality,mos_align,std_align\n"


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_read_by_its_name(name: str, tmp_path: Path) -> None:
    written = write_dataset(name, tmp_path)
    dataset = read(name, written.labels)
    assert dataset.problems == ()
    assert check_pictures(dataset, written.images) == ()
    assert len(dataset.pictures) == written.pictures
    ratings = [picture.ratings[written.rating] for picture in dataset.pictures]
    assert ratings == sorted(ratings)
    scale = dataset.scales[written.rating]
    if name in ("pyiqa", "q-align", "generic"):  # their files tell no scale
        assert scale == Scale(ratings[0], ratings[-1])
    else:
        assert ratings[0] == pytest.approx(
            scale.minimum + (scale.maximum - scale.minimum) / (written.pictures + 1), abs=1e-9
        )


def test_layouts_and_readers_are_the_same() -> None:
    assert {*LAYOUTS, "hpdv2", "imagereward", "pick-a-pic"} == set(READERS)


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "au-iqa"])
def test_a_bare_file_is_recognised_by_what_is_in_it(name: str, tmp_path: Path) -> None:
    written = write_dataset(name, tmp_path)
    labels = written.labels
    if labels.is_file():
        labels = labels.rename(labels.with_stem("something"))
    assert recognise(labels).name == name
    assert read(labels).pictures == read(name, labels).pictures


def test_prompts_groups_spreads_and_splits_come_along(tmp_path: Path) -> None:
    agiqa = read("AGIQA-3K", write_dataset("agiqa-3k", tmp_path / "a").labels)
    assert [picture.prompt for picture in agiqa.pictures[:4]] == PROMPTS
    assert dict(agiqa.pictures[1].groups) == {"generator": "sd1.5", "setting": "lowstep"}
    assert dict(agiqa.pictures[0].spread) == {"quality": 0.4, "alignment": 0.5}
    aigiqa = read("AIGCQA_20K", write_dataset("aigiqa-20k", tmp_path / "b").labels)
    assert [picture.split for picture in aigiqa.pictures].count("train") == 6
    assert {picture.split for picture in aigiqa.pictures} == {"train", "validation", "test"}
    assert aigiqa.pictures[1].groups["generator"] == "SDXL"
    koniq = read("koniq-10k", write_dataset("koniq-10k", tmp_path / "c").labels)
    assert [picture.split for picture in koniq.pictures[7:9]] == ["train", "validation"]
    assert koniq.pictures[0].spread == {}  # not on the scale of that file's MOS
    kadid = read("kadid-10k", write_dataset("kadid-10k", tmp_path / "d").labels)
    assert {picture.groups["reference"] for picture in kadid.pictures} == {"I01.png", "I02.png", "I03.png"}
    assert kadid.pictures[0].spread["quality"] == 0.5  # the file holds the variance
    au_iqa = read("au-iqa", write_dataset("au-iqa", tmp_path / "e").labels)
    assert dict(au_iqa.pictures[2].groups) == {"type": "SR", "enhancement": "second"}


def test_aigciqa2023_prompts_repeat_by_picture_and_generator(tmp_path: Path) -> None:
    labels = write_dataset("aigciqa2023", tmp_path).labels
    pictures = read("aigciqa2023", labels).pictures
    assert [picture.prompt for picture in pictures] == ([PROMPTS[0]] * 4 + [PROMPTS[1]] * 4) * 2
    assert not any(picture.spread for picture in pictures)
    (labels / "DATA" / "MOS" / "mosz2.mat").write_bytes(b"nonsense")
    with pytest.raises(EvaluationError, match=r"mosz2\.mat is not a MATLAB file"):
        read("aigciqa2023", labels)


@pytest.mark.parametrize(("stem", "split"), [("mint_test", "test"), ("val", "validation"), ("latest", "")])
def test_a_split_is_told_by_the_last_word_of_a_files_name(stem: str, split: str, tmp_path: Path) -> None:
    path = tmp_path / f"{stem}.json"
    path.write_text('[{"img_path": "a.png", "gt_score": 1}]')
    assert read("q-align", path).pictures[0].split == split


def test_a_column_of_splits_that_are_none_is_one_problem(tmp_path: Path) -> None:
    path = tmp_path / "meta.csv"
    path.write_text("name,mos,std,split\na.png,1,0,0\nb.png,2,0,1\n")
    (problem,) = read("pyiqa", path).problems
    assert problem.message == "split says '0', never train, validation or test; it is ignored"
    path.write_text("name,mos,std,split\na.png,1,0,Training\nb.png,2,0,1\n")
    dataset = read("pyiqa", path)
    assert [picture.split for picture in dataset.pictures] == ["train", ""]
    assert [problem.row for problem in dataset.problems] == ["meta.csv line 3"]


def test_koniqs_two_scales_are_told_apart(tmp_path: Path) -> None:
    official = tmp_path / "koniq10k_scores_and_distributions.csv"
    official.write_text("image_name,c1,c2,c3,c4,c5,c_total,MOS,SD,MOS_zscore\n1.jpg,0,0,25,73,7,105,3.8,0.5,73.2\n")
    dataset = read(official)
    assert (dataset.name, dataset.scales["quality"]) == ("koniq-10k", Scale(1.0, 5.0))
    assert dataset.pictures[0].ratings["quality"] == 3.8
    assert dataset.pictures[0].spread["quality"] == 0.5
    normalised = read("koniq-10k", official, {"quality": "MOS_zscore"})
    assert normalised.scales["quality"] == Scale(1.0, 100.0)
    assert normalised.pictures[0].ratings["quality"] == 73.2


def test_the_companion_of_aigciqa2023_plus_has_no_header_and_is_gbk(tmp_path: Path) -> None:
    path = tmp_path / "AIGCIQA2023_test.csv"
    path.write_bytes("7,一只猫,7.png,0.5,0.25,0.75\n".encode("gbk"))
    with pytest.raises(EvaluationError, match="has no header: say which column is which by number"):
        read("aigciqa2023plus", path)
    dataset = read("aigciqa2023plus", path, {"image": "3", "prompt": "2", "quality": "4", "authenticity": "5"})
    (picture,) = dataset.pictures
    assert (picture.prompt, picture.image, picture.split) == ("一只猫", "7.png", "test")
    assert dict(picture.ratings) == {"quality": 0.5, "authenticity": 0.25}


@pytest.mark.parametrize("name", ["hpdv2", "imagereward", "pick-a-pic"])
def test_preferences(name: str, tmp_path: Path) -> None:
    written = write_preferences(name, tmp_path)
    dataset = read(written.labels)
    assert dataset.name == name
    assert check_pictures(dataset, written.images) == ()
    assert dataset.preferences[0] == Preference("1.png", "0.png", PROMPTS[0])
    assert len(dataset.preferences) == written.pictures
    assert (dataset.pictures, dataset.problems) == ((), ())


def test_several_pictures_ranked_at_once_give_every_pair_but_ties(tmp_path: Path) -> None:
    path = tmp_path / "ranks.json"
    entries = [
        {"prompt": "p", "image_path": ["a", "b", "c"], "rank": [2, 1, 2]},
        {"prompt": "p", "image_path": ["a"], "rank": [1, 2]},
        {"prompt": "p", "image_path": ["a", "../b"], "rank": [1, 2]},
    ]
    path.write_text(json.dumps(entries))
    dataset = read("hpdv2", path)
    assert {(pair.better, pair.worse) for pair in dataset.preferences} == {("b", "a"), ("b", "c")}
    assert [problem.row for problem in dataset.problems] == ["ranks.json entry 2", "ranks.json entry 3", "ranks.json"]
    assert dataset.problems[0].message.startswith("expected image_path (or file_path) and rank")
    assert dataset.problems[1].message.startswith("'../b' is no path below the directory of pictures")
    assert dataset.problems[2].message.startswith("1 pairs are ties")


def test_pairs_of_ones_own_and_other_endings(tmp_path: Path) -> None:
    written = write_preferences("pick-a-pic", tmp_path)
    pairs = read("pick-a-pic", written.labels, {"extension": "jpg"}).preferences
    assert (pairs[0].better, pairs[0].worse) == ("1.jpg", "0.jpg")
    path = tmp_path / "pairs.csv"
    path.write_text("a,b,won,text\nx.png,sub/y.png,1,p\nx.png,z.png,0.5,p\nz.png,y.png,2,p\n")
    dataset = read("pick-a-pic", path, {"first": "a", "second": "b", "label": "won", "prompt": "text"})
    assert dataset.preferences == (Preference("x.png", "sub/y.png", "p"),)
    assert [problem.message for problem in dataset.problems] == [
        "won is '2', expected 0, 0.5 or 1; the pair is left out",
        "1 pairs are ties: people preferred neither; they are left out",
    ]
    with pytest.raises(EvaluationError, match="pairs have first, second, label, prompt and extension"):
        read("pick-a-pic", path, {"image": "a"})


def test_columns_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_bytes(
        '\ufeffpicture;text;beauty;dev;truth;site\r\na.png;"x;y";3;0,5;70;x\r\nb.png;z;9;.1;20;y\r\n'.encode()
    )
    columns = {"image": "picture", "prompt": "text", "quality": "beauty", "quality_std": "dev", "harm": "truth"}
    dataset = read("generic", path, columns | {"scale.quality": "0:10", "scale.harm": "100:0"})
    assert dict(dataset.pictures[0].ratings) == {"quality": 3, "harm": 70}
    assert dataset.pictures[0].prompt == "x;y"
    assert dataset.scales == {"quality": Scale(0, 10), "harm": Scale(0, 100, higher_is_better=False)}
    assert dict(dataset.pictures[1].groups) == {"site": "y"}
    assert dict(dataset.pictures[1].spread) == {"quality": 0.1}
    assert [problem.message for problem in dataset.problems] == [
        "a.png: dev is '0,5', no spread; the spread is left out"
    ]
    assert dataset.name == "generic (image: picture, quality: beauty, harm: truth, prompt: text)"


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"prompt": "txt"}, "has no column 'txt' for prompt; it has file, score, batch"),
        ({"quality": "mos"}, "has no column 'mos' for quality"),
        ({"beauty_std": "score"}, "beauty_std=...: there is no rating 'beauty'; there is mos"),
        ({"scale.beauty": "0:1"}, "scale.beauty=...: there is no rating 'beauty'"),
        ({"scale": "3:3"}, "scale=3:3: expected MIN:MAX"),
    ],
)
def test_a_column_that_cannot_be_meant_is_refused(columns: dict[str, str], words: str, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError) as caught:
        read("generic", write_dataset("generic", tmp_path).labels, columns)
    assert words in str(caught.value)


def test_a_table_without_a_header(tmp_path: Path) -> None:
    path = tmp_path / "bare.csv"
    path.write_text("a.png,3\nb.png,4\n")
    dataset = read(path, columns={"image": "1", "quality": "2", "scale": "1:5"})
    assert [dict(picture.ratings) for picture in dataset.pictures] == [{"quality": 3}, {"quality": 4}]
    assert dataset.scales == {"quality": Scale(1, 5)}


def test_what_is_wrong_with_a_row_is_said(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    rows = [
        "a.jpg,p,,,,1,0.1,1,0.1",
        "a.jpg,p,,,,2,0.1,2,0.1",
        'b.jpg,"p,\nq",,,,7,0.1,2,0.1',
        "c.jpg,p,,,,nan,0.1,,0.1",
        ",p,,,,1,0.1,2,0.1",
        "d.jpg,,,,,1,0.1,2,0.1",
        "e.jpg,p,1",
    ]
    path.write_text(AGIQA_3K + "\n".join(rows))
    dataset = read("agiqa-3k", path)
    assert {picture.image: dict(picture.ratings) for picture in dataset.pictures} == {
        "a.jpg": {"quality": 1, "alignment": 1},
        "b.jpg": {"alignment": 2},
        "d.jpg": {"quality": 1, "alignment": 2},
    }
    assert {(problem.row, problem.message) for problem in dataset.problems} == {
        ("data.csv line 3", "'a.jpg' stands already in data.csv line 2; this row is left out"),
        ("data.csv line 4", "b.jpg: mos_quality is 7, outside its scale 0 to 5; the rating quality is left out"),
        ("data.csv line 6", "c.jpg: mos_quality is 'nan', no finite number; the rating quality is left out"),
        ("data.csv line 6", "c.jpg: mos_align is '', no finite number; the rating alignment is left out"),
        ("data.csv line 6", "c.jpg: no rating is left; the row is left out"),
        ("data.csv line 7", "no picture's name; the row is left out"),
        ("data.csv line 8", "d.jpg: no prompt, against which it was rated; scores that need one will be missing"),
        ("data.csv line 9", "3 cells where the header has 9 columns; the row is left out"),
    }


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("agiqa-3k", b"name,mos\na,1\n", "has no column for quality: expected 'mos_quality', found name, mos"),
        ("agiqa-3k", b"", "is empty; expected a header"),
        ("generic", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "line 1: byte 0x89 is not utf-8 text"),
        ("generic", b"name,mos\na,1\n\xffb,2\n", "line 3: byte 0xff"),
        ("generic", b"a,mos\n1,2\n", "has no column for image"),
        ("generic", b"image,b\n1,2\n", "has no column that is known as a rating; it has image, b"),
        ("generic", b"image,mos,mos\na.png,1,2\n", "line 1: the header has the column 'mos' more than once"),
        ("generic", b'image,mos\n"a.png,1\n', "line 2: not CSV"),
        ("generic", b"image,mos\na.png,good\n", "the first problem: data.csv line 2: a.png: mos is 'good'"),
        ("koniq-10k", b"image_name,score\na,1\n", "has no column for quality: expected 'MOS'"),
        ("aigciqa2023plus.json", b"{", "is not JSON"),
        ("q-align.json", b"[1]", "entry 1: expected an object, found 1"),
        ("q-align.json", b'{"a": 1}', "expected a list of objects, one for each picture, found an object"),
        ("hpdv2.json", b"[]", "found an empty list"),
        ("imagereward.jsonl", b'{"a": 1}\nx', "line 2: not JSON"),
        ("spaq.xlsx", b"Image name,MOS", "is not an .xlsx workbook"),
        ("pick-a-pic.parquet", b"PAR", "is not a Parquet file"),
    ],
)
def test_files_that_are_something_else_are_refused(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    name, _, ending = name.partition(".")
    path = tmp_path / f"data.{ending or 'csv'}"
    path.write_bytes(content)
    with pytest.raises(EvaluationError) as caught:
        read(name, path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    written = write_dataset("generic", tmp_path)
    with pytest.raises(EvaluationError, match="neither a file nor a dataset; known are agiqa-3k, "):
        read("agiqa-5k")
    with pytest.raises(EvaluationError, match="no dataset is called 'agiqa-5k'; known are agiqa-3k, "):
        read("agiqa-5k", written.labels)
    with pytest.raises(EvaluationError, match="the dataset spaq needs its label file"):
        read("spaq")
    with pytest.raises(EvaluationError, match=r"nothing\.xlsx does not exist"):
        read("spaq", tmp_path / "nothing.xlsx")
    with pytest.raises(EvaluationError, match="a directory of no known dataset"):
        read(tmp_path)
    with pytest.raises(EvaluationError, match=r"scale=5: expected MIN:MAX"):
        read("generic", written.labels, {"scale": "5"})
    dataset = read("generic", written.labels)
    (written.images / "3.webp").rename(written.images / "3.WEBP")
    (problem,) = check_pictures(dataset, written.images)
    assert (problem.row, problem.message.endswith("; did you mean 3.WEBP?")) == ("3.webp", True)
    with pytest.raises(EvaluationError, match=r"holds none of the pictures of generic .*, for instance '0\.webp'"):
        check_pictures(dataset, written.labels.parent)
    with pytest.raises(EvaluationError, match="is not a directory of pictures"):
        check_pictures(dataset, written.labels)


@pytest.mark.skipif(not MOS.is_dir(), reason="needs ../shared/data/mos")
@pytest.mark.parametrize(
    ("file", "name", "count"),
    [
        ("agiqa3k_data.csv", "agiqa-3k", 2982),
        ("aigiqa20k_info_train.csv", "aigiqa-20k", 14000),
        ("aigciqa2023plus_test.json", "aigciqa2023plus", 480),
    ],
)
def test_the_published_files(file: str, name: str, count: int) -> None:
    dataset = read(MOS / file)
    assert (dataset.name, len(dataset.pictures), dataset.problems) == (name, count, ())


_CELLS = st.text(max_size=6)


@given(st.lists(st.tuples(_CELLS, st.one_of(_CELLS, st.floats().map(str))), min_size=1, max_size=12))
def test_every_row_becomes_a_picture_or_a_problem(cells: list[tuple[str, str]]) -> None:
    rows = tuple(Row(str(i), {"name": name, "mos": mos}) for i, (name, mos) in enumerate(cells))
    table = Table(Path("any.csv"), ("name", "mos"), rows)
    try:
        dataset = to_dataset("any", table, Layout("name", {"mos": "mos"}, {"mos": Scale(0, 5)}))
    except EvaluationError:
        assert all(why_bad_path(normal_path(name)) or not _fits(mos) for name, mos in cells)
        return
    assert len(dataset.pictures) + len({problem.row for problem in dataset.problems}) == len(rows)
    assert all(0 <= picture.ratings["mos"] <= 5 for picture in dataset.pictures)


def _fits(rating: str) -> bool:
    try:
        return 0 <= float(rating) <= 5
    except ValueError:
        return False


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([".csv", ".json", ".jsonl", ".xlsx", ".parquet"]), st.one_of(st.binary(), st.text().map(str.encode))
)
def test_no_content_of_a_file_is_a_fault_of_ours(tmp_path: Path, ending: str, content: bytes) -> None:
    path = tmp_path / f"any{ending}"
    path.write_bytes(content)
    for name in ("agiqa-3k", "koniq-10k", "pick-a-pic", "imagereward", "generic", ""):
        with suppress(EvaluationError):
            read(name, path) if name else read(path)
