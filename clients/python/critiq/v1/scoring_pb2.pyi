from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIORITY_UNSPECIFIED: _ClassVar[Priority]
    PRIORITY_INTERACTIVE: _ClassVar[Priority]
    PRIORITY_BULK: _ClassVar[Priority]

class Direction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DIRECTION_UNSPECIFIED: _ClassVar[Direction]
    DIRECTION_HIGHER_IS_BETTER: _ClassVar[Direction]
    DIRECTION_LOWER_IS_BETTER: _ClassVar[Direction]

class Scope(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SCOPE_UNSPECIFIED: _ClassVar[Scope]
    SCOPE_ABSOLUTE: _ClassVar[Scope]
    SCOPE_WITHIN_PROMPT: _ClassVar[Scope]

class Preference(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PREFERENCE_UNSPECIFIED: _ClassVar[Preference]
    PREFERENCE_FIRST: _ClassVar[Preference]
    PREFERENCE_SECOND: _ClassVar[Preference]
    PREFERENCE_TIE: _ClassVar[Preference]

class Decision(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DECISION_UNSPECIFIED: _ClassVar[Decision]
    DECISION_ACCEPT: _ClassVar[Decision]
    DECISION_REVIEW: _ClassVar[Decision]
    DECISION_REJECT: _ClassVar[Decision]
PRIORITY_UNSPECIFIED: Priority
PRIORITY_INTERACTIVE: Priority
PRIORITY_BULK: Priority
DIRECTION_UNSPECIFIED: Direction
DIRECTION_HIGHER_IS_BETTER: Direction
DIRECTION_LOWER_IS_BETTER: Direction
SCOPE_UNSPECIFIED: Scope
SCOPE_ABSOLUTE: Scope
SCOPE_WITHIN_PROMPT: Scope
PREFERENCE_UNSPECIFIED: Preference
PREFERENCE_FIRST: Preference
PREFERENCE_SECOND: Preference
PREFERENCE_TIE: Preference
DECISION_UNSPECIFIED: Decision
DECISION_ACCEPT: Decision
DECISION_REVIEW: Decision
DECISION_REJECT: Decision

class Image(_message.Message):
    __slots__ = ("encoded", "raw", "url")
    ENCODED_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    encoded: bytes
    raw: RawImage
    url: str
    def __init__(self, encoded: _Optional[bytes] = ..., raw: _Optional[_Union[RawImage, _Mapping]] = ..., url: _Optional[str] = ...) -> None: ...

class RawImage(_message.Message):
    __slots__ = ("data", "shape", "dtype", "layout")
    class DType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        DTYPE_UNSPECIFIED: _ClassVar[RawImage.DType]
        DTYPE_UINT8: _ClassVar[RawImage.DType]
        DTYPE_FLOAT32: _ClassVar[RawImage.DType]
    DTYPE_UNSPECIFIED: RawImage.DType
    DTYPE_UINT8: RawImage.DType
    DTYPE_FLOAT32: RawImage.DType
    class Layout(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        LAYOUT_UNSPECIFIED: _ClassVar[RawImage.Layout]
        LAYOUT_HWC: _ClassVar[RawImage.Layout]
        LAYOUT_CHW: _ClassVar[RawImage.Layout]
    LAYOUT_UNSPECIFIED: RawImage.Layout
    LAYOUT_HWC: RawImage.Layout
    LAYOUT_CHW: RawImage.Layout
    DATA_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    shape: _containers.RepeatedScalarFieldContainer[int]
    dtype: RawImage.DType
    layout: RawImage.Layout
    def __init__(self, data: _Optional[bytes] = ..., shape: _Optional[_Iterable[int]] = ..., dtype: _Optional[_Union[RawImage.DType, str]] = ..., layout: _Optional[_Union[RawImage.Layout, str]] = ...) -> None: ...

class Target(_message.Message):
    __slots__ = ("model", "version", "dimensions")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    dimensions: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., dimensions: _Optional[_Iterable[str]] = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("image", "prompt", "target", "priority")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    image: Image
    prompt: str
    target: Target
    priority: Priority
    def __init__(self, image: _Optional[_Union[Image, _Mapping]] = ..., prompt: _Optional[str] = ..., target: _Optional[_Union[Target, _Mapping]] = ..., priority: _Optional[_Union[Priority, str]] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("scores", "image", "prompt")
    SCORES_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    scores: _containers.RepeatedCompositeFieldContainer[Score]
    image: ImageReport
    prompt: PromptReport
    def __init__(self, scores: _Optional[_Iterable[_Union[Score, _Mapping]]] = ..., image: _Optional[_Union[ImageReport, _Mapping]] = ..., prompt: _Optional[_Union[PromptReport, _Mapping]] = ...) -> None: ...

class Score(_message.Message):
    __slots__ = ("dimension", "raw", "calibrated", "percentile", "direction", "scope", "model", "model_version", "from_store", "degraded", "degraded_reason")
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    CALIBRATED_FIELD_NUMBER: _ClassVar[int]
    PERCENTILE_FIELD_NUMBER: _ClassVar[int]
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    FROM_STORE_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_REASON_FIELD_NUMBER: _ClassVar[int]
    dimension: str
    raw: float
    calibrated: float
    percentile: float
    direction: Direction
    scope: Scope
    model: str
    model_version: str
    from_store: bool
    degraded: bool
    degraded_reason: str
    def __init__(self, dimension: _Optional[str] = ..., raw: _Optional[float] = ..., calibrated: _Optional[float] = ..., percentile: _Optional[float] = ..., direction: _Optional[_Union[Direction, str]] = ..., scope: _Optional[_Union[Scope, str]] = ..., model: _Optional[str] = ..., model_version: _Optional[str] = ..., from_store: bool = ..., degraded: bool = ..., degraded_reason: _Optional[str] = ...) -> None: ...

class ImageReport(_message.Message):
    __slots__ = ("format", "width", "height", "orientation_applied", "alpha_flattened", "depth_scaled", "colour_converted", "first_frame_only", "resized")
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    ORIENTATION_APPLIED_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FLATTENED_FIELD_NUMBER: _ClassVar[int]
    DEPTH_SCALED_FIELD_NUMBER: _ClassVar[int]
    COLOUR_CONVERTED_FIELD_NUMBER: _ClassVar[int]
    FIRST_FRAME_ONLY_FIELD_NUMBER: _ClassVar[int]
    RESIZED_FIELD_NUMBER: _ClassVar[int]
    format: str
    width: int
    height: int
    orientation_applied: bool
    alpha_flattened: bool
    depth_scaled: bool
    colour_converted: bool
    first_frame_only: bool
    resized: bool
    def __init__(self, format: _Optional[str] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., orientation_applied: bool = ..., alpha_flattened: bool = ..., depth_scaled: bool = ..., colour_converted: bool = ..., first_frame_only: bool = ..., resized: bool = ...) -> None: ...

class PromptReport(_message.Message):
    __slots__ = ("token_count", "token_limit", "truncated")
    TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_LIMIT_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    token_count: int
    token_limit: int
    truncated: bool
    def __init__(self, token_count: _Optional[int] = ..., token_limit: _Optional[int] = ..., truncated: bool = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "message", "field", "retry_after_ms")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    field: str
    retry_after_ms: int
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., field: _Optional[str] = ..., retry_after_ms: _Optional[int] = ...) -> None: ...

class ScoreItem(_message.Message):
    __slots__ = ("id", "request")
    ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    id: str
    request: ScoreRequest
    def __init__(self, id: _Optional[str] = ..., request: _Optional[_Union[ScoreRequest, _Mapping]] = ...) -> None: ...

class ScoreItemResult(_message.Message):
    __slots__ = ("id", "response", "error")
    ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    id: str
    response: ScoreResponse
    error: Error
    def __init__(self, id: _Optional[str] = ..., response: _Optional[_Union[ScoreResponse, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class ScoreBatchRequest(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[ScoreItem]
    def __init__(self, items: _Optional[_Iterable[_Union[ScoreItem, _Mapping]]] = ...) -> None: ...

class ScoreBatchResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[ScoreItemResult]
    def __init__(self, results: _Optional[_Iterable[_Union[ScoreItemResult, _Mapping]]] = ...) -> None: ...

class PrefetchResponse(_message.Message):
    __slots__ = ("accepted", "refused")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    accepted: int
    refused: _containers.RepeatedCompositeFieldContainer[ScoreItemResult]
    def __init__(self, accepted: _Optional[int] = ..., refused: _Optional[_Iterable[_Union[ScoreItemResult, _Mapping]]] = ...) -> None: ...

class RankRequest(_message.Message):
    __slots__ = ("prompt", "images", "target", "priority", "top_k", "thresholds", "diversity", "embedding")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    THRESHOLDS_FIELD_NUMBER: _ClassVar[int]
    DIVERSITY_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    images: _containers.RepeatedCompositeFieldContainer[Image]
    target: Target
    priority: Priority
    top_k: int
    thresholds: _containers.RepeatedCompositeFieldContainer[Threshold]
    diversity: float
    embedding: str
    def __init__(self, prompt: _Optional[str] = ..., images: _Optional[_Iterable[_Union[Image, _Mapping]]] = ..., target: _Optional[_Union[Target, _Mapping]] = ..., priority: _Optional[_Union[Priority, str]] = ..., top_k: _Optional[int] = ..., thresholds: _Optional[_Iterable[_Union[Threshold, _Mapping]]] = ..., diversity: _Optional[float] = ..., embedding: _Optional[str] = ...) -> None: ...

class Threshold(_message.Message):
    __slots__ = ("dimension", "scale", "at_least")
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    AT_LEAST_FIELD_NUMBER: _ClassVar[int]
    dimension: str
    scale: Reason.Scale
    at_least: float
    def __init__(self, dimension: _Optional[str] = ..., scale: _Optional[_Union[Reason.Scale, str]] = ..., at_least: _Optional[float] = ...) -> None: ...

class RankResponse(_message.Message):
    __slots__ = ("dimension", "ranking")
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    RANKING_FIELD_NUMBER: _ClassVar[int]
    dimension: str
    ranking: _containers.RepeatedCompositeFieldContainer[RankedImage]
    def __init__(self, dimension: _Optional[str] = ..., ranking: _Optional[_Iterable[_Union[RankedImage, _Mapping]]] = ...) -> None: ...

class RankedImage(_message.Message):
    __slots__ = ("index", "rank", "score", "error", "others", "missed", "similar_to", "similarity", "reason")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    OTHERS_FIELD_NUMBER: _ClassVar[int]
    MISSED_FIELD_NUMBER: _ClassVar[int]
    SIMILAR_TO_FIELD_NUMBER: _ClassVar[int]
    SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    index: int
    rank: int
    score: Score
    error: Error
    others: _containers.RepeatedCompositeFieldContainer[Score]
    missed: _containers.RepeatedCompositeFieldContainer[MissedThreshold]
    similar_to: int
    similarity: float
    reason: str
    def __init__(self, index: _Optional[int] = ..., rank: _Optional[int] = ..., score: _Optional[_Union[Score, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., others: _Optional[_Iterable[_Union[Score, _Mapping]]] = ..., missed: _Optional[_Iterable[_Union[MissedThreshold, _Mapping]]] = ..., similar_to: _Optional[int] = ..., similarity: _Optional[float] = ..., reason: _Optional[str] = ...) -> None: ...

class MissedThreshold(_message.Message):
    __slots__ = ("dimension", "scale", "at_least", "value")
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    AT_LEAST_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    dimension: str
    scale: Reason.Scale
    at_least: float
    value: float
    def __init__(self, dimension: _Optional[str] = ..., scale: _Optional[_Union[Reason.Scale, str]] = ..., at_least: _Optional[float] = ..., value: _Optional[float] = ...) -> None: ...

class CompareRequest(_message.Message):
    __slots__ = ("prompt", "first", "second", "target", "priority")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    SECOND_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    first: Image
    second: Image
    target: Target
    priority: Priority
    def __init__(self, prompt: _Optional[str] = ..., first: _Optional[_Union[Image, _Mapping]] = ..., second: _Optional[_Union[Image, _Mapping]] = ..., target: _Optional[_Union[Target, _Mapping]] = ..., priority: _Optional[_Union[Priority, str]] = ...) -> None: ...

class CompareResponse(_message.Message):
    __slots__ = ("comparisons", "first_image", "second_image", "prompt")
    COMPARISONS_FIELD_NUMBER: _ClassVar[int]
    FIRST_IMAGE_FIELD_NUMBER: _ClassVar[int]
    SECOND_IMAGE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    comparisons: _containers.RepeatedCompositeFieldContainer[DimensionComparison]
    first_image: ImageReport
    second_image: ImageReport
    prompt: PromptReport
    def __init__(self, comparisons: _Optional[_Iterable[_Union[DimensionComparison, _Mapping]]] = ..., first_image: _Optional[_Union[ImageReport, _Mapping]] = ..., second_image: _Optional[_Union[ImageReport, _Mapping]] = ..., prompt: _Optional[_Union[PromptReport, _Mapping]] = ...) -> None: ...

class DimensionComparison(_message.Message):
    __slots__ = ("dimension", "preference", "first", "second")
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    PREFERENCE_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    SECOND_FIELD_NUMBER: _ClassVar[int]
    dimension: str
    preference: Preference
    first: Score
    second: Score
    def __init__(self, dimension: _Optional[str] = ..., preference: _Optional[_Union[Preference, str]] = ..., first: _Optional[_Union[Score, _Mapping]] = ..., second: _Optional[_Union[Score, _Mapping]] = ...) -> None: ...

class ModerateRequest(_message.Message):
    __slots__ = ("image", "prompt", "policy", "policy_version", "priority")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    image: Image
    prompt: str
    policy: str
    policy_version: str
    priority: Priority
    def __init__(self, image: _Optional[_Union[Image, _Mapping]] = ..., prompt: _Optional[str] = ..., policy: _Optional[str] = ..., policy_version: _Optional[str] = ..., priority: _Optional[_Union[Priority, str]] = ...) -> None: ...

class ModerateResponse(_message.Message):
    __slots__ = ("verdict",)
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    verdict: Verdict
    def __init__(self, verdict: _Optional[_Union[Verdict, _Mapping]] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("decision", "reasons", "policy", "policy_version", "scores", "image", "prompt")
    DECISION_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    decision: Decision
    reasons: _containers.RepeatedCompositeFieldContainer[Reason]
    policy: str
    policy_version: str
    scores: _containers.RepeatedCompositeFieldContainer[Score]
    image: ImageReport
    prompt: PromptReport
    def __init__(self, decision: _Optional[_Union[Decision, str]] = ..., reasons: _Optional[_Iterable[_Union[Reason, _Mapping]]] = ..., policy: _Optional[str] = ..., policy_version: _Optional[str] = ..., scores: _Optional[_Iterable[_Union[Score, _Mapping]]] = ..., image: _Optional[_Union[ImageReport, _Mapping]] = ..., prompt: _Optional[_Union[PromptReport, _Mapping]] = ...) -> None: ...

class Reason(_message.Message):
    __slots__ = ("rule", "decision", "code", "message", "kind", "dimension", "scale", "value", "threshold", "upper", "flag")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[Reason.Kind]
        KIND_BELOW: _ClassVar[Reason.Kind]
        KIND_ABOVE: _ClassVar[Reason.Kind]
        KIND_BETWEEN: _ClassVar[Reason.Kind]
        KIND_FLAG: _ClassVar[Reason.Kind]
        KIND_MISSING: _ClassVar[Reason.Kind]
    KIND_UNSPECIFIED: Reason.Kind
    KIND_BELOW: Reason.Kind
    KIND_ABOVE: Reason.Kind
    KIND_BETWEEN: Reason.Kind
    KIND_FLAG: Reason.Kind
    KIND_MISSING: Reason.Kind
    class Scale(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        SCALE_UNSPECIFIED: _ClassVar[Reason.Scale]
        SCALE_RAW: _ClassVar[Reason.Scale]
        SCALE_CALIBRATED: _ClassVar[Reason.Scale]
        SCALE_PERCENTILE: _ClassVar[Reason.Scale]
    SCALE_UNSPECIFIED: Reason.Scale
    SCALE_RAW: Reason.Scale
    SCALE_CALIBRATED: Reason.Scale
    SCALE_PERCENTILE: Reason.Scale
    RULE_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    UPPER_FIELD_NUMBER: _ClassVar[int]
    FLAG_FIELD_NUMBER: _ClassVar[int]
    rule: str
    decision: Decision
    code: str
    message: str
    kind: Reason.Kind
    dimension: str
    scale: Reason.Scale
    value: float
    threshold: float
    upper: float
    flag: str
    def __init__(self, rule: _Optional[str] = ..., decision: _Optional[_Union[Decision, str]] = ..., code: _Optional[str] = ..., message: _Optional[str] = ..., kind: _Optional[_Union[Reason.Kind, str]] = ..., dimension: _Optional[str] = ..., scale: _Optional[_Union[Reason.Scale, str]] = ..., value: _Optional[float] = ..., threshold: _Optional[float] = ..., upper: _Optional[float] = ..., flag: _Optional[str] = ...) -> None: ...

class PoliciesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PoliciesResponse(_message.Message):
    __slots__ = ("policies",)
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    policies: _containers.RepeatedCompositeFieldContainer[Policy]
    def __init__(self, policies: _Optional[_Iterable[_Union[Policy, _Mapping]]] = ...) -> None: ...

class Policy(_message.Message):
    __slots__ = ("name", "version", "description", "model", "model_version", "dimensions", "rules", "default", "missing", "is_default")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    IS_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    description: str
    model: str
    model_version: str
    dimensions: _containers.RepeatedScalarFieldContainer[str]
    rules: _containers.RepeatedScalarFieldContainer[str]
    default: Decision
    missing: Decision
    is_default: bool
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., description: _Optional[str] = ..., model: _Optional[str] = ..., model_version: _Optional[str] = ..., dimensions: _Optional[_Iterable[str]] = ..., rules: _Optional[_Iterable[str]] = ..., default: _Optional[_Union[Decision, str]] = ..., missing: _Optional[_Union[Decision, str]] = ..., is_default: bool = ...) -> None: ...
