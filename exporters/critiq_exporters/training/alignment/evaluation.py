"""Judges the exported alignment graphs, through onnxruntime, on pictures that were kept out of training."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from tokenizers import Tokenizer
from tqdm import tqdm

from critiq_exporters.training.alignment import data
from critiq_exporters.training.alignment.export import TOKENIZER_FILE, Graphs
from critiq_exporters.training.alignment.negatives import ONE_ELEMENT, Kind, hard_negative, other_prompt
from critiq_exporters.training.alignment.text import MAX_TOKENS, encode, pad

SHORT_PROMPT_WORDS = 20
_CAPTIONS = 2
"""Captions judged of a picture that has more."""
_Pair = tuple[int, int]


@dataclass(frozen=True)
class Figure:
    """One measured value, over how many cases, and the value that was aimed at (``None``: only reported)."""

    name: str
    value: float
    count: int
    target: float | None = None

    def __str__(self) -> str:
        aimed = "" if self.target is None else f"  (aim: {self.target:.2f})"
        return f"{self.name:<62} {self.value:7.3f}  n = {self.count}{aimed}"


class Judge:
    """Scores pairs of pictures and prompts; every picture and every prompt is encoded once."""

    def __init__(self, bundle_dir: Path):
        self.graphs = Graphs(bundle_dir)
        self._tokenizer = Tokenizer.from_file(str(bundle_dir / TOKENIZER_FILE))

    def pictures(self, pictures: Sequence[data.Picture]) -> list[NDArray[np.float32]]:
        """What the image stage says of each picture, stacked: regions, picture embedding."""
        views = (data.pixels(picture)[None] for picture in tqdm(pictures, desc="pictures", mininterval=5))
        return _stack([self.graphs.images(np.ascontiguousarray(view)) for view in views])

    def prompts(self, texts: Sequence[str]) -> list[NDArray[np.float32]]:
        """What the text stage says of each prompt, stacked, with room for ``MAX_TOKENS`` tokens."""
        rows = []
        for ids in encode(self._tokenizer, texts):
            tokens, weights, *rest = self.graphs.texts(*(part.numpy() for part in pad([ids])))
            room = MAX_TOKENS - tokens.shape[1]
            rows.append([np.pad(tokens, ((0, 0), (0, room), (0, 0))), np.pad(weights, ((0, 0), (0, room))), *rest])
        return _stack(rows)

    def scores(
        self, pictures: list[NDArray[np.float32]], prompts: list[NDArray[np.float32]], pairs: Sequence[_Pair]
    ) -> NDArray[np.float32]:
        """Alignment of (picture number, prompt number) pairs."""
        answers = []
        for start in range(0, len(pairs), 256):
            chosen = np.array(pairs[start : start + 256])
            longest = max(8, int((prompts[1][chosen[:, 1]] > 0).sum(1).max()))
            tokens, weights, *rest = (part[chosen[:, 1]] for part in prompts)
            text = [tokens[:, :longest], weights[:, :longest], *rest]
            answers.append(self.graphs.align([part[chosen[:, 0]] for part in pictures], text))
        return np.concatenate(answers)


def evaluate(bundle_dir: Path, data_dir: Path, *, seed: int = 0, limit: int | None = None) -> list[Figure]:
    """Every figure of the alignment part; ``limit`` keeps only that many pictures of each set (for tests)."""
    judge = Judge(bundle_dir)
    photographs = data.captioned_photographs(data_dir)
    generated = data.generated_pictures(data_dir)
    sets = {
        "flickr8k dev": [p for p in photographs if p.part == "validation"][:limit],
        "coco_mini test half": [p for p in photographs if p.source == "coco_mini" and p.part == "test"][:limit],
        "AI, short prompts (drawbench_sd)": [p for p in generated if _is_short(p)][:limit],
        "AI, long prompts": [p for p in generated if not _is_short(p)][:limit],
    }
    figures = []
    for name, pictures in sets.items():
        if not pictures:
            continue
        aims = (0.85, 0.65) if name.startswith("AI") else (0.95, 0.70)
        figures += _pairwise(judge, pictures, name, aims, seed)
    figures += _retrieval(judge, sets["flickr8k dev"])
    return figures + _speed(judge)


def _pairwise(
    judge: Judge, pictures: Sequence[data.Picture], name: str, aims: tuple[float, float], seed: int
) -> list[Figure]:
    """Own prompt against others of the same set (5 a prompt) and against itself with one element changed."""
    rng = random.Random(seed)
    features = judge.pictures(pictures)
    texts = sorted({caption for picture in pictures for caption in picture.captions[:_CAPTIONS]})
    number = {text: index for index, text in enumerate(texts)}
    encoded = judge.prompts(texts)
    own = [(row, number[caption]) for row, picture in enumerate(pictures) for caption in picture.captions[:_CAPTIONS]]
    right = judge.scores(features, encoded, own)

    wrong_pairs = []
    for row, _ in own:
        foreign = [other_prompt(texts, number[pictures[row].captions[0]], rng) for _ in range(5)]
        wrong_pairs += [(row, number[text]) for text in foreign if text not in pictures[row].captions]
    margins = _margins(judge, features, encoded, own, right, wrong_pairs)
    figures = [Figure(f"{name}: own above another's", float((margins > 0).mean()), len(margins), aims[0])]

    kinds: list[tuple[str, tuple[Kind, ...], float | None]] = [("one element changed", ONE_ELEMENT, aims[1])]
    kinds += [(f"{kind} changed", (kind,), None) for kind in ("object", "colour", "count", "relation", "swap", "word")]
    for title, chosen, aim in kinds:
        edits = [(pair, hard_negative(texts[pair[1]], rng, chosen)) for pair in own]
        applicable = [(index, pair, edit.text) for index, (pair, edit) in enumerate(edits) if edit is not None]
        if len(applicable) < 10:
            continue
        changed = judge.prompts([text for _, _, text in applicable])
        wrong = judge.scores(features, changed, [(pair[0], place) for place, (_, pair, _) in enumerate(applicable)])
        better = right[[index for index, _, _ in applicable]] > wrong
        figures.append(Figure(f"{name}: own above {title}", float(better.mean()), len(better), aim))
    return figures


def _margins(
    judge: Judge, features: list[NDArray[np.float32]], encoded: list[NDArray[np.float32]], own: Sequence[_Pair],
    right: NDArray[np.float32], wrong_pairs: Sequence[_Pair],
) -> NDArray[np.float32]:  # fmt: skip
    """Right minus wrong score; each wrong pair is set against the first right one of its picture."""
    first: dict[int, float] = {}
    for (row, _), score in zip(own, right, strict=True):
        first.setdefault(row, float(score))
    wrong = judge.scores(features, encoded, wrong_pairs)
    return np.array([first[row] for row, _ in wrong_pairs], np.float32) - wrong


def _retrieval(judge: Judge, pictures: Sequence[data.Picture]) -> list[Figure]:
    """Recall among one caption of each picture, and how scores follow a foreign caption's likeness to the own ones."""
    features = judge.pictures(pictures)
    encoded = judge.prompts([picture.captions[0] for picture in pictures])
    count = len(pictures)
    matrix = np.stack(
        [
            judge.scores(features, encoded, [(row, column) for column in range(count)])
            for row in tqdm(range(count), desc="retrieval", mininterval=5)
        ]
    )
    ranks = (matrix > matrix.diagonal()[:, None]).sum(1)
    recall = [
        Figure(f"flickr8k dev: recall@{k} among {count} captions", float((ranks < k).mean()), count) for k in (1, 5, 10)
    ]
    words = [set(" ".join(picture.captions).lower().split()) for picture in pictures]
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(0, count, (2, min(20000, count * count)))
    overlap = [_overlap(words[a], pictures[b].captions[0]) for a, b in zip(rows, columns, strict=True)]
    follows = float(spearmanr(matrix[rows, columns], overlap).statistic)
    return [*recall, Figure("flickr8k dev: Spearman with word overlap to own captions", follows, len(rows))]


