from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.parquet
import pytest

from critiq.errors import CritiqError, InvalidArgument
from critiq.types import ItemResult
from critiq_server.bulk.errors import BulkError
from critiq_server.bulk.inputs import Columns, plan_input
from critiq_server.bulk.parts import Part
from critiq_server.bulk.reading import read_rows
from critiq_server.bulk.rows import Row
from critiq_server.bulk.units import UNKNOWN, Plan, Unit
from critiq_server.images.limits import ImageLimits
from tests.support.bulk import samples, write_folder, write_table, write_tar

ENTRIES = samples(10)


def planned(uri: Path | str, at_most: int = 4, columns: Columns = Columns(), prompts: str = "") -> Plan:  # noqa: B008
    return plan_input(str(uri), columns, at_most, prompts)


def rows(plan: Plan, columns: Columns = Columns(), limits: ImageLimits = ImageLimits()) -> list[Row]:  # noqa: B008
    units = [Unit.from_json(unit.to_json()) for unit in plan.units]
    return [row for unit in units for row in read_rows(unit, columns, limits)]


def told(found: list[Row]) -> list[tuple[int, str, object, str]]:
    return [(row.position, row.id, row.image, row.prompt) for row in found]


EXPECTED = [(at, entry.name, entry.data, entry.prompt) for at, entry in enumerate(ENTRIES)]


