"""The label files of published datasets, each as its authors lay it out.

Layouts, scales and traps are those of the files themselves; where a dataset's file is not public (AU-IQA) its columns
are recognised by their names, or named by the caller.
"""

from __future__ import annotations

import re
from pathlib import Path

from critiq_evaluation.datasets.collecting import Collector, as_number
from critiq_evaluation.datasets.columns import SPLITS, Columns, choose, first, scale_of, sniffed, split_of
from critiq_evaluation.datasets.tables import read_json, read_lines, read_mat, read_table
from critiq_evaluation.datasets.types import Dataset, Scale
from critiq_evaluation.errors import EvaluationError

FIVE = Scale(0.0, 5.0)
_HUNDRED = Scale(0.0, 100.0)
_ONE_TO_FIVE = Scale(1.0, 5.0)


def agiqa_3k(labels: Path, columns: Columns) -> Dataset:
    """AGIQA-3K: ``data.csv`` with quality and alignment, each 0 to 5; the generator and its setting are in the name."""
    table = read_table(_in(labels, "data.csv"))
    table.need("name", "prompt", "mos_quality", "std_quality", "mos_align", "std_align")
    found = Collector("AGIQA-3K", {"quality": FIVE, "alignment": FIVE})
    for row in table.rows:
        cells = row.cells
        generator, _, rest = cells["name"].partition("_")
        groups = {"generator": generator, "setting": rest.rpartition("_")[0], "style": cells.get("style", "")}
        found.picture(
            row.place,
            cells["name"],
            {"quality": cells["mos_quality"], "alignment": cells["mos_align"]},
            prompt=cells["prompt"],
            spread={"quality": cells["std_quality"], "alignment": cells["std_align"]},
            groups=groups,
        )
    return found.dataset()


def agiqa_1k(labels: Path, columns: Columns) -> Dataset:
    """AGIQA-1K: a table of picture and mean opinion, 0 to 5; the columns are found by their names."""
    return _one_rating("AGIQA-1K", labels, columns, FIVE, rating="mos")


def aigiqa_20k(labels: Path, columns: Columns) -> Dataset:
    """AIGIQA-20K (AIGCQA-20K): ``info_train``, ``info_val``, ``info_test`` (CSV or Excel) in a directory, or one file.

    One rating, 0 to 5, of quality and alignment together. The generator is what stands before ``_`` in the name.
    Columns guidance, iterations, resolution or subset become groups where there are any.
    """
    files = [labels]
    if labels.is_dir():
        files = [
            path for path in sorted(labels.iterdir()) if re.fullmatch(r"info_(train|val|test)\.(csv|xlsx)", path.name)
        ]
        if not files:
            raise EvaluationError(f"{labels} holds none of info_train, info_val, info_test as .csv or .xlsx")
    found = Collector("AIGIQA-20K", {"mos": FIVE})
    for path in files:
        table = read_table(path)
        table.need("name", "prompt", "mos")
        part = re.search(r"info_(train|val|test)", path.stem)
        for row in table.rows:
            more = {
                name: row.cells[name]
                for name in ("guidance", "iterations", "resolution", "subset")
                if name in row.cells
            }
            found.picture(
                row.place,
                row.cells["name"],
                {"mos": row.cells["mos"]},
                prompt=row.cells["prompt"],
                groups={"generator": row.cells["name"].partition("_")[0], **more},
                split=SPLITS[part[1]] if part else split_of(row),
            )
    return found.dataset()


def aigciqa2023(labels: Path, columns: Columns) -> Dataset:
    """AIGCIQA2023: the directory with ``DATA/MOS/mosz1..3.mat``, three ratings from 0 to 100.

    They are quality, authenticity and correspondence. Pictures are ``0.png`` on in ``Image/allimg``. Prompts are the third column of the one Excel file below the
    directory, where there is one. The standard deviations are on another scale than the ratings, so they are not read.
    """
    if not labels.is_dir():
        raise EvaluationError(f"AIGCIQA2023 is a directory with DATA/MOS/mosz1.mat and so on; {labels} is none")
    places = sorted(labels.rglob("mosz1.mat"))
    if len(places) != 1:
        raise EvaluationError(f"{labels} should hold DATA/MOS/mosz1.mat once; found {len(places)}")
    names = ("quality", "authenticity", "correspondence")
    arrays = {name: read_mat(places[0].with_name(f"mosz{number}.mat"), "MOSz") for number, name in enumerate(names, 1)}
    counts = {name: len(values) for name, values in arrays.items()}
    if len(set(counts.values())) != 1:
        raise EvaluationError(f"{places[0].parent}: the ratings differ in number: {counts}")
    count = counts["quality"]
    found = Collector("AIGCIQA2023", dict.fromkeys(names, _HUNDRED))
    prompts = [""] * count
    books = sorted(labels.rglob("*.xlsx"))
    if len(books) == 1:
        given = [cells for _, cells in read_lines(books[0])][-count:]  # whether or not a line of titles stands first
        if len(given) == count and len(given[0]) >= 3:
            prompts = [cells[2] for cells in given]
        else:
            found.problem(books[0].name, f"{len(given)} rows of prompts for {count} pictures; no prompts were read")
    else:
        found.problem(str(labels), f"{len(books)} Excel files below it, one is expected; no prompts were read")
    for number in range(count):
        ratings = {name: float(arrays[name][number]) for name in names}
        found.picture(f"entry {number}", f"{number}.png", ratings, prompt=prompts[number])
    return found.dataset()


