"""Finds the rows of an input and cuts them into units. Reads names, sizes, footers and headers, no pictures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial

from critiq.cli.pictures import SUFFIXES
from critiq_server.bulk import tables, tars
from critiq_server.bulk.errors import BulkError
from critiq_server.bulk.prompts import METADATA, read_metadata
from critiq_server.bulk.storage import Entry, Place, join, place
from critiq_server.bulk.units import Kind, Plan, Unit, fingerprint, ranges

_WILD = re.compile(r"[*?\[{]")
_TARS = (".tar", ".tar.gz", ".tgz")
_FOOTERS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of a table, or members of a tar file's samples, hold what; empty: the first of the usual names."""

    image: str = ""
    prompt: str = ""
    id: str = ""


def plan_input(uri: str, columns: Columns, rows_per_part: int, metadata: str = "") -> Plan:
    """What there is to do for ``uri``: a folder, a Parquet or tar file, a folder or a pattern of such files.

    Args:
        rows_per_part: the most rows of a unit, where the input can be cut there.
        metadata: URI of a table of prompts by picture; empty: the one in the folder, if there is one.

    Raises:
        BulkError: there is nothing to score, or the columns are not there.
    """
    root, entries, chosen = _find(uri)
    kind = _only_kind(uri, chosen)
    if metadata and kind != "pictures":
        raise BulkError(f"--prompts is for a folder of pictures; {uri} has {kind} files, which bring their own")
    used = [entry for entry in chosen if _kind(entry.path or _name(uri)) == kind]
    if kind == "pictures":
        units = list(_picture_units(root, entries, used, rows_per_part, metadata))
        used += [entry for entry in entries if entry.path.endswith((".txt", ".json")) or entry.path in METADATA]
    else:
        shards = sorted(join(root.uri, entry.path) for entry in used)
        units = list(_shard_units(kind, shards, columns, rows_per_part))
    if not units:
        raise BulkError(f"{uri} has nothing to score: there are no rows in it")
    numbered = [replace(unit, number=number) for number, unit in enumerate(units)]
    listed = sorted([entry.path, entry.size, entry.stamp] for entry in used)
    extra = _stamp_of(metadata) if metadata else []
    return Plan(numbered, fingerprint([kind, rows_per_part, asdict(columns), extra, *listed]))


def _find(uri: str) -> tuple[Place, Sequence[Entry], Sequence[Entry]]:
    """A place, all files below it, and those of them that are asked for."""
    if wild := _WILD.search(uri):
        base = uri[: wild.start()].rpartition("/")[0]
        root = place(base or ("/" if uri.startswith("/") else "."))
        matches = re.compile(_expression(uri[len(base) :].lstrip("/"))).fullmatch
        entries = list(root.files())
        chosen = [entry for entry in entries if matches(entry.path)]
        if not chosen:
            raise BulkError(f"no file matches {uri}")
        return root, entries, chosen
    root = place(uri)
    if (entry := root.entry()) is not None:
        if _kind(_name(uri)) in (None, "pictures"):
            raise BulkError(f"{uri} is neither a .parquet nor a .tar file; for pictures name their folder")
        return root, [], [replace(entry, path="")]
    if not root.is_directory():
        raise BulkError(f"there is no file or folder {uri}")
    entries = list(root.files())
    return root, entries, entries


def _only_kind(uri: str, entries: Sequence[Entry]) -> Kind:
    kinds = {kind for entry in entries if (kind := _kind(entry.path or _name(uri)))}
    shards = kinds - {"pictures"}
    if len(shards) > 1 or (shards and len(kinds) > 1):
        raise BulkError(f"{uri} has several kinds of input ({', '.join(sorted(kinds))}); name one: {uri}/*.parquet")
    if not kinds:
        raise BulkError(f"{uri} has nothing to score: no .parquet, .tar or pictures ({', '.join(sorted(SUFFIXES))})")
    return kinds.pop()


def _kind(path: str) -> Kind | None:
    name = path.lower()
    if name.endswith(".parquet"):
        return "parquet"
    if name.endswith(_TARS):
        return "tar"
    return "pictures" if _suffix(name) in SUFFIXES else None


def _picture_units(
    root: Place, entries: Sequence[Entry], chosen: Sequence[Entry], at_most: int, metadata: str
) -> Iterator[Unit]:
    pictures = sorted(entry.path for entry in chosen)
    known = {entry.path for entry in entries}
    table = metadata or next((join(root.uri, name) for name in METADATA if name in known), "")
    prompts = read_metadata(table) if table else {}
    # Of all pictures: what a prompt belongs to does not change with the pattern.
    names = Counter(_base(entry.path) for entry in entries if _kind(entry.path) == "pictures")
    for first, count in ranges(len(pictures), at_most):
        described = tuple(_with_prompt(path, prompts, known, names) for path in pictures[first : first + count])
        yield Unit(0, root.uri, "pictures", first, count, pictures=described)


def _with_prompt(path: str, prompts: dict[str, str], known: set[str], names: Mapping[str, int]) -> tuple[str, str, str]:
    """As in ``Unit.pictures``. ``names``: how many pictures have a name, whatever their folder."""
    if prompt := prompts.get(path, ""):
        return path, prompt, ""
    stem = path[: len(path) - len(_suffix(path))]
    beside = (f"{stem}.txt", f"{path}.txt", f"{stem}.json", f"{path}.json")
    if sidecar := next((name for name in beside if name in known), ""):
        return path, "", sidecar
    return path, prompts.get(_base(path), "") if names[_base(path)] == 1 else "", ""


def _base(path: str) -> str:
    return path.rpartition("/")[2]


def _name(uri: str) -> str:
    return uri.partition("?")[0]


def _suffix(path: str) -> str:
    name = _base(path)
    return name[name.rfind(".") :] if "." in name[1:] else ""


def _shard_units(kind: Kind, shards: Sequence[str], columns: Columns, at_most: int) -> Iterator[Unit]:
    if kind == "parquet":
        work = partial(tables.cut, image=columns.image, prompt=columns.prompt, id_=columns.id, at_most=at_most)
    else:
        work = partial(tars.cut, at_most=at_most)
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        for units in pool.map(work, shards):
            yield from units


def _stamp_of(uri: str) -> list[object]:
    entry = place(uri).entry()
    return [] if entry is None else [entry.size, entry.stamp]


def _expression(pattern: str) -> str:
    """A regular expression for ``*`` and ``?`` (within a name), ``**/``, ``[...]``, ``{a,b}`` and ``{000..127}``."""
    return "".join(map(_translated, re.findall(r"\*\*/|\[!?[^\]]+\]|\{[^{}]*\}|.", pattern)))


def _translated(token: str) -> str:
    simple = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    if token in simple:
        return simple[token]
    if len(token) > 1 and token[0] == "[":
        negated, members = token[1] == "!", token[1:-1].removeprefix("!")
        escaped = members.replace("\\", "\\\\").replace("[", "\\[").replace("^", "\\^")
        return f"[{'^' if negated else ''}{escaped}]"
    if len(token) > 1 and token[0] == "{":
        return f"(?:{'|'.join(map(re.escape, _choices(token[1:-1])))})"
    return re.escape(token)


def _choices(text: str) -> list[str]:
    steps = re.fullmatch(r"(\d+)\.\.(\d+)", text)
    if steps is None:
        return text.split(",")
    return [str(number).zfill(len(steps[1])) for number in range(int(steps[1]), int(steps[2]) + 1)]
