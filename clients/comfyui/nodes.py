"""Nodes that score, rank, filter and moderate pictures on a critiq server."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import critiq

from .images import blocker, chosen, interrupt, pictures_of
from .server import DEFAULT_URL, calling

CATEGORY = "critiq"
SCALES = ["calibrated", "percentile", "raw"]
AT_ONCE = 8
"""Moderation calls under way at once."""

_IMAGES = ("IMAGE",)
_PROMPT = ("STRING", {"default": "", "multiline": True, "tooltip": "The text that the pictures were made from."})
_DIMENSION = ("STRING", {"default": "", "tooltip": "For instance visual_quality; empty: the model's own choice."})
_COMMON = {
    "model": ("STRING", {"default": "", "tooltip": "Empty: the server's default model."}),
    "server": ("STRING", {"default": DEFAULT_URL, "tooltip": "host:port (gRPC) or http://host:port (REST)."}),
}
_WHEN_NONE = (
    ["skip the nodes behind", "end the run"],
    {"tooltip": "What to do when no picture passes. Skipping leaves the other outputs alone."},
)


class CritiqScore:
    """Scores each picture in one dimension; the report has all of them."""

    CATEGORY = CATEGORY
    FUNCTION = "score"
    RETURN_TYPES = ("IMAGE", "FLOAT", "FLOAT", "STRING")
    RETURN_NAMES = ("images", "scores", "percentiles", "report")
    OUTPUT_IS_LIST = (False, True, True, False)
    OUTPUT_TOOLTIPS = (
        "The pictures as they came.",
        "A number for each picture: calibrated, 0 (worst) to 1 (best); the raw value where a model has no calibration.",
        "0 to 100 for each picture: the share of the reference pictures that it beats; -1 where there is none.",
        "All scores of all pictures as text.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"images": _IMAGES, "prompt": _PROMPT, "dimension": _DIMENSION}, "optional": dict(_COMMON)}

    def score(
        self, images: Any, prompt: str, dimension: str, model: str = "", server: str = DEFAULT_URL
    ) -> dict[str, Any]:
        with calling(server) as client:
            items = [(picture, prompt) for picture in pictures_of(images)]
            results = [entry.unwrap() for entry in client.score_batch(items, model=model)]
            name = dimension.strip() or _headline(client.model(model), prompt)
            scores = [_named(result, name) for result in results]
        values = [score.raw if score.calibrated is None else score.calibrated for score in scores]
        percentiles = [-1.0 if score.percentile is None else score.percentile for score in scores]
        report = "\n".join(f"{at}: {_in_words(result.scores)}" for at, result in enumerate(results))
        return {"ui": {"text": [report]}, "result": (images, values, percentiles, report)}


class CritiqRank:
    """The best pictures of one prompt, best first, with the rest beside them."""

    CATEGORY = CATEGORY
    FUNCTION = "rank"
    RETURN_TYPES = ("IMAGE", "IMAGE", "FLOAT", "STRING")
    RETURN_NAMES = ("best", "rejected", "scores", "report")
    OUTPUT_IS_LIST = (False, False, True, False)
    OUTPUT_TOOLTIPS = (
        "The best pictures, best first.",
        "The others, in the order that they came in.",
        "The calibrated score (or raw, where there is none) of each of the best.",
        "Ranks, scores and reasons as text.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        at_least = {
            "default": "",
            "tooltip": "For instance visual_quality:percentile=20; several: commas.",
        }
        spread = {"default": 0.0, "min": 0.0, "max": 1.0, "step": 0.05, "tooltip": "0: by score alone."}
        return {
            "required": {
                "images": _IMAGES,
                "prompt": _PROMPT,
                "top_k": ("INT", {"default": 1, "min": 0, "max": 4096, "tooltip": "0: all."}),
                "dimension": _DIMENSION,
                "at_least": ("STRING", at_least),
                "diversity": ("FLOAT", spread),
                "when_none": _WHEN_NONE,
            },
            "optional": dict(_COMMON),
        }

    def rank(
        self,
        images: Any,
        prompt: str,
        top_k: int,
        dimension: str,
        at_least: str,
        diversity: float,
        when_none: str,
        model: str = "",
        server: str = DEFAULT_URL,
    ) -> dict[str, Any]:
        with calling(server) as client:
            result = client.rank(
                pictures_of(images),
                prompt,
                top_k=top_k,
                dimension=dimension.strip(),
                at_least=[entry.strip() for entry in at_least.replace("\n", ",").split(",") if entry.strip()],
                diversity=diversity,
                model=model,
            )
            _raise_errors(result)
        best = [entry for entry in result.ranking if entry.rank]
        places = [entry.index for entry in best]
        report = _ranking_in_words(result)
        _check_some(places, when_none, report)
        scores = [entry.score for entry in best if entry.score is not None]
        values = [score.raw if score.calibrated is None else score.calibrated for score in scores]
        rejected = [at for at in range(len(images)) if at not in places]
        outputs = (chosen(images, places), chosen(images, rejected), values or [blocker() or math.nan], report)
        return {"ui": {"text": [report]}, "result": outputs}


class CritiqFilter:
    """Parts pictures by one threshold."""

    CATEGORY = CATEGORY
    FUNCTION = "part"
    RETURN_TYPES = ("IMAGE", "IMAGE", "STRING")
    RETURN_NAMES = ("passed", "failed", "report")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        number = {"default": 0.5, "min": -1e6, "max": 1e6, "step": 0.01}
        tip = "calibrated: 0 to 1; percentile: 0 to 100; raw: the model's own (at most, where lower is better)."
        return {
            "required": {
                "images": _IMAGES,
                "prompt": _PROMPT,
                "dimension": _DIMENSION,
                "scale": (SCALES, {"tooltip": tip}),
                "at_least": ("FLOAT", number),
                "when_none": _WHEN_NONE,
            },
            "optional": dict(_COMMON),
        }

    def part(
        self,
        images: Any,
        prompt: str,
        dimension: str,
        scale: Any,
        at_least: float,
        when_none: str,
        model: str = "",
        server: str = DEFAULT_URL,
    ) -> dict[str, Any]:
        with calling(server) as client:
            threshold = critiq.Threshold(at_least, scale=scale)
            pictures = pictures_of(images)
            result = client.rank(pictures, prompt, dimension=dimension.strip(), at_least=[threshold], model=model)
            _raise_errors(result)
        passed = sorted(entry.index for entry in result.ranking if entry.rank)
        report = _ranking_in_words(result)
        _check_some(passed, when_none, report)
        failed = [at for at in range(len(images)) if at not in passed]
        return {"ui": {"text": [report]}, "result": (chosen(images, passed), chosen(images, failed), report)}


class CritiqModerate:
    """Parts pictures by what a moderation policy of the server decides. Quality is not safety."""

    CATEGORY = CATEGORY
    FUNCTION = "moderate"
    RETURN_TYPES = ("IMAGE", "IMAGE", "IMAGE", "STRING")
    RETURN_NAMES = ("accepted", "review", "rejected", "report")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        policy = {"default": "", "tooltip": "A policy of the server; empty: its default."}
        return {
            "required": {
                "images": _IMAGES,
                "prompt": _PROMPT,
                "policy": ("STRING", policy),
                "when_none": _WHEN_NONE,
            },
            "optional": {"server": _COMMON["server"]},
        }

    def moderate(
        self, images: Any, prompt: str, policy: str, when_none: str, server: str = DEFAULT_URL
    ) -> dict[str, Any]:
        with calling(server) as client, ThreadPoolExecutor(AT_ONCE) as threads:

            def decide(picture: Any) -> critiq.Verdict:
                return client.moderate(picture, prompt, policy=policy.strip())

            verdicts = list(threads.map(decide, pictures_of(images)))
        decided: dict[str, list[int]] = {"accept": [], "review": [], "reject": []}
        for at, verdict in enumerate(verdicts):
            decided[verdict.decision].append(at)
        report = "\n".join(
            f"{at}: {verdict.decision}" + "".join(f"; {reason.message}" for reason in verdict.reasons)
            for at, verdict in enumerate(verdicts)
        )
        _check_some(decided["accept"], when_none, report)
        return {"ui": {"text": [report]}, "result": (*(chosen(images, places) for places in decided.values()), report)}


def _headline(model: critiq.Model, prompt: str) -> str:
    """The dimension that ranking would go by: with a prompt the first that needs one, else the first that does not."""
    wanted = bool(prompt.strip())
    fitting = [dimension.name for dimension in model.dimensions if dimension.needs_prompt == wanted]
    return fitting[0] if fitting else model.dimensions[0].name


def _named(result: critiq.ScoreResult, name: str) -> critiq.Score:
    known = [score.dimension for score in result.scores]
    if name not in known:
        raise RuntimeError(f"there is no dimension {name!r} (some need a prompt); there are {', '.join(known)}")
    return result[name]


def _raise_errors(result: critiq.RankResult) -> None:
    for entry in result.ranking:
        if entry.error is not None:
            raise entry.error


def _check_some(places: Sequence[int], when_none: str, report: str) -> None:
    if not places and when_none == "end the run":
        interrupt(f"critiq: no picture passed\n{report}")


def _ranking_in_words(result: critiq.RankResult) -> str:
    lines = []
    for entry in result.ranking:
        scores = _in_words([score for score in (entry.score, *entry.others) if score is not None])
        reason = f"; {entry.reason}" if entry.reason else ""
        lines.append(f"{f'rank {entry.rank}' if entry.rank else 'not ranked'}: picture {entry.index}, {scores}{reason}")
    return "\n".join(lines)


def _in_words(scores: Sequence[critiq.Score]) -> str:
    parts = []
    for score in scores:
        value = f"raw {score.raw:.4g}" if score.calibrated is None else f"{score.calibrated:.3f}"
        place = "" if score.percentile is None else f" (percentile {score.percentile:.1f})"
        parts.append(f"{score.dimension} {value}{place}{' degraded' if score.degraded else ''}")
    return ", ".join(parts)


NODE_CLASS_MAPPINGS = {
    "CritiqScore": CritiqScore,
    "CritiqRank": CritiqRank,
    "CritiqFilter": CritiqFilter,
    "CritiqModerate": CritiqModerate,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "CritiqScore": "Score (critiq)",
    "CritiqRank": "Rank, best of N (critiq)",
    "CritiqFilter": "Filter by score (critiq)",
    "CritiqModerate": "Moderate by policy (critiq)",
}
