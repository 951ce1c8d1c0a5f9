"""Between the Python types and the protobuf messages, both ways.

The server writes answers with the ``*_to_proto`` half, the client reads them with the ``*_from_proto`` half; they stand
side by side so that a field added to one is not forgotten in the other (a property test turns each type round).
"""

from __future__ import annotations

import math
from typing import Any, cast, get_args

from critiq import errors, types
from critiq.v1 import models_pb2, scoring_pb2

_DIRECTION = {"higher_is_better": 1, "lower_is_better": 2}
_SCOPE = {"absolute": 1, "within_prompt": 2}
_PREFERENCE = {"first": 1, "second": 2, "tie": 3}
_STATE = {name: number for number, name in enumerate(get_args(types.State), start=1)}
_PRIORITY = {"interactive": 1, "bulk": 2}
_SCALE = {name: number for number, name in enumerate(get_args(types.Scale), start=1)}


def _name(table: dict[str, int], number: int) -> Any:
    return next((name for name, value in table.items() if value == number), next(iter(table)))


def priority_to_proto(priority: types.Priority) -> scoring_pb2.Priority:
    return cast(scoring_pb2.Priority, _PRIORITY[priority])


def priority_from_proto(number: int) -> types.Priority:
    return cast(types.Priority, _name(_PRIORITY, number))


def milliseconds(seconds: float) -> int:
    """Whole milliseconds, rounded up: a hint must not send a caller back too early."""
    return math.ceil(round(seconds * 1000, 3))  # 2.019 s is 2019 ms, although 2.019 * 1000 is a little more


def error_to_proto(error: errors.CritiqError) -> scoring_pb2.Error:
    message = scoring_pb2.Error(code=error.code, message=error.message, field=error.field)
    if error.retry_after is not None:
        message.retry_after_ms = milliseconds(error.retry_after)
    return message


def error_from_proto(message: scoring_pb2.Error) -> errors.CritiqError:
    kind = errors.BY_CODE.get(message.code, errors.CritiqError)
    retry_after = message.retry_after_ms / 1000 if message.HasField("retry_after_ms") else None
    return kind(message.message, field=message.field, retry_after=retry_after)


def score_to_proto(score: types.Score) -> scoring_pb2.Score:
    return scoring_pb2.Score(
        dimension=score.dimension,
        raw=score.raw,
        calibrated=score.calibrated,
        percentile=score.percentile,
        direction=cast(Any, _DIRECTION[score.direction]),
        scope=cast(Any, _SCOPE[score.scope]),
        model=score.model,
        model_version=score.model_version,
        from_store=score.from_store,
        degraded=score.degraded,
        degraded_reason=score.degraded_reason,
    )


def score_from_proto(message: scoring_pb2.Score) -> types.Score:
    return types.Score(
        dimension=message.dimension,
        raw=message.raw,
        calibrated=message.calibrated if message.HasField("calibrated") else None,
        percentile=message.percentile if message.HasField("percentile") else None,
        direction=_name(_DIRECTION, message.direction),
        scope=_name(_SCOPE, message.scope),
        model=message.model,
        model_version=message.model_version,
        from_store=message.from_store,
        degraded=message.degraded,
        degraded_reason=message.degraded_reason,
    )


def image_report_to_proto(report: types.ImageReport) -> scoring_pb2.ImageReport:
    return scoring_pb2.ImageReport(
        format=report.format,
        width=report.width,
        height=report.height,
        orientation_applied=report.orientation_applied,
        alpha_flattened=report.alpha_flattened,
        depth_scaled=report.depth_scaled,
        colour_converted=report.colour_converted,
        first_frame_only=report.first_frame_only,
        resized=report.resized,
    )


def image_report_from_proto(message: scoring_pb2.ImageReport) -> types.ImageReport:
    return types.ImageReport(
        format=message.format,
        width=message.width,
        height=message.height,
        orientation_applied=message.orientation_applied,
        alpha_flattened=message.alpha_flattened,
        depth_scaled=message.depth_scaled,
        colour_converted=message.colour_converted,
        first_frame_only=message.first_frame_only,
        resized=message.resized,
    )


def prompt_report_to_proto(report: types.PromptReport | None) -> scoring_pb2.PromptReport | None:
    if report is None:
        return None
    return scoring_pb2.PromptReport(
        token_count=report.token_count, token_limit=report.token_limit, truncated=report.truncated
    )


