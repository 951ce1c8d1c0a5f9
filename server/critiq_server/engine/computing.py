"""Runs batches of one stage: stacks inputs, looks at what comes out, tries again alone what went wrong together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from critiq.errors import CritiqError, Internal, InvalidArgument
from critiq_server.bundles.model import LoadedStage
from critiq_server.features.records import Features
from critiq_server.runtime.base import Arrays, TensorSpec
from critiq_server.telemetry.faults import internal

Inputs = Mapping[str, NDArray[Any]]
FaultKind = Literal["raised", "wrong_shape", "not_finite", "stalled"]
OnFaults = Callable[[Sequence[FaultKind], bool], None]
"""Told of every batch that did not go well: a kind for each failure, and whether any item came out of it."""


class _WrongShape(Exception):
    """A runtime gave arrays that are not what its graph says."""


def compute_batch(
    stage: LoadedStage, items: Sequence[Inputs], on_batch: OnFaults = lambda faults, sound: None
) -> Sequence[Features | CritiqError]:
    """Runs one batch of one stage in a worker thread.

    Items that fail in company are tried once more alone, so that one bad item never fails its neighbours. Outputs that
    are not finite numbers, or of another shape than the graph says, are failures: they are never passed on. Of a stage
    that has no value for some pictures, values that are not finite are no fault: the picture is refused.
    """
    faults: list[FaultKind] = []
    found = _try(stage, items, faults)
    if len(items) > 1:
        found = [
            _try(stage, [item], faults)[0] if outcome is None else outcome
            for item, outcome in zip(items, found, strict=True)
        ]
    outcomes = [_failed(stage) if outcome is None else outcome for outcome in found]
    on_batch(faults, not all(isinstance(outcome, CritiqError) for outcome in outcomes))
    return outcomes


def _try(
    stage: LoadedStage, items: Sequence[Inputs], faults: list[FaultKind]
) -> Sequence[Features | CritiqError | None]:
    """What became of each item; ``None``: it failed, which the log and ``faults`` say."""
    count = len(items)
    try:
        arrays = {name: np.stack([item[name] for item in items]) for name in items[0]}
        outputs = stage.runtime.run(arrays)
        _check_shapes(stage, outputs, count)
    except CritiqError as error:
        return [error] * count
    except Exception as error:
        faults.append("wrong_shape" if isinstance(error, _WrongShape) else "raised")
        internal(f"stage {stage.spec.name!r} failed on a batch of {count}", error)
        return [None] * count
    sound = _finite_rows(outputs, count)
    undefined = bool(stage.spec.no_value_for)
    if not undefined:
        faults += ["not_finite"] * (count - int(sound.sum()))
    found: list[Features | CritiqError | None] = []
    for row in range(count):
        if sound[row]:  # Copies: a view would keep the whole batch's array alive in the store.
            found.append({name: value[row].copy() for name, value in outputs.items()})
        else:
            found.append(_no_value(stage) if undefined else None)
    return found


def _failed(stage: LoadedStage) -> Internal:
    return Internal(f"stage {stage.spec.name!r} of the model gave no usable values for this picture; it was not scored")


def _no_value(stage: LoadedStage) -> InvalidArgument:
    return InvalidArgument(
        f"stage {stage.spec.name!r} of the model has no value for {stage.spec.no_value_for}, "
        "and this picture is one of them; ask for other dimensions, or another model",
        field="image",
    )


def _check_shapes(stage: LoadedStage, outputs: Arrays, count: int) -> None:
    for name, spec in stage.runtime.outputs.items():
        if name not in outputs:
            raise _WrongShape(f"the output {name!r} is missing")
        shape = outputs[name].shape
        if not shape or shape[0] != count or not _fits(spec, shape[1:]):
            due = [count, *(spec.shape if spec.ranked else ("...",))]
            raise _WrongShape(f"the output {name!r} has shape {list(shape)} instead of {due}")


def _fits(spec: TensorSpec, shape: tuple[int, ...]) -> bool:
    if not spec.ranked:
        return True
    return len(shape) == len(spec.shape) and all(
        due is None or due == length for due, length in zip(spec.shape, shape, strict=True)
    )


def _finite_rows(outputs: Arrays, count: int) -> NDArray[np.bool_]:
    """Which items have only finite values, bool ``[count]``."""
    sound = np.ones(count, bool)
    for value in outputs.values():
        # Extremes are NaN if any value is: two passes without a temporary array clear a good batch.
        if value.dtype.kind != "f" or not value.size or np.isfinite([value.min(), value.max()]).all():
            continue
        sound &= np.isfinite(value.reshape(count, -1)).all(axis=1)
    return sound