def aigciqa2023_plus(labels: Path, columns: Columns) -> Dataset:
    """AIGCIQA2023+ as MINT-IQA's JSON files: ``img``, ``prompt``, ``moz1..3``, ratings from 0 to 1.

    The split is taken from the file's name. Its companion CSV (no header, GBK) is read as well: number, prompt,
    picture, three ratings.
    """
    names = ("quality", "authenticity", "correspondence")
    found = Collector("AIGCIQA2023+", dict.fromkeys(names, Scale(0.0, 1.0)))
    split = next((value for key, value in SPLITS.items() if re.search(rf"(^|_){key}$", labels.stem)), "")
    if labels.suffix == ".csv":
        table = read_table(labels, header=("id", "prompt", "img", "moz1", "moz2", "moz3"))
        entries = [(row.place, row.cells) for row in table.rows]
    else:
        objects = read_json(labels)
        entries = [(f"{labels.name}, entry {number}", entry) for number, entry in enumerate(objects)]
    for place, entry in entries:
        missing = [key for key in ("img", "prompt", "moz1", "moz2", "moz3") if key not in entry]
        if missing:
            found.problem(place, f"lacks {', '.join(missing)}; it was left out")
            continue
        ratings = {name: entry[f"moz{number}"] for number, name in enumerate(names, 1)}
        found.picture(place, str(entry["img"]), ratings, prompt=str(entry["prompt"]), split=split)
    return found.dataset()


def au_iqa(labels: Path, columns: Columns) -> Dataset:
    """AU-IQA: a table whose columns are found by their names (picture, rating, type, model), or named by the caller."""
    table = read_table(labels)
    chosen = choose(table, columns)
    known = {
        "type": first(table, columns, "type", ("type", "task", "enhancement_type")),
        "enhancement": first(
            table, columns, "enhancement", ("enhancement", "model", "method", "algorithm", "enhancer")
        ),
    }
    scale = sniffed(table, chosen["rating"], columns)
    found = Collector("AU-IQA", {"quality": scale})
    for row in table.rows:
        groups = {name: row.cells[column] for name, column in known.items() if column}
        found.picture(row.place, row.cells[chosen["image"]], {"quality": row.cells[chosen["rating"]]}, groups=groups)
    return found.dataset()


def koniq_10k(labels: Path, columns: Columns) -> Dataset:
    """KonIQ-10k: ``koniq10k_scores_and_distributions.csv`` (1 to 5) or ``koniq10k_distributions_sets.csv`` (1 to 100).

    Both files call the column ``MOS``, so the largest value tells which it is. Official sets, where the file has them.
    """
    table = read_table(labels)
    table.need("image_name", "MOS")
    values = [value for row in table.rows if (value := as_number(row.cells["MOS"])) is not None]
    hundred = max(values, default=0.0) > 5.0
    found = Collector("KonIQ-10k", {"quality": Scale(1.0, 100.0) if hundred else _ONE_TO_FIVE})
    for row in table.rows:
        spread = {"quality": row.cells["SD"]} if "SD" in table.columns else {}
        found.picture(
            row.place, row.cells["image_name"], {"quality": row.cells["MOS"]}, spread=spread, split=split_of(row, "set")
        )
    return found.dataset()


def kadid_10k(labels: Path, columns: Columns) -> Dataset:
    """KADID-10k: ``dmos.csv``, 1 to 5. The column is called dmos, but higher is better; contents go by ``ref_img``."""
    table = read_table(_in(labels, "dmos.csv"))
    table.need("dist_img", "ref_img", "dmos")
    found = Collector("KADID-10k", {"quality": _ONE_TO_FIVE})
    for row in table.rows:
        cells = row.cells
        parts = re.fullmatch(r"I\d+_(\d+)_(\d+)\.\w+", cells["dist_img"])
        groups = {"reference": cells["ref_img"], **({"distortion": parts[1], "level": parts[2]} if parts else {})}
        variance = as_number(cells.get("var", ""))
        spread = {"quality": variance**0.5} if variance is not None and variance >= 0 else {}
        found.picture(row.place, cells["dist_img"], {"quality": cells["dmos"]}, spread=spread, groups=groups)
    return found.dataset()