def prompt_report_from_proto(message: scoring_pb2.PromptReport) -> types.PromptReport:
    return types.PromptReport(
        token_count=message.token_count, token_limit=message.token_limit, truncated=message.truncated
    )


def result_to_proto(result: types.ScoreResult) -> scoring_pb2.ScoreResponse:
    return scoring_pb2.ScoreResponse(
        scores=[score_to_proto(score) for score in result.scores],
        image=image_report_to_proto(result.image),
        prompt=prompt_report_to_proto(result.prompt),
    )


def result_from_proto(message: scoring_pb2.ScoreResponse) -> types.ScoreResult:
    return types.ScoreResult(
        scores=tuple(score_from_proto(score) for score in message.scores),
        image=image_report_from_proto(message.image),
        prompt=prompt_report_from_proto(message.prompt) if message.HasField("prompt") else None,
    )


def item_to_proto(item: types.ItemResult) -> scoring_pb2.ScoreItemResult:
    if item.result is not None:
        return scoring_pb2.ScoreItemResult(id=item.id, response=result_to_proto(item.result))
    return scoring_pb2.ScoreItemResult(id=item.id, error=error_to_proto(_present(item.error)))


def item_from_proto(message: scoring_pb2.ScoreItemResult) -> types.ItemResult:
    if message.WhichOneof("outcome") == "response":
        return types.ItemResult(message.id, result=result_from_proto(message.response))
    return types.ItemResult(message.id, error=error_from_proto(message.error))


def rank_to_proto(result: types.RankResult) -> scoring_pb2.RankResponse:
    return scoring_pb2.RankResponse(
        dimension=result.dimension,
        ranking=[
            scoring_pb2.RankedImage(
                index=entry.index,
                rank=entry.rank,
                score=score_to_proto(entry.score) if entry.score is not None else None,
                error=error_to_proto(entry.error) if entry.error is not None else None,
                others=[score_to_proto(score) for score in entry.others],
                missed=[
                    scoring_pb2.MissedThreshold(
                        dimension=missed.dimension,
                        scale=cast(Any, _SCALE[missed.scale]),
                        at_least=missed.at_least,
                        value=missed.value,
                    )
                    for missed in entry.missed
                ],
                similar_to=entry.similar_to,
                similarity=entry.similarity,
                reason=entry.reason,
            )
            for entry in result.ranking
        ],
    )


def rank_from_proto(message: scoring_pb2.RankResponse) -> types.RankResult:
    return types.RankResult(message.dimension, tuple(_ranked_from_proto(entry) for entry in message.ranking))


def _ranked_from_proto(entry: scoring_pb2.RankedImage) -> types.RankedImage:
    scored = entry.WhichOneof("outcome") == "score"
    return types.RankedImage(
        entry.index,
        entry.rank,
        score=score_from_proto(entry.score) if scored else None,
        error=None if scored else error_from_proto(entry.error),
        others=tuple(score_from_proto(score) for score in entry.others),
        missed=tuple(
            types.MissedThreshold(
                missed.dimension,
                scale_from_proto(missed.scale),
                missed.at_least,
                missed.value if missed.HasField("value") else None,
            )
            for missed in entry.missed
        ),
        similar_to=entry.similar_to if entry.HasField("similar_to") else None,
        similarity=entry.similarity if entry.HasField("similarity") else None,
        reason=entry.reason,
    )


def threshold_to_proto(threshold: types.Threshold) -> scoring_pb2.Threshold:
    return scoring_pb2.Threshold(
        dimension=threshold.dimension,
        scale=scale_to_proto(threshold.scale),
        at_least=threshold.at_least,
    )


def threshold_from_proto(message: scoring_pb2.Threshold) -> types.Threshold:
    return types.Threshold(message.at_least, message.dimension, scale_from_proto(message.scale))


def scale_to_proto(scale: types.Scale) -> Any:
    return _SCALE[scale]


def scale_from_proto(number: int) -> types.Scale:
    """Calibrated if none is set."""
    return cast(types.Scale, _name(_SCALE, number or _SCALE["calibrated"]))


def compare_to_proto(result: types.CompareResult) -> scoring_pb2.CompareResponse:
    return scoring_pb2.CompareResponse(
        comparisons=[
            scoring_pb2.DimensionComparison(
                dimension=entry.dimension,
                preference=cast(Any, _PREFERENCE[entry.preference]),
                first=score_to_proto(entry.first),
                second=score_to_proto(entry.second),
            )
            for entry in result.comparisons
        ],
        first_image=image_report_to_proto(result.first_image),
        second_image=image_report_to_proto(result.second_image),
        prompt=prompt_report_to_proto(result.prompt),
    )


