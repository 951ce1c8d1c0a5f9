"""Pictures and prompts from directories, JSON lines, Parquet and WebDataset, each item with a name of its own."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from critiq.cli.exits import UsageError
from critiq_exporters.features.sources import Item, Shard, open_source


def told(path: Path, prompts: Path | None = None) -> dict[str, tuple[str, bytes]]:
    items: list[Item] = list(open_source(path, prompts).items())
    assert len({item.name for item in items}) == len(items)
    return {item.name: (item.prompt, item.load()) for item in items}


def test_a_directory_with_prompts_beside_the_pictures(tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "b.png").write_bytes(b"B")
    (tmp_path / "in" / "deep" / "a.JPG").write_bytes(b"A")
    (tmp_path / "in" / "deep" / "a.txt").write_text("a cat\n")
    (tmp_path / "in" / "notes.md").write_text("no picture")
    assert told(tmp_path / "in") == {"b.png": ("", b"B"), "deep/a.JPG": ("a cat", b"A")}
    assert open_source(tmp_path / "in").count == 2


def test_a_directory_with_prompts_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"A")
    (tmp_path / "prompts.csv").write_text("file,prompt\na.png,a dog\n")
    assert told(tmp_path / "in", tmp_path / "prompts.csv") == {"a.png": ("a dog", b"A")}


def test_json_lines(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"A")
    rows = [
        {"file": "a.png", "prompt": "one"},
        {"image": "a.png", "caption": "two"},
        {"path": "a.png", "id": 7},
    ]
    (tmp_path / "list.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    assert told(tmp_path / "list.jsonl") == {"a.png": ("one", b"A"), "a.png#2": ("two", b"A"), "7": ("", b"A")}
    assert open_source(tmp_path / "list.jsonl").count == 3


def test_a_file_that_is_missing_is_that_items_error_alone(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text('{"file": "gone.png"}')
    (item,) = open_source(tmp_path / "list.jsonl").items()
    with pytest.raises(OSError, match=r"gone\.png"):
        item.load()


def test_a_prompt_that_cannot_be_read_is_that_items_error_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(name.encode())
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe no text \xff")
    first, second = open_source(tmp_path).items()
    assert second.load() == b"b"
    with pytest.raises(OSError, match=r"cannot read .*a\.txt"):
        first.load()


def test_parquet_in_the_hugging_face_form(tmp_path: Path) -> None:
    images = [{"bytes": b"A", "path": "x/a.png"}, {"bytes": b"B", "path": None}, {"bytes": None, "path": "c.png"}]
    table = pyarrow.table({"image": images, "text": ["one", None, "three"], "score": [1, 2, 3]})
    pyarrow.parquet.write_table(table, tmp_path / "set.parquet")
    (tmp_path / "c.png").write_bytes(b"C")
    assert told(tmp_path / "set.parquet") == {
        "x/a.png": ("one", b"A"),
        "row 1": ("", b"B"),
        "c.png": ("three", b"C"),
    }
    assert open_source(tmp_path / "set.parquet").count == 3


@pytest.mark.parametrize("column", ["image", "file_name"])
def test_parquet_with_bytes_or_paths(tmp_path: Path, column: str) -> None:
    (tmp_path / "a.png").write_bytes(b"A")
    pictures = [b"A", b"A"] if column == "image" else ["a.png", "a.png"]
    table = pyarrow.table({column: pictures, "prompt": ["one", "two"], "id": [4, 5]})
    pyarrow.parquet.write_table(table, tmp_path / "set.parquet")
    assert told(tmp_path / "set.parquet") == {"4": ("one", b"A"), "5": ("two", b"A")}


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def test_web_dataset(tmp_path: Path) -> None:
    members = {
        "000.jpg": b"A",
        "000.txt": b"one\n",
        "000.json": b'{"prompt": "not this"}',
        "001.json": b'{"caption": "two", "size": 3}',
        "001.seg.png": b"B",
        "deep/002.webp": b"C",
        "003.txt": b"a prompt without a picture",
    }
    assert told(tar(tmp_path / "set.tar", members)) == {
        "000.jpg": ("one", b"A"),
        "001.seg.png": ("two", b"B"),
        "deep/002.webp": ("", b"C"),
    }


@pytest.mark.parametrize("length", [7680, 8000, 9000])  # between two members, in a header, in a file
def test_a_tar_file_cut_short_gives_what_it_holds_and_says_so(tmp_path: Path, length: int) -> None:
    path = tar(tmp_path / "set.tar", {f"{number}.png": b"x" * 2000 for number in range(10)})
    path.write_bytes(path.read_bytes()[:length])
    *items, last = open_source(path).items()
    assert [item.load() for item in items] == [b"x" * 2000] * 3
    assert last.name == "set.tar"
    with pytest.raises(OSError, match="cut short or damaged"):
        last.load()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("set.zip", b"", r"\.jsonl, \.parquet, \.tar"),
        ("set.parquet", b"no parquet", "no Parquet file"),
        ("set.jsonl", b"{", "line 1: no JSON"),
        ("set.jsonl", b"[1]", "line 1: no JSON object"),
        ("set.jsonl", b'{"url": "x"}', "line 1: none of the entries file"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError, match=message):
        list(open_source(tmp_path / name).items())


def test_parquet_without_pictures_says_what_there_is(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"url": ["x"]}), tmp_path / "set.parquet")
    with pytest.raises(UsageError, match="there are url"):
        open_source(tmp_path / "set.parquet")


def test_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no pictures"):
        open_source(tmp_path)
    with pytest.raises(UsageError, match="no such file"):
        open_source(tmp_path / "gone")
    (tmp_path / "list.jsonl").write_text("")
    with pytest.raises(UsageError, match="--prompts"):
        open_source(tmp_path / "list.jsonl", tmp_path / "prompts.csv")


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0", "1/2/3", "-1/2", ""])
def test_a_shard_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="1/4 to 4/4"):
        Shard.parse(text)


def test_shards_are_even_and_each_item_is_in_one() -> None:
    shards = [Shard.parse(f"{number}/4") for number in (1, 2, 3, 4)]
    counts = Counter[int]()
    for number in range(4000):
        holders = [shard.number for shard in shards if shard.holds(f"picture {number}.png")]
        assert len(holders) == 1
        counts.update(holders)
    assert min(counts.values()) > 900
    assert shards[0].holds("0.png")  # for ever: machines must agree