def spaq(labels: Path, columns: Columns) -> Dataset:
    """SPAQ: ``MOS and Image attribute scores.xlsx``, 0 to 100, with five attributes beside the quality."""
    table = read_table(labels)
    table.need("Image name", "MOS")
    attributes = [
        name for name in ("Brightness", "Colorfulness", "Contrast", "Noisiness", "Sharpness") if name in table.columns
    ]
    names = {"quality": "MOS", **{name.lower(): name for name in attributes}}
    found = Collector("SPAQ", dict.fromkeys(names, _HUNDRED))
    for row in table.rows:
        found.picture(row.place, row.cells["Image name"], {name: row.cells[column] for name, column in names.items()})
    return found.dataset()


def pyiqa_meta(labels: Path, columns: Columns) -> Dataset:
    """A meta table of the toolbox pyiqa: no-reference ``name,mos``, or full-reference ``ref_name,dist_name,mos``."""
    table = read_table(labels)
    pairs = "dist_name" in table.columns
    table.need("dist_name" if pairs else "name", "mos")
    found = Collector(labels.stem, {"mos": sniffed(table, "mos", columns)})
    for row in table.rows:
        cells = row.cells
        spread = {"mos": cells["std"]} if "std" in cells else {}
        groups = {"reference": cells["ref_name"]} if "ref_name" in cells else {}
        image = cells["dist_name" if pairs else "name"]
        found.picture(row.place, image, {"mos": cells["mos"]}, spread=spread, groups=groups, split=split_of(row))
    return found.dataset()


def q_align(labels: Path, columns: Columns) -> Dataset:
    """A list of ``{"img_path", "gt_score"}``, as Q-Align's evaluation reads it."""
    entries = read_json(labels)
    values = [value for entry in entries if (value := as_number(entry.get("gt_score", ""))) is not None]
    found = Collector(labels.stem, {"mos": scale_of(values, columns)})
    for number, entry in enumerate(entries):
        found.picture(
            f"{labels.name}, entry {number}", str(entry.get("img_path", "")), {"mos": entry.get("gt_score", "")}
        )
    return found.dataset()


def table_of_ones_own(labels: Path, columns: Columns) -> Dataset:
    """Any CSV or Excel table: ``image`` and one column a rating; ``--column WHAT=COLUMN`` says which is which.

    WHAT is image, prompt, split, a rating's name (for instance quality), or spread.NAME of that rating. Columns that
    are not named become groups. A scale is given as scale.NAME=MINIMUM..MAXIMUM, and else taken from the values.
    """
    table = read_table(labels)
    chosen = choose(table, columns)
    special = ("image", "prompt", "split", "rating")
    ratings = {what: column for what, column in columns.items() if what not in special and "." not in what}
    if "rating" in columns or not ratings:
        ratings["mos"] = chosen["rating"]
    spreads = {what.partition(".")[2]: column for what, column in columns.items() if what.startswith("spread.")}
    unknown = [name for name in spreads if name not in ratings]
    if unknown:
        raise EvaluationError(f"spread.{unknown[0]} is of no rating; there is {', '.join(ratings)}")
    table.need(*ratings.values(), *spreads.values())
    prompt, split = (
        first(table, columns, "prompt", ("prompt", "caption")),
        first(table, columns, "split", ("split", "set")),
    )
    taken = {chosen["image"], prompt, split, *ratings.values(), *spreads.values()}
    found = Collector(labels.stem, {name: sniffed(table, column, columns, name) for name, column in ratings.items()})
    for row in table.rows:
        found.picture(
            row.place,
            row.cells[chosen["image"]],
            {name: row.cells[column] for name, column in ratings.items()},
            prompt=row.cells[prompt] if prompt else "",
            spread={name: row.cells[column] for name, column in spreads.items()},
            groups={name: row.cells[name] for name in table.columns if name not in taken},
            split=split_of(row, split) if split else "",
        )
    return found.dataset()


def _one_rating(name: str, labels: Path, columns: Columns, scale: Scale, rating: str) -> Dataset:
    table = read_table(labels)
    chosen = choose(table, columns)
    prompt = first(table, columns, "prompt", ("prompt",))
    found = Collector(name, {rating: scale})
    for row in table.rows:
        words = row.cells[prompt] if prompt else ""
        found.picture(row.place, row.cells[chosen["image"]], {rating: row.cells[chosen["rating"]]}, prompt=words)
    return found.dataset()


def _in(labels: Path, name: str) -> Path:
    return labels / name if labels.is_dir() else labels