def compare_from_proto(message: scoring_pb2.CompareResponse) -> types.CompareResult:
    return types.CompareResult(
        comparisons=tuple(
            types.DimensionComparison(
                dimension=entry.dimension,
                preference=_name(_PREFERENCE, entry.preference),
                first=score_from_proto(entry.first),
                second=score_from_proto(entry.second),
            )
            for entry in message.comparisons
        ),
        first_image=image_report_from_proto(message.first_image),
        second_image=image_report_from_proto(message.second_image),
        prompt=prompt_report_from_proto(message.prompt) if message.HasField("prompt") else None,
    )


def prefetch_to_proto(result: types.PrefetchResult) -> scoring_pb2.PrefetchResponse:
    return scoring_pb2.PrefetchResponse(
        accepted=result.accepted, refused=[item_to_proto(item) for item in result.refused]
    )


def prefetch_from_proto(message: scoring_pb2.PrefetchResponse) -> types.PrefetchResult:
    return types.PrefetchResult(message.accepted, tuple(item_from_proto(item) for item in message.refused))


def dimension_to_proto(dimension: types.Dimension) -> models_pb2.Dimension:
    return models_pb2.Dimension(
        name=dimension.name,
        title=dimension.title,
        description=dimension.description,
        minimum=dimension.minimum,
        maximum=dimension.maximum,
        direction=cast(Any, _DIRECTION[dimension.direction]),
        scope=cast(Any, _SCOPE[dimension.scope]),
        needs_prompt=dimension.needs_prompt,
        tolerance=dimension.tolerance,
        reference_population=dimension.reference_population,
        reference_count=dimension.reference_count,
        reference_quantiles=dimension.reference_quantiles,
        has_fallback=dimension.has_fallback,
    )


def dimension_from_proto(message: models_pb2.Dimension) -> types.Dimension:
    return types.Dimension(
        name=message.name,
        title=message.title,
        description=message.description,
        minimum=message.minimum if message.HasField("minimum") else None,
        maximum=message.maximum if message.HasField("maximum") else None,
        direction=_name(_DIRECTION, message.direction),
        scope=_name(_SCOPE, message.scope),
        needs_prompt=message.needs_prompt,
        tolerance=message.tolerance,
        reference_population=message.reference_population,
        reference_count=message.reference_count,
        reference_quantiles=tuple(message.reference_quantiles),
        has_fallback=message.has_fallback,
    )


def model_to_proto(model: types.Model) -> models_pb2.Model:
    return models_pb2.Model(
        name=model.name,
        version=model.version,
        family=model.family,
        title=model.title,
        description=model.description,
        state=cast(Any, _STATE[model.state]),
        state_reason=model.state_reason,
        is_default=model.is_default,
        dimensions=[dimension_to_proto(dimension) for dimension in model.dimensions],
        stages=[
            models_pb2.StageInfo(
                name=stage.name,
                runtime=stage.runtime,
                provider=stage.provider,
                max_batch=stage.max_batch,
                digest=stage.digest,
                cached=stage.cached,
                lmm=stage.lmm,
                instruction=stage.instruction,
                on_miss=stage.on_miss,
            )
            for stage in model.stages
        ],
        licence=models_pb2.Licence(code=model.licence.code, weights=model.licence.weights, data=model.licence.data),
        aliases=model.aliases,
    )


def model_from_proto(message: models_pb2.Model) -> types.Model:
    return types.Model(
        name=message.name,
        version=message.version,
        family=message.family,
        title=message.title,
        description=message.description,
        state=_name(_STATE, message.state),
        state_reason=message.state_reason,
        is_default=message.is_default,
        dimensions=tuple(dimension_from_proto(dimension) for dimension in message.dimensions),
        stages=tuple(
            types.StageInfo(
                name=stage.name,
                runtime=stage.runtime,
                provider=stage.provider,
                max_batch=stage.max_batch,
                digest=stage.digest,
                cached=stage.cached,
                lmm=stage.lmm,
                instruction=stage.instruction,
                on_miss=stage.on_miss,
            )
            for stage in message.stages
        ),
        licence=types.Licence(message.licence.code, message.licence.weights, message.licence.data),
        aliases=tuple(message.aliases),
    )


def _present(error: errors.CritiqError | None) -> errors.CritiqError:
    return error if error is not None else errors.Internal("the item has no outcome")
