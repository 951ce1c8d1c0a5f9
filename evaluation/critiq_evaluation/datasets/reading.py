"""Datasets by name, and recognition of a label file by what is in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from critiq_evaluation.datasets import preferences, published
from critiq_evaluation.datasets.generic import generic
from critiq_evaluation.datasets.tables import read_table
from critiq_evaluation.datasets.types import Dataset, Problem
from critiq_evaluation.errors import EvaluationError


@dataclass(frozen=True)
class Reader:
    """``marks`` are the columns by which a file is recognised; without any it is not."""

    name: str
    summary: str
    read: Callable[[Path, Mapping[str, str] | None], Dataset] = field(repr=False)
    marks: frozenset[str] = frozenset()
    exactly: bool = False
    """Whether a file with further columns is something else."""


def _reader(
    name: str, summary: str, read: Callable[[Path, Mapping[str, str] | None], Dataset], marks: str = ""
) -> Reader:
    columns = frozenset(marks.removesuffix("!").split(","))
    return Reader(name, summary, read, columns if marks else frozenset(), marks.endswith("!"))


READERS: dict[str, Reader] = {
    reader.name: reader
    for reader in (
        _reader("agiqa-3k", "data.csv", published.agiqa_3k, "name,prompt,mos_quality,mos_align"),
        _reader("agiqa-1k", "AIGC_MOS_Zscore.xlsx", published.agiqa_1k, "image,prompt,mos!"),
        _reader(
            "aigiqa-20k",
            "also AIGCQA-20K; info_train, info_val, info_test (.csv or .xlsx), their directory, or data.csv",
            published.aigiqa_20k,
            "name,prompt,mos!",
        ),
        _reader(
            "aigciqa2023",
            "the directory with DATA/MOS/mosz*.mat and AIGCIQA2023_Prompts.xlsx, or AIGCIQA2023.csv",
            published.aigciqa2023,
            "name,prompt,quality_mos,authenticity_mos,correspondence_mos",
        ),
        _reader("aigciqa2023plus", "MINT-IQA's JSON", published.aigciqa2023_plus, "img,prompt,moz1,moz2,moz3"),
        _reader("au-iqa", "a table; columns are found by usual names", published.au_iqa),
        _reader(
            "koniq-10k",
            "koniq10k_scores_and_distributions.csv (1 to 5) or koniq10k_distributions_sets.csv (1 to 100)",
            published.koniq_10k,
            "image_name,c1,c5,mos,sd",
        ),
        _reader("kadid-10k", "dmos.csv; higher is better", published.kadid_10k, "dist_img,ref_img,dmos"),
        _reader("spaq", "MOS and Image attribute scores.xlsx", published.spaq, "image name,mos,brightness,sharpness"),
        _reader("pyiqa", "a meta CSV of pyiqa, with references", published.pyiqa_meta, "ref_name,dist_name,mos"),
        _reader("q-align", "JSON of img_path and gt_score", published.q_align, "gt_score,img_path"),
        _reader("hpdv2", "HPD v2's train.json or test.json: preferences", preferences.hpd_v2),
        _reader("imagereward", "ImageReward's test.json: preferences", preferences.image_reward),
        _reader(
            "pick-a-pic",
            "CSV, JSON lines or Parquet: preferences",
            preferences.pick_a_pic,
            "image_0_uid,image_1_uid,label_0",
        ),
        _reader("generic", "any CSV, XLSX or JSON with a picture and ratings in a row", generic),
    )
}
_ALSO_CALLED = {"aigcqa-20k": "aigiqa-20k", "aigciqa2023+": "aigciqa2023plus", "hpd-v2": "hpdv2", "table": "generic"}
_PREFERENCES = {"hpdv2": ("rank,image_path", "human_preference,file_path"), "imagereward": ("ranking,generations",)}


def read(name_or_file: str | Path, labels: Path | None = None, columns: Mapping[str, str] | None = None) -> Dataset:
    """Reads a dataset. Pictures are in the order of the file; what is wrong with a row is in ``problems``.

    Args:
        name_or_file: one of :data:`READERS`, in any case, with ``labels``; or the label file itself, recognised by its
            columns. :attr:`Dataset.name` says as what.
        labels: the label file, or the directory of a dataset with several.
        columns: which column says what, for tables: ``image``, ``prompt``, ``split``, a group, ``NAME_std``, and every
            other name is a rating; ``scale`` is ``MIN:MAX``, ``MAX:MIN`` where lower is better.

    Raises:
        EvaluationError: no such dataset or file, or one that cannot be used; the message names file, line and what was
            expected.
    """
    if labels is not None:
        reader = READERS.get(_normal(name_or_file))
        if reader is None:
            raise EvaluationError(f"no dataset is called {str(name_or_file)!r}; known are {', '.join(READERS)}")
    else:
        if _normal(name_or_file) in READERS and not Path(name_or_file).exists():
            raise EvaluationError(f"the dataset {name_or_file} needs its label file: --labels FILE")
        labels = Path(name_or_file)
        if not labels.exists():
            raise EvaluationError(
                f"{str(name_or_file)!r} is neither a file nor a dataset; known are {', '.join(READERS)}"
            )
        reader = READERS["generic"] if columns else recognise(labels)
    if not labels.exists():
        raise EvaluationError(f"the label file {labels} does not exist")
    return reader.read(labels, columns)


def _normal(name: str | Path) -> str:
    plain = str(name).lower().replace("_", "-")
    return _ALSO_CALLED.get(plain, plain)


def recognise(labels: Path) -> Reader:
    """The reader for a label file or directory, by what is in it; ``generic`` for a table that is no published one.

    Raises:
        EvaluationError: a directory of no known dataset, or a file that cannot be read.
    """
    if labels.is_dir():
        if any(labels.rglob("mosz1.mat")):
            return READERS["aigciqa2023"]
        if any(labels.glob("info_*")):
            return READERS["aigiqa-20k"]
        raise EvaluationError(
            f"{labels} is a directory of no known dataset (mosz1.mat of AIGCIQA2023, info_*.csv of AIGIQA-20K); give "
            "the label file"
        )
    found = frozenset(column.lower() for column in read_table(labels).columns)
    for name, forms in _PREFERENCES.items():
        if any(set(form.split(",")) <= found for form in forms):
            return READERS[name]
    for reader in READERS.values():
        if reader.marks and (reader.marks == found if reader.exactly else reader.marks <= found):
            return reader
    return READERS["generic"]


def check_pictures(dataset: Dataset, directory: Path) -> tuple[Problem, ...]:
    """The pictures that are not there, each once.

    Raises:
        EvaluationError: ``directory`` is none, or has none of the pictures.
    """
    if not directory.is_dir():
        raise EvaluationError(f"{directory} is not a directory of pictures")
    rated = (picture.image for picture in dataset.pictures)
    preferred = (image for pair in dataset.preferences for image in (pair.better, pair.worse))
    named = list(dict.fromkeys((*rated, *preferred)))
    missing = [name for name in named if not (directory / name).is_file()]
    if not missing:
        return ()
    if missing == named:
        raise EvaluationError(f"{directory} holds none of the pictures of {dataset.name}, for instance {named[0]!r}")
    there = {path.name.lower(): path for path in directory.rglob("*") if path.is_file()}
    found = []
    for name in missing:
        near = there.get(Path(name).name.lower())
        hint = f"; did you mean {near.relative_to(directory).as_posix()}?" if near else ""
        found.append(Problem(name, f"there is no such picture in {directory}{hint}"))
    return tuple(found)
