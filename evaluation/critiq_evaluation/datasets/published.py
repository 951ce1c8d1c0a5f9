"""The layouts of published datasets. Columns, scales and directions are those of their own files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from critiq_evaluation.datasets.layouts import SPLITS, Layout, number, to_dataset, with_columns
from critiq_evaluation.datasets.tables import GBK, UTF8, Row, Table, read_table
from critiq_evaluation.datasets.types import Dataset, Problem, RatedPicture, Scale
from critiq_evaluation.errors import EvaluationError

Columns = Mapping[str, str] | None

_FIVE = Scale(0.0, 5.0)
_ACR = Scale(1.0, 5.0)
_HUNDRED = Scale(0.0, 100.0)
_ASPECTS = ("quality", "authenticity", "correspondence")
IMAGE = "image|name|image_name|img_name|filename|file_name|file|img|img_path|image_path|path|image name|dis_name"


def agiqa_1k(labels: Path, columns: Columns) -> Dataset:
    """AGIQA-1K, ``AIGC_MOS_Zscore.xlsx``: ``Image,Prompt,MOS``; one normalised MOS, 0 to 5."""
    layout = Layout("Image", {"mos": "MOS"}, {"mos": _FIVE}, prompt="Prompt")
    return _dataset("agiqa-1k", read_table(labels), layout, columns)


def agiqa_3k(labels: Path, columns: Columns) -> Dataset:
    """AGIQA-3K, ``data.csv``: quality and alignment, 0 to 5; the name starts with generator and setting."""
    layout = Layout(
        image="name",
        ratings={"quality": "mos_quality", "alignment": "mos_align"},
        scales={"quality": _FIVE, "alignment": _FIVE},
        prompt="prompt",
        spread={"quality": "std_quality", "alignment": "std_align"},
        groups={"style": "style"},
        needs_prompt=True,
        from_name=_agiqa_3k_name,
    )
    return _dataset("agiqa-3k", read_table(labels), layout, columns)


def aigiqa_20k(labels: Path, columns: Columns) -> Dataset:
    """AIGIQA-20K (AIGCQA-20K): ``name,prompt,mos``, 0 to 5; one MOS for quality and alignment together.

    ``labels`` is ``info_train``, ``info_val`` or ``info_test`` (.csv, .xlsx), their directory, or ``data.csv``, which
    names no parts.
    """
    layout = Layout(
        image="name",
        ratings={"mos": "mos"},
        scales={"mos": _FIVE},
        prompt="prompt",
        groups={"guidance": "guidance", "iterations": "iterations", "resolution": "resolution"},
        needs_prompt=True,
        from_name=lambda name: {"generator": Path(name).stem.rpartition("_")[0] or Path(name).stem},
    )
    files = _parts_of_aigiqa(labels) if labels.is_dir() else [labels]
    parts = [_dataset("aigiqa-20k", read_table(file), layout, columns, _split_of(file)) for file in files]
    return _joined(parts)


def aigciqa2023(labels: Path, columns: Columns) -> Dataset:
    """AIGCIQA2023, 0 to 100: its directory (``DATA/MOS/mosz*.mat``, ``AIGCIQA2023_Prompts.xlsx``), or its CSV.

    The published standard deviations are of the raw 0..5 ratings, the scores are rescaled z-scores: they do not belong
    together, so the dataset has no spread.
    """
    layout = Layout(
        image="name",
        ratings={what: f"{what}_mos" for what in _ASPECTS},
        scales=dict.fromkeys(_ASPECTS, _HUNDRED),
        prompt="prompt",
        groups={"style": "style", "class": "class"},
        needs_prompt=True,
        from_name=_aigciqa2023_name,
    )
    table = _matlab(labels) if labels.is_dir() else read_table(labels)
    return _dataset("aigciqa2023", table, layout, columns)


def aigciqa2023_plus(labels: Path, columns: Columns) -> Dataset:
    """AIGCIQA2023+, MINT-IQA's JSON: ``moz1..3`` are MOS / 100, so 0 to 1. Its CSV has no header and is GBK.

    For the CSV, ``columns`` says which column is which, by its number from 1.
    """
    layout = Layout(
        image="img",
        ratings={what: f"moz{i}" for i, what in enumerate(_ASPECTS, 1)},
        scales=dict.fromkeys(_ASPECTS, Scale(0.0, 1.0)),
        prompt="prompt",
        needs_prompt=True,
        from_name=_aigciqa2023_name,
    )
    bare = labels.suffix.lower() == ".csv"
    if bare and not columns:
        raise EvaluationError(
            f"{labels} has no header: say which column is which by number, for instance --column image=1 "
            "--column prompt=2 --column quality=3"
        )
    split = _split_of(labels)
    table = read_table(labels, encodings=GBK if bare else UTF8, header=not bare)
    return _dataset("aigciqa2023plus", table, layout, columns, split)


def au_iqa(labels: Path, columns: Columns) -> Dataset:
    """AU-IQA: MOS of 1 to 5; its label file is not described in public, so columns are found by usual names."""
    layout = Layout(
        image=IMAGE,
        ratings={"quality": "mos|quality|score|mean|gt_score"},
        scales={"quality": _ACR},
        groups={
            "type": "type|task|degradation|category|enhancement_type",
            "enhancement": "enhancement|model|method|enhancer|algorithm",
            "reference": "reference|ref|ref_img|source|original",
        },
    )
    return _dataset("au-iqa", read_table(labels), layout, columns)


def koniq_10k(labels: Path, columns: Columns) -> Dataset:
    """KonIQ-10k, both files. ``MOS`` is 1 to 5 in the scores file and 1 to 100 in the sets file: the maximum tells."""
    table = read_table(labels)
    named = (columns or {}).get("quality", "MOS")
    values = [value for row in table.rows if (value := number(row.cells.get(table.column(named), ""))) is not None]
    five = max(values, default=0.0) <= 5.0
    layout = Layout(
        image="image_name",
        ratings={"quality": "MOS"},
        spread={"quality": "SD"} if five else {},
        split="set",
    )
    chosen = with_columns(layout, columns, table)
    scales = {"quality": _ACR if five else Scale(1.0, 100.0)} if "quality" in chosen.ratings else {}
    return to_dataset("koniq-10k", table, replace(chosen, scales={**scales, **chosen.scales}))


def kadid_10k(labels: Path, columns: Columns) -> Dataset:
    """KADID-10k, ``dmos.csv``: what it calls dmos is a MOS of 1 to 5, higher is better. Split it by reference."""
    layout = Layout(
        image="dist_img",
        ratings={"quality": "dmos"},
        scales={"quality": _ACR},
        variance={"quality": "var"},
        groups={"reference": "ref_img"},
        from_name=_kadid_name,
    )
    return _dataset("kadid-10k", read_table(labels), layout, columns)


def spaq(labels: Path, columns: Columns) -> Dataset:
    """SPAQ, ``MOS and Image attribute scores.xlsx``: quality and five attributes, 0 to 100."""
    attributes = ("Brightness", "Colorfulness", "Contrast", "Noisiness", "Sharpness")
    ratings = {"quality": "MOS", **{name.lower(): name for name in attributes}}
    layout = Layout("Image name", ratings, dict.fromkeys(ratings, _HUNDRED))
    return _dataset("spaq", read_table(labels), layout, columns)


def pyiqa_meta(labels: Path, columns: Columns) -> Dataset:
    """pyiqa's meta CSV: ``name,mos,std,split`` or, with references, ``ref_name,dist_name,mos,std``.

    The file tells neither scale nor direction: say ``scale=MIN:MAX``, ``MAX:MIN`` where lower is better.
    """
    layout = Layout(
        image=f"dist_name|{IMAGE}",
        ratings={"quality": "mos|dmos"},
        spread={"quality": "std"},
        groups={"reference": "ref_name"},
        split="split|official_split|split_official",
    )
    return _dataset("pyiqa", read_table(labels), layout, columns)


def q_align(labels: Path, columns: Columns) -> Dataset:
    """Q-Align's JSON: ``[{"img_path": ..., "gt_score": ...}]``; it tells no scale."""
    layout = Layout("img_path|image|img", {"quality": "gt_score"})
    split = _split_of(labels)
    return _dataset("q-align", read_table(labels), layout, columns, split)


