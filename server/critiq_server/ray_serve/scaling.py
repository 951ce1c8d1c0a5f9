"""When Ray adds and removes replicas: by the pictures under way, whichever way they came in."""

from __future__ import annotations

import math
from typing import Any

IN_FLIGHT = "in_flight"
"""What replicas report: pictures accepted and not yet answered, those of direct calls too."""


def by_pictures(context: Any) -> tuple[int, dict[str, Any]]:
    """An autoscaling policy of Ray Serve: as many replicas as leave each ``target_ongoing_requests`` pictures.

    Ray's own policy counts calls through its ingress, a batch of 32 as one, and does not see direct calls at all. Ray
    applies the bounds, factors and delays of ``autoscaling_config`` to what this returns.

    Args:
        context: Ray's ``AutoscalingContext``.
    """
    reported = (context.aggregated_metrics or {}).get(IN_FLIGHT, {})
    under_way = sum(reported.values()) + (context.total_queued_requests or 0.0)
    return math.ceil(under_way / context.config.get_target_ongoing_requests()), {}