def test_a_folder_of_pictures_with_prompts_beside_them(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in", ENTRIES)
    (folder / "0001.txt").unlink()
    (folder / "0001.png.json").write_text(json.dumps({"caption": ENTRIES[1].prompt}))
    (folder / ".hidden.png").write_bytes(b"")
    plan = planned(folder)
    assert plan.rows == 10
    assert [(unit.first, unit.rows) for unit in plan.units] == [(0, 4), (4, 4), (8, 2)]
    assert told(rows(plan)) == [(at, f"{name}.png", data, prompt) for at, name, data, prompt in EXPECTED]


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_a_folder_with_a_table_of_prompts(tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path / "in" / "deep", ENTRIES, sidecars=False).parent
    lines = [(f"deep/{entry.name}.png", entry.prompt) for entry in ENTRIES]
    if name.endswith("csv"):
        (folder / name).write_text("file_name,text\n" + "".join(f"{file},{prompt}\n" for file, prompt in lines))
    else:
        (folder / name).write_text("".join(json.dumps({"file_name": a, "text": b}) + "\n" for a, b in lines))
    assert [row.prompt for row in rows(planned(folder))] == [entry.prompt for entry in ENTRIES]


def test_a_bare_name_in_the_table_stands_for_one_picture_and_after_the_file_beside_it(tmp_path: Path) -> None:
    for name in ("1.png", "x/1.png", "x/2.png", "x/3.png", "y/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"picture")
    (tmp_path / "x/1.txt").write_text("beside x/1")
    (tmp_path / "x/2.txt").write_text("beside x/2")
    (tmp_path / "metadata.csv").write_text("file_name,prompt\n1.png,of 1\n2.png,of 2\n3.png,of 3\n")
    prompts = {row.id: row.prompt for row in rows(planned(tmp_path))}
    assert prompts == {
        "1.png": "of 1",
        "x/1.png": "beside x/1",
        "x/2.png": "beside x/2",
        "x/3.png": "of 3",
        "y/1.png": "",
    }
    table = str(tmp_path / "metadata.csv")
    assert [row.prompt for row in rows(planned(f"{tmp_path}/y*/*.png", prompts=table))] == [""], "of 1.png, elsewhere"


def test_a_pattern_of_pictures_finds_their_prompts(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in", ENTRIES)
    plan = planned(f"{folder}/000[1-3].png")
    assert [row.prompt for row in rows(plan)] == [entry.prompt for entry in ENTRIES[1:4]]


@pytest.mark.parametrize("group", [3, 4, 1000])
def test_a_table_is_cut_at_row_groups_or_inside_light_ones(tmp_path: Path, group: int) -> None:
    plan = planned(write_table(tmp_path / "in.parquet", ENTRIES, group=group))
    sizes = {3: [3, 3, 4], 4: [4, 4, 2], 1000: [4, 4, 2]}[group]
    assert [unit.rows for unit in plan.units] == sizes
    assert told(rows(plan)) == EXPECTED


def test_a_heavy_row_group_is_one_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("critiq_server.bulk.tables._LIGHT", 10)
    plan = planned(write_table(tmp_path / "in.parquet", ENTRIES, group=6))
    assert [unit.rows for unit in plan.units] == [6, 4]
    assert told(rows(plan)) == EXPECTED


def test_a_table_of_paths_structs_and_addresses(tmp_path: Path) -> None:
    write_folder(tmp_path / "pictures", ENTRIES, sidecars=False)
    pointers = ["pictures/0000.png", str(tmp_path / "pictures/0001.png"), "https://host/2.png", "pictures/gone.png"]
    write_table(tmp_path / "paths.parquet", ENTRIES[:4], image=pointers)
    found = rows(planned(tmp_path / "paths.parquet"))
    assert [row.image for row in found[:3]] == [ENTRIES[0].data, ENTRIES[1].data, "https://host/2.png"]
    assert isinstance(found[3].image, CritiqError)
    assert found[3].image.code == "NOT_FOUND"
    structs = [{"bytes": ENTRIES[0].data, "path": None}, {"bytes": None, "path": "pictures/0001.png"}, None]
    write_table(tmp_path / "structs.parquet", ENTRIES[:3], image=structs)
    found = rows(planned(tmp_path / "structs.parquet"))
    assert [row.image for row in found[:2]] == [ENTRIES[0].data, ENTRIES[1].data]
    assert "nothing in place of a picture" in str(found[2].image)


def test_named_columns(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    images, words = [entry.data for entry in ENTRIES], [entry.prompt for entry in ENTRIES]
    table = pyarrow.table({"picture data": images, "words": words, "number": range(100, 110)})
    pyarrow.parquet.write_table(table, path)
    with pytest.raises(BulkError, match=r"--image-column; there are picture data, words, number"):
        planned(path)
    columns = Columns("picture data", "words", "number")
    found = rows(planned(path, columns=columns), columns)
    assert told(found) == [(at, str(100 + at), data, prompt) for at, _, data, prompt in EXPECTED]
    with pytest.raises(BulkError, match="there is no column 'gone'"):
        planned(path, columns=Columns("picture data", "gone"))


@pytest.mark.parametrize("form", ["txt", "json"])
def test_a_tar_file_is_cut_by_its_headers(tmp_path: Path, form: str) -> None:
    plan = planned(write_tar(tmp_path / "in.tar", ENTRIES, form=form))
    assert [unit.rows for unit in plan.units] == [4, 4, 2]
    assert plan.units[1].offset > 0
    assert told(rows(plan)) == EXPECTED
    # Each unit can be read by itself.
    assert told(list(read_rows(plan.units[1], Columns(), ImageLimits()))) == EXPECTED[4:8]


def test_a_packed_tar_file_is_one_unit(tmp_path: Path) -> None:
    plan = planned(write_tar(tmp_path / "in.tar.gz", ENTRIES))
    assert [unit.rows for unit in plan.units] == [UNKNOWN]
    assert plan.rows is None
    assert told(rows(plan)) == EXPECTED


def test_members_of_tar_samples_by_name(tmp_path: Path) -> None:
    path = tmp_path / "in.tar"
    members = {
        "a.cond.png": b"condition",
        "a.jpg": b"picture a",
        "a.json": b'{"words": "of a", "uid": 7}',
        "b.txt": b"no picture",
        "c.jpg": b"picture c",
        "c.json": b"not json",
    }
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    columns = Columns("jpg", "words", "uid")
    first, second, third = rows(planned(path), columns)
    assert (first.id, first.image, first.prompt) == ("7", b"picture a", "of a")
    assert "no .jpg among its members" in str(second.image)
    assert "the sample's .json cannot be read" in str(third.image)
    assert rows(planned(path), Columns("cond.png", "words"))[0].image == b"condition"


def test_a_tar_file_without_samples_has_no_rows(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [])
    write_tar(tmp_path / "b.tar", ENTRIES)
    with tarfile.open(tmp_path / "c.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo(".hidden"))
    assert told(rows(planned(tmp_path))) == EXPECTED
    with pytest.raises(BulkError, match="has nothing to score: there are no rows in it"):
        planned(tmp_path / "a.tar")


@pytest.mark.parametrize(("suffix", "share"), [(".tar", 1 / 3), (".tar", 0.4), (".tar.gz", 0.7)])
def test_a_damaged_tar_file_gives_what_can_be_read_and_says_so(tmp_path: Path, suffix: str, share: float) -> None:
    path = write_tar(tmp_path / f"in{suffix}", ENTRIES)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    plan = planned(path)
    found = rows(plan)
    assert plan.rows in (len(found), None)
    assert 3 < len(found) < 10
    assert told(found[:-2]) == EXPECTED[: len(found) - 2]
    assert isinstance(found[-1].image, CritiqError)
    assert "the tar file is damaged" in str(found[-1].image)


def test_garbage_between_members_does_not_end_a_tar_file_silently(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "in.tar", ENTRIES)
    whole = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        start = tar.getmembers()[8].offset
    whole[start : start + 512] = b"x" * 512
    path.write_bytes(whole)
    found = rows(planned(path))
    assert told(found[:4]) == EXPECTED[:4]
    assert "neither a member nor the end mark" in str(found[4].image)


def test_a_table_that_is_none_is_one_row_that_says_so(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", ENTRIES)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 but not really PAR1")
    found = rows(planned(tmp_path))
    assert told(found[:10]) == EXPECTED
    assert (found[10].id, len(found)) == ("b.parquet", 11)
    assert "the Parquet file cannot be read" in str(found[10].image)


@pytest.mark.parametrize("left", [6, 0])
def test_a_table_that_got_shorter_still_has_the_rows_that_were_planned(tmp_path: Path, left: int) -> None:
    path = write_table(tmp_path / "in.parquet", ENTRIES)
    plan = planned(path)
    write_table(path, ENTRIES[:left])
    found = rows(plan)
    assert told(found[:left]) == EXPECTED[:left]
    assert [row.position for row in found] == list(range(10))
    assert all("fewer rows than when the run began" in str(row.image) for row in found[left:])


def test_a_table_damaged_inside_still_has_all_its_rows(tmp_path: Path) -> None:
    path = write_table(tmp_path / "in.parquet", ENTRIES, group=5)
    whole = bytearray(path.read_bytes())
    chunk = pyarrow.parquet.ParquetFile(path).metadata.row_group(1).column(1)
    start = chunk.data_page_offset if chunk.dictionary_page_offset is None else chunk.dictionary_page_offset
    whole[start : start + 40] = b"\xff" * 40
    path.write_bytes(whole)
    found = rows(planned(path, at_most=5))
    assert told(found[:5]) == EXPECTED[:5]
    assert [row.position for row in found] == list(range(10))
    assert all(isinstance(row.image, CritiqError) for row in found[5:])


def test_patterns(tmp_path: Path) -> None:
    for name in ("a-000.tar", "a-001.tar", "a-002.tar", "b.tar", "deep/c.tar"):
        write_tar(tmp_path / name, ENTRIES[:1])

    def shards(pattern: str) -> list[str]:
        return [str(Path(unit.shard).relative_to(tmp_path)) for unit in planned(f"{tmp_path}/{pattern}").units]

    assert shards("a-{000..001}.tar") == ["a-000.tar", "a-001.tar"]
    assert shards("*.tar") == ["a-000.tar", "a-001.tar", "a-002.tar", "b.tar"]
    assert shards("**/[bc].tar") == ["b.tar", "deep/c.tar"]
    assert shards("{b,deep/c}.tar") == ["b.tar", "deep/c.tar"]
    assert shards("a-00?.tar") == ["a-000.tar", "a-001.tar", "a-002.tar"]
    with pytest.raises(BulkError, match="no file matches"):
        planned(f"{tmp_path}/z*.tar")


def test_what_is_no_input(tmp_path: Path) -> None:
    with pytest.raises(BulkError, match="there is no file or folder"):
        planned(tmp_path / "gone")
    with pytest.raises(BulkError, match="has nothing to score"):
        planned(tmp_path)
    write_folder(tmp_path / "mixed", ENTRIES[:1])
    with pytest.raises(BulkError, match="for pictures name their folder"):
        planned(tmp_path / "mixed" / "0000.png")
    write_table(tmp_path / "mixed" / "a.parquet", ENTRIES[:1])
    with pytest.raises(BulkError, match="several kinds of input"):
        planned(tmp_path / "mixed")
    with pytest.raises(BulkError, match="--prompts is for a folder of pictures"):
        planned(tmp_path / "mixed" / "a.parquet", prompts="p.csv")
    with pytest.raises(BulkError, match="cannot reach nosuch://"):
        planned("nosuch://host/in")


def test_the_fingerprint_changes_with_the_input_and_how_it_is_cut(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in", ENTRIES)
    first = planned(folder).fingerprint
    assert planned(folder).fingerprint == first
    assert planned(folder, at_most=5).fingerprint != first
    (folder / "0003.txt").write_text("another prompt")
    second = planned(folder).fingerprint
    assert second != first
    (folder / "0003.png").unlink()
    assert planned(folder).fingerprint not in (first, second)


def test_an_object_store(tmp_path: Path) -> None:
    """There is none here; fsspec's store in memory goes the same way through pyarrow."""
    store = fsspec.filesystem("memory")
    store.rm("/bulk", recursive=True) if store.exists("/bulk") else None
    write_table(tmp_path / "a.parquet", ENTRIES)
    write_tar(tmp_path / "b.tar", ENTRIES)
    store.makedirs("/bulk/pictures")
    for name in ("a.parquet", "b.tar"):
        store.pipe(f"/bulk/{name}", (tmp_path / name).read_bytes())
    for entry in ENTRIES:
        store.pipe(f"/bulk/pictures/{entry.name}.png", entry.data)
        store.pipe(f"/bulk/pictures/{entry.name}.txt", entry.prompt.encode())
    assert told(rows(planned("memory://bulk/a.parquet"))) == EXPECTED
    assert told(rows(planned("memory://bulk/*.parquet"))) == EXPECTED
    plan = planned("memory://bulk/b.tar")
    assert [unit.rows for unit in plan.units] == [UNKNOWN]
    assert told(rows(plan)) == EXPECTED
    found = rows(planned("memory://bulk/pictures"))
    assert [(row.image, row.prompt) for row in found] == [(entry.data, entry.prompt) for entry in ENTRIES]
    with pytest.raises(BulkError, match="there is no file or folder"):
        planned("memory://bulk/gone")


def test_a_picture_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    limits = ImageLimits(max_bytes=50)
    folder = write_folder(tmp_path / "in", ENTRIES[:1])
    path = write_tar(tmp_path / "in.tar", ENTRIES[:1])
    for source in (folder, path):
        (row,) = rows(planned(source), limits=limits)
        assert isinstance(row.image, CritiqError)
        assert row.image.code == "TOO_LARGE"


def write_members(path: Path, *members: tuple[str, bytes, dict[str, str]]) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data, headers in members:
            member = tarfile.TarInfo(name)
            member.size, member.pax_headers = len(data), headers
            tar.addfile(member, io.BytesIO(data))
    return path


def test_a_name_that_comes_again_in_a_tar_file_begins_a_row_of_its_own(tmp_path: Path) -> None:
    path = write_members(tmp_path / "in.tar", ("a.png", b"1", {}), ("a.txt", b"one", {}), ("a.png", b"2", {}))
    plan = planned(path, at_most=1)
    assert plan.rows == 2
    assert told(rows(plan)) == [(0, "a", b"1", "one"), (1, "a", b"2", "")]


@pytest.mark.parametrize(
    "headers", [{"GNU.sparse.map": "a,b", "GNU.sparse.size": "x"}, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}]
)
def test_headers_of_a_tar_file_that_cannot_be_are_a_row_that_says_so(tmp_path: Path, headers: dict[str, str]) -> None:
    path = write_members(tmp_path / "in.tar", ("a.png", b"1", {}), ("b.png", b"no map", headers), ("c.png", b"3", {}))
    found = rows(planned(path))
    assert found[0].image == b"1"
    assert [row.position for row in found] == [0, 1]
    assert "the tar file is damaged" in str(found[1].image)


DEEP = b"[" * 200_000


def test_json_too_deep_to_be_read_fails_its_row_alone(tmp_path: Path) -> None:
    path = write_members(tmp_path / "in.tar", ("a.png", b"1", {}), ("a.json", DEEP, {}), ("b.png", b"2", {}))
    first, second = rows(planned(path))
    assert "the sample's .json cannot be read" in str(first.image)
    assert second.image == b"2"
    folder = write_folder(tmp_path / "pictures", ENTRIES[:2])
    (folder / "0000.txt").unlink()
    (folder / "0000.json").write_bytes(DEEP)
    first, second = rows(planned(folder))
    assert "the file of the prompt" in str(first.image)
    assert second.image == ENTRIES[1].data
    (folder / "metadata.jsonl").write_bytes(DEEP)
    with pytest.raises(BulkError, match=r"metadata\.jsonl, line 1: no JSON"):
        planned(folder)
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_bytes(b"file_name,text\n0000.png," + b"x" * 200_000)
    with pytest.raises(BulkError, match=r"metadata\.csv, line 2: no CSV"):
        planned(folder)


def test_text_of_a_table_that_is_not_utf8_fails_its_row_alone(tmp_path: Path) -> None:
    offsets = pyarrow.array([0, 2, 3], pyarrow.int32()).buffers()[1]
    broken = pyarrow.Array.from_buffers(pyarrow.string(), 2, [None, offsets, pyarrow.py_buffer(b"\xff\xfex")])
    columns = {"id": ["1", "2"], "image": [b"p", b"p"], "caption": ["a", "b"]}
    for name in ("id", "caption"):
        pyarrow.parquet.write_table(pyarrow.table({**columns, name: broken}), tmp_path / f"{name}.parquet")
    assert told(rows(planned(tmp_path / "id.parquet"))) == [(0, "id.parquet#0", b"p", "a"), (1, "x", b"p", "b")]
    first, second = rows(planned(tmp_path / "caption.parquet"))
    assert "the row's text is not UTF-8 (byte 0xff at 0)" in str(first.image)
    assert (second.image, second.prompt) == (b"p", "x")


def test_a_path_too_long_to_be_one_is_a_picture_that_is_not_there(tmp_path: Path) -> None:
    table = pyarrow.table({"path": ["x" * 300]})
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
    assert "the picture's file is not there" in str(rows(planned(tmp_path / "in.parquet"))[0].image)


def test_half_a_character_in_a_name_does_not_end_the_part() -> None:
    part = Part("in.tar", "tiny", "1", ())
    part.add(Row(0, "k\ud800", b""), ItemResult("0", error=InvalidArgument("about k\ud800")))
    (row,) = pyarrow.parquet.read_table(io.BytesIO(part.data())).to_pylist()
    assert (row["id"], row["message"]) == ("k?", "about k?")
