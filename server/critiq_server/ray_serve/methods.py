"""The calls over gRPC that pass Ray's ingress: what any replica answers like any other.

Refused there: what concerns the one process that takes the call. Ray finds a replica's method by a call's last name
alone, so no two of those that pass may share it.
"""

from __future__ import annotations

_SCORING = ("Score", "ScoreBatch", "Rank", "Compare", "Prefetch", "Moderate", "Policies")
_INFERENCE = ("ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelInfer")

UNARY: tuple[str, ...] = (
    *(f"/critiq.v1.Scoring/{name}" for name in _SCORING),
    "/critiq.v1.Models/List",
    "/critiq.v1.Models/Get",
    "/critiq.v1.Models/ListAliases",
    *(f"/inference.GRPCInferenceService/{name}" for name in _INFERENCE),
    "/grpc.health.v1.Health/Check",
)
STREAMS: tuple[str, ...] = ("/critiq.v1.Scoring/ScoreStream", "/inference.GRPCInferenceService/ModelStreamInfer")
ONE_PROCESS: tuple[str, ...] = (
    *(f"/critiq.v1.Jobs/{name}" for name in ("Submit", "Get", "List", "Results", "Cancel")),
    *(f"/critiq.v1.Models/{name}" for name in ("Load", "Unload", "SetAlias", "PromoteAlias", "RollbackAlias")),
    *(f"/critiq.v1.Models/{name}" for name in ("RemoveAlias", "GetShadowReport")),
    "/inference.GRPCInferenceService/RepositoryModelLoad",
    "/inference.GRPCInferenceService/RepositoryModelUnload",
)
"""Of one replica among many: refused."""


def name_of(method: str) -> str:
    """``Score`` of ``/critiq.v1.Scoring/Score``."""
    return method.rpartition("/")[2]