def _dataset(name: str, table: Table, layout: Layout, columns: Columns, split: str = "") -> Dataset:
    return to_dataset(name, table, with_columns(layout, columns, table), split)


def _agiqa_3k_name(name: str) -> Mapping[str, str]:
    parts = Path(name).stem.split("_")
    return {"generator": parts[0], "setting": parts[1]} if len(parts) == 3 else {}


def _aigciqa2023_name(name: str) -> Mapping[str, str]:
    """Pictures 0.png to 2399.png: 400 of each of six generators, which the files do not name."""
    stem = Path(name).stem
    return {"generator": f"generator {int(stem) // 400 + 1}"} if stem.isascii() and stem.isdigit() else {}


def _kadid_name(name: str) -> Mapping[str, str]:
    """``I<reference>_<distortion>_<level>.png``."""
    parts = Path(name).stem.split("_")
    return {"distortion": parts[1], "level": parts[2]} if len(parts) == 3 else {}


def _split_of(file: Path) -> str:
    """What the last word of the file's name says: ``info_val.csv`` is validation, ``latest.json`` nothing."""
    return SPLITS.get(re.split(r"[^a-z]", file.stem.lower())[-1], "")


def _parts_of_aigiqa(directory: Path) -> list[Path]:
    found = [
        path
        for part in ("train", "val", "test")
        for ending in (".csv", ".xlsx")
        if (path := directory / f"info_{part}{ending}").is_file()
    ]
    stems = [path.stem for path in found]
    if len(set(stems)) != len(stems):
        raise EvaluationError(f"{directory} has the same part as .csv and as .xlsx; keep one of the two")
    if not found:
        raise EvaluationError(f"{directory} has no info_train, info_val or info_test (.csv or .xlsx)")
    return found