def _overlap(own: set[str], caption: str) -> float:
    words = set(caption.lower().split())
    return len(words & own) / max(1, len(words))


def _speed(judge: Judge) -> list[Figure]:
    """Milliseconds on one CPU core, median of 30 calls with one picture and one prompt of 24 tokens."""
    image = np.zeros((1, data.SIDE, data.SIDE, 3), np.uint8)
    ids = np.full((1, 24), 5, np.int64)
    seen, read = judge.graphs.images(image), judge.graphs.texts(ids, np.ones_like(ids))
    calls: dict[str, Callable[[], object]] = {
        "image stage, ms": lambda: judge.graphs.images(image),
        "text stage (24 tokens), ms": lambda: judge.graphs.texts(ids, np.ones_like(ids)),
        "head, ms": lambda: judge.graphs.align(seen, read),
    }
    return [Figure(name, _median_ms(call), 30) for name, call in calls.items()]


def _median_ms(call: Callable[[], object]) -> float:
    times = []
    for _ in range(35):
        start = perf_counter()
        call()
        times.append((perf_counter() - start) * 1000.0)
    return float(np.median(times[5:]))


def _is_short(picture: data.Picture) -> bool:
    return len(picture.captions[0].split()) <= SHORT_PROMPT_WORDS


def _stack(rows: list[list[NDArray[np.float32]]]) -> list[NDArray[np.float32]]:
    return [np.concatenate(parts) for parts in zip(*rows, strict=True)]
