"""critiq scores AI-generated images: how good a picture looks and how well it matches its prompt.

>>> import critiq
>>> with critiq.Client("localhost:8001") as client:
...     result = client.score("photo.jpg", prompt="a red bicycle against a wall")
>>> result["visual_quality"].calibrated
"""

from critiq._notebook import show_thumbnails
from critiq._requests import Item
from critiq.async_client import AsyncClient
from critiq.client import Client
from critiq.errors import (
    Cancelled,
    CritiqError,
    DeadlineExceeded,
    FailedPrecondition,
    FeaturesMissing,
    Internal,
    InvalidArgument,
    ModelNotLoaded,
    NotFound,
    PermissionDenied,
    Stopping,
    TooBusy,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from critiq.images import ImageInput, ImageUrl
from critiq.jobs import Job, JobCallback, JobResult
from critiq.types import (
    CompareResult,
    Dimension,
    DimensionComparison,
    ImageReport,
    ItemResult,
    Licence,
    MissedThreshold,
    Model,
    PolicyInfo,
    PrefetchResult,
    PromptReport,
    RankedImage,
    RankResult,
    Reason,
    Results,
    Score,
    ScoreResult,
    StageInfo,
    Threshold,
    Verdict,
)

__all__ = [
    "AsyncClient",
    "Cancelled",
    "Client",
    "CompareResult",
    "CritiqError",
    "DeadlineExceeded",
    "Dimension",
    "DimensionComparison",
    "FailedPrecondition",
    "FeaturesMissing",
    "ImageInput",
    "ImageReport",
    "ImageUrl",
    "Internal",
    "InvalidArgument",
    "Item",
    "ItemResult",
    "Job",
    "JobCallback",
    "JobResult",
    "Licence",
    "MissedThreshold",
    "Model",
    "ModelNotLoaded",
    "NotFound",
    "PermissionDenied",
    "PolicyInfo",
    "PrefetchResult",
    "PromptReport",
    "RankResult",
    "RankedImage",
    "Reason",
    "Results",
    "Score",
    "ScoreResult",
    "StageInfo",
    "Stopping",
    "Threshold",
    "TooBusy",
    "TooLarge",
    "Unauthenticated",
    "Unavailable",
    "Verdict",
    "show_thumbnails",
]