def _joined(parts: list[Dataset]) -> Dataset:
    pictures: dict[str, RatedPicture] = {}
    problems: list[Problem] = []
    for part in parts:
        problems += part.problems
        for picture in part.pictures:
            if picture.image in pictures:
                first = pictures[picture.image].split or "another"
                message = f"the picture is in the {first} part already; the row of {picture.split} is left out"
                problems.append(Problem(picture.image, message))
            else:
                pictures[picture.image] = picture
    return Dataset(parts[0].name, parts[0].scales, tuple(pictures.values()), problems=tuple(problems))


def _matlab(directory: Path) -> Table:
    """The .mat files as a table: 100 prompts, of each 4 pictures by each of 6 generators, generator by generator."""
    scores = {what: _mat(_find(directory, f"mosz{i}.mat"), "MOSz") for i, what in enumerate(_ASPECTS, 1)}
    counts = {what: len(values) for what, values in scores.items()}
    if len(set(counts.values())) != 1:
        raise EvaluationError(f"{directory}: the mosz files have different numbers of pictures: {counts}")
    count = counts[_ASPECTS[0]]
    prompts = read_table(_find(directory, "AIGCIQA2023_Prompts.xlsx"), header=False)
    per_generator = len(prompts.rows) * 4
    if not per_generator or count % per_generator or "3" not in prompts.columns:
        raise EvaluationError(
            f"{prompts.path} has {len(prompts.rows)} rows of {len(prompts.columns)} columns, which do not fit {count} "
            "pictures: expected a row for each prompt (the third column), of which there are 4 pictures a generator"
        )
    rows = []
    for index in range(count):
        cells = {"name": f"{index}.png", "prompt": prompts.rows[index % per_generator // 4].cells["3"]}
        cells |= {f"{what}_mos": repr(values[index]) for what, values in scores.items()}
        rows.append(Row(f"picture {index}", cells))
    return Table(directory, tuple(rows[0].cells), tuple(rows))


def _mat(path: Path, key: str) -> list[float]:
    import scipy.io
    from scipy.io.matlab import MatReadError

    try:
        found = scipy.io.loadmat(path, variable_names=[key])
    except (MatReadError, ValueError, OSError, NotImplementedError, TypeError) as error:
        raise EvaluationError(f"{path} is not a MATLAB file of version 5 to 7: {error}") from error
    if key not in found:
        raise EvaluationError(f"{path} has no array {key!r}")
    return [float(value) for value in found[key].ravel()]


def _find(directory: Path, name: str) -> Path:
    found = sorted(directory.rglob(name))
    if not found:
        raise EvaluationError(f"{directory} has no {name}; expected the directory of AIGCIQA2023 with DATA/MOS in it")
    return found[0]
