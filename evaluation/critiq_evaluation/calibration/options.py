"""Values of options that more than one command has."""

from __future__ import annotations

import math

from critiq_evaluation.errors import EvaluationError


def scale_option(text: str) -> tuple[float, float]:
    """``LOW,HIGH``. Raises :class:`EvaluationError`."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise EvaluationError(f"--scale {text!r} is not of the form LOW,HIGH, for instance 1,5") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise EvaluationError(f"--scale {text!r}: two finite numbers are due, the lower one first")
    return low, high
