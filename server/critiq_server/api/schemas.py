"""JSON bodies of the REST face, as pydantic models: they check requests and make the OpenAPI document."""

from __future__ import annotations

import binascii
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from critiq import types
from critiq.errors import CritiqError, InvalidArgument
from critiq_server.engine.demand import Priority
from critiq_server.images.source import EncodedImage, ImageSource, RawImage, RemoteImage
from critiq_server.queries import Item, Query, Target
from critiq_server.scoring.ranking import Selection


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class RawJson(_Body):
    """Pixels in row-major order, base64; float32 is little-endian, 0..1."""

    base64: str
    shape: list[Annotated[int, Field(ge=0, le=2**32 - 1)]] = Field(
        min_length=3, max_length=3, description="In the order of `layout`; channels 1 or 3."
    )
    dtype: Literal["uint8", "float32"] = "uint8"
    layout: Literal["hwc", "chw"] = "hwc"


class ImageJson(_Body):
    """A picture: a file's bytes, raw pixels, or where the file is. Exactly one must be set."""

    base64: str | None = Field(None, description="A JPEG, PNG, WebP or AVIF file, base64; a data: URL is accepted too.")
    raw: RawJson | None = None
    url: str | None = Field(None, description="An https URL of such a file, where the server's settings allow it.")

    def source(self) -> ImageSource | RemoteImage:
        if sum(entry is not None for entry in (self.base64, self.raw, self.url)) != 1:
            raise InvalidArgument("set exactly one of base64, raw and url", field="image")
        if self.url is not None:
            return RemoteImage(self.url)
        if self.raw is not None:
            raw = self.raw
            return RawImage(_decode(raw.base64, "image.raw.base64"), tuple(raw.shape), raw.dtype, raw.layout)
        return EncodedImage(_decode(self.base64 or "", "image.base64"))


class _Asked(_Body):
    prompt: str = Field("", description="The text that the picture was made from; empty: none.")
    model: str = Field("", description="Default: the server's default model.")
    version: str = Field("", description="Default: the newest loaded version.")
    dimensions: list[str] = Field([], description="Default: every one that the request allows.")
    priority: Literal["interactive", "bulk"] = "interactive"

    def target(self) -> Target:
        return Target(self.model, self.version, tuple(self.dimensions))

    def level(self) -> Priority:
        return Priority[self.priority.upper()]


class ScoreJson(_Asked):
    image: ImageJson

    def query(self) -> Query:
        return Query(self.image.source(), self.prompt, self.target(), self.level())


class ModerateJson(_Body):
    image: ImageJson
    prompt: str = Field("", description="The text that the picture was made from; empty: none.")
    policy: str = Field("", description="Default: the server's default policy.")
    policy_version: str = Field("", description="Default: the newest one.")
    priority: Literal["interactive", "bulk"] = "interactive"

    def query(self) -> Query:
        return Query(self.image.source(), self.prompt, priority=Priority[self.priority.upper()])


class ItemJson(ScoreJson):
    id: str = Field("", description="Echoed in the answer; default: the item's index.")

    def item(self, position: int) -> Item:
        try:
            return Item(self.id or str(position), self.query())
        except CritiqError as error:
            return Item(self.id or str(position), error)


class BatchJson(_Body):
    items: list[ItemJson]


class ThresholdJson(_Body):
    """A value that a picture needs to be ranked; a raw one must be at most this where lower is better."""

    dimension: str = Field("", description="Default: the dimension that is ranked by.")
    scale: types.Scale = "calibrated"
    at_least: float = Field(description="Calibrated 0..1, percentile 0..100, raw in the dimension's own unit.")


class RankJson(_Asked):
    images: list[ImageJson]
    top_k: int = Field(0, ge=0, le=2**32 - 1, description="Ranks only the best so many; 0: all.")
    thresholds: list[ThresholdJson] = Field([], description="A picture must reach all of them to be ranked.")
    diversity: float = Field(0.0, ge=0, le=1, description="0: by score alone; 1: the most different pictures ahead.")
    embedding: str = Field("", description="`stage` or `stage/output` to compare; default: the image encoder.")

    def selection(self) -> Selection:
        thresholds = [types.Threshold(entry.at_least, entry.dimension, entry.scale) for entry in self.thresholds]
        return Selection(self.top_k, tuple(thresholds), self.diversity, self.embedding)


class CompareJson(_Asked):
    first: ImageJson
    second: ImageJson


class ErrorBody(BaseModel):
    """Why there is no answer. docs/errors.md has the table of codes."""

    code: str
    message: str
    field: str
    retry_after_ms: int | None


class ErrorJson(BaseModel):
    error: ErrorBody


class ItemResultJson(BaseModel):
    """Either `result` or `error` is set."""

    id: str
    result: types.ScoreResult | None
    error: ErrorBody | None


class BatchResultJson(BaseModel):
    results: list[ItemResultJson]


class RankedImageJson(BaseModel):
    """`rank` is 1 for the best, 0 if the picture could not be scored, or is not ranked for the `reason`."""

    index: int
    rank: int
    score: types.Score | None
    error: ErrorBody | None
    others: list[types.Score] = Field(description="In the other dimensions that have thresholds.")
    missed: list[types.MissedThreshold]
    similar_to: int | None = Field(description="The picture that this one was placed behind, or left out, for.")
    similarity: float | None = Field(description="Cosine similarity with it.")
    reason: str


class RankResultJson(BaseModel):
    dimension: str
    ranking: list[RankedImageJson]


class PrefetchResultJson(BaseModel):
    """`refused` are those that were not taken on, each with its error."""

    accepted: int
    refused: list[ItemResultJson]


class VerdictJson(BaseModel):
    verdict: types.Verdict


class PoliciesJson(BaseModel):
    policies: list[types.PolicyInfo]


class ModelsJson(BaseModel):
    models: list[types.Model]


def _decode(text: str, field: str) -> bytes:
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise InvalidArgument(f"this is not base64 ({len(text)} characters): {error}", field=field) from error
