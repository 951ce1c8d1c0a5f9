from critiq.v1 import scoring_pb2 as _scoring_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ModelState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_STATE_UNSPECIFIED: _ClassVar[ModelState]
    MODEL_STATE_AVAILABLE: _ClassVar[ModelState]
    MODEL_STATE_LOADING: _ClassVar[ModelState]
    MODEL_STATE_READY: _ClassVar[ModelState]
    MODEL_STATE_FAILED: _ClassVar[ModelState]
MODEL_STATE_UNSPECIFIED: ModelState
MODEL_STATE_AVAILABLE: ModelState
MODEL_STATE_LOADING: ModelState
MODEL_STATE_READY: ModelState
MODEL_STATE_FAILED: ModelState

class Model(_message.Message):
    __slots__ = ("name", "version", "family", "title", "description", "state", "state_reason", "is_default", "dimensions", "stages", "licence", "aliases")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STATE_REASON_FIELD_NUMBER: _ClassVar[int]
    IS_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    LICENCE_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    family: str
    title: str
    description: str
    state: ModelState
    state_reason: str
    is_default: bool
    dimensions: _containers.RepeatedCompositeFieldContainer[Dimension]
    stages: _containers.RepeatedCompositeFieldContainer[StageInfo]
    licence: Licence
    aliases: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., family: _Optional[str] = ..., title: _Optional[str] = ..., description: _Optional[str] = ..., state: _Optional[_Union[ModelState, str]] = ..., state_reason: _Optional[str] = ..., is_default: bool = ..., dimensions: _Optional[_Iterable[_Union[Dimension, _Mapping]]] = ..., stages: _Optional[_Iterable[_Union[StageInfo, _Mapping]]] = ..., licence: _Optional[_Union[Licence, _Mapping]] = ..., aliases: _Optional[_Iterable[str]] = ...) -> None: ...

class Dimension(_message.Message):
    __slots__ = ("name", "title", "description", "minimum", "maximum", "direction", "scope", "needs_prompt", "tolerance", "reference_population", "reference_count", "reference_quantiles", "has_fallback")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    MINIMUM_FIELD_NUMBER: _ClassVar[int]
    MAXIMUM_FIELD_NUMBER: _ClassVar[int]
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    NEEDS_PROMPT_FIELD_NUMBER: _ClassVar[int]
    TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_POPULATION_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_COUNT_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_QUANTILES_FIELD_NUMBER: _ClassVar[int]
    HAS_FALLBACK_FIELD_NUMBER: _ClassVar[int]
    name: str
    title: str
    description: str
    minimum: float
    maximum: float
    direction: _scoring_pb2.Direction
    scope: _scoring_pb2.Scope
    needs_prompt: bool
    tolerance: float
    reference_population: str
    reference_count: int
    reference_quantiles: _containers.RepeatedScalarFieldContainer[float]
    has_fallback: bool
    def __init__(self, name: _Optional[str] = ..., title: _Optional[str] = ..., description: _Optional[str] = ..., minimum: _Optional[float] = ..., maximum: _Optional[float] = ..., direction: _Optional[_Union[_scoring_pb2.Direction, str]] = ..., scope: _Optional[_Union[_scoring_pb2.Scope, str]] = ..., needs_prompt: bool = ..., tolerance: _Optional[float] = ..., reference_population: _Optional[str] = ..., reference_count: _Optional[int] = ..., reference_quantiles: _Optional[_Iterable[float]] = ..., has_fallback: bool = ...) -> None: ...

class StageInfo(_message.Message):
    __slots__ = ("name", "runtime", "provider", "max_batch", "digest", "cached", "lmm", "instruction", "on_miss")
    NAME_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    LMM_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    ON_MISS_FIELD_NUMBER: _ClassVar[int]
    name: str
    runtime: str
    provider: str
    max_batch: int
    digest: str
    cached: bool
    lmm: str
    instruction: str
    on_miss: str
    def __init__(self, name: _Optional[str] = ..., runtime: _Optional[str] = ..., provider: _Optional[str] = ..., max_batch: _Optional[int] = ..., digest: _Optional[str] = ..., cached: bool = ..., lmm: _Optional[str] = ..., instruction: _Optional[str] = ..., on_miss: _Optional[str] = ...) -> None: ...

class Licence(_message.Message):
    __slots__ = ("code", "weights", "data")
    CODE_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    code: str
    weights: str
    data: str
    def __init__(self, code: _Optional[str] = ..., weights: _Optional[str] = ..., data: _Optional[str] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class LoadModelRequest(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class UnloadModelRequest(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class UnloadModelResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AliasTarget(_message.Message):
    __slots__ = ("model", "version", "percent")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PERCENT_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    percent: float
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., percent: _Optional[float] = ...) -> None: ...

class AliasRoute(_message.Message):
    __slots__ = ("targets", "since", "by")
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    targets: _containers.RepeatedCompositeFieldContainer[AliasTarget]
    since: float
    by: str
    def __init__(self, targets: _Optional[_Iterable[_Union[AliasTarget, _Mapping]]] = ..., since: _Optional[float] = ..., by: _Optional[str] = ...) -> None: ...

class Alias(_message.Message):
    __slots__ = ("name", "route", "shadow", "history")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    name: str
    route: AliasRoute
    shadow: AliasTarget
    history: _containers.RepeatedCompositeFieldContainer[AliasRoute]
    def __init__(self, name: _Optional[str] = ..., route: _Optional[_Union[AliasRoute, _Mapping]] = ..., shadow: _Optional[_Union[AliasTarget, _Mapping]] = ..., history: _Optional[_Iterable[_Union[AliasRoute, _Mapping]]] = ...) -> None: ...

class ListAliasesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListAliasesResponse(_message.Message):
    __slots__ = ("aliases",)
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    aliases: _containers.RepeatedCompositeFieldContainer[Alias]
    def __init__(self, aliases: _Optional[_Iterable[_Union[Alias, _Mapping]]] = ...) -> None: ...

class SetAliasRequest(_message.Message):
    __slots__ = ("name", "targets", "shadow")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    name: str
    targets: _containers.RepeatedCompositeFieldContainer[AliasTarget]
    shadow: AliasTarget
    def __init__(self, name: _Optional[str] = ..., targets: _Optional[_Iterable[_Union[AliasTarget, _Mapping]]] = ..., shadow: _Optional[_Union[AliasTarget, _Mapping]] = ...) -> None: ...

class PromoteAliasRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class RollbackAliasRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class RemoveAliasRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class RemoveAliasResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetShadowReportRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class Processes(_message.Message):
    __slots__ = ("answered", "of", "missing")
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    OF_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    answered: int
    of: int
    missing: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, answered: _Optional[int] = ..., of: _Optional[int] = ..., missing: _Optional[_Iterable[int]] = ...) -> None: ...

class ShadowReport(_message.Message):
    __slots__ = ("alias", "candidate", "since", "scored", "dropped", "failed", "last_failure", "pairs", "processes")
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    SCORED_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    LAST_FAILURE_FIELD_NUMBER: _ClassVar[int]
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    alias: str
    candidate: AliasTarget
    since: float
    scored: int
    dropped: int
    failed: int
    last_failure: str
    pairs: _containers.RepeatedCompositeFieldContainer[ShadowPair]
    processes: Processes
    def __init__(self, alias: _Optional[str] = ..., candidate: _Optional[_Union[AliasTarget, _Mapping]] = ..., since: _Optional[float] = ..., scored: _Optional[int] = ..., dropped: _Optional[int] = ..., failed: _Optional[int] = ..., last_failure: _Optional[str] = ..., pairs: _Optional[_Iterable[_Union[ShadowPair, _Mapping]]] = ..., processes: _Optional[_Union[Processes, _Mapping]] = ...) -> None: ...

class ShadowPair(_message.Message):
    __slots__ = ("served", "scored", "dimensions", "decisions")
    SERVED_FIELD_NUMBER: _ClassVar[int]
    SCORED_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    served: AliasTarget
    scored: int
    dimensions: _containers.RepeatedCompositeFieldContainer[ShadowDimension]
    decisions: _containers.RepeatedCompositeFieldContainer[ShadowDecisions]
    def __init__(self, served: _Optional[_Union[AliasTarget, _Mapping]] = ..., scored: _Optional[int] = ..., dimensions: _Optional[_Iterable[_Union[ShadowDimension, _Mapping]]] = ..., decisions: _Optional[_Iterable[_Union[ShadowDecisions, _Mapping]]] = ...) -> None: ...

class ShadowDimension(_message.Message):
    __slots__ = ("dimension", "scale", "count", "srcc", "window", "served_mean", "candidate_mean", "mean_shift", "difference_stddev")
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    SRCC_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    SERVED_MEAN_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_MEAN_FIELD_NUMBER: _ClassVar[int]
    MEAN_SHIFT_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCE_STDDEV_FIELD_NUMBER: _ClassVar[int]
    dimension: str
    scale: _scoring_pb2.Reason.Scale
    count: int
    srcc: float
    window: int
    served_mean: float
    candidate_mean: float
    mean_shift: float
    difference_stddev: float
    def __init__(self, dimension: _Optional[str] = ..., scale: _Optional[_Union[_scoring_pb2.Reason.Scale, str]] = ..., count: _Optional[int] = ..., srcc: _Optional[float] = ..., window: _Optional[int] = ..., served_mean: _Optional[float] = ..., candidate_mean: _Optional[float] = ..., mean_shift: _Optional[float] = ..., difference_stddev: _Optional[float] = ...) -> None: ...

class ShadowDecisions(_message.Message):
    __slots__ = ("rule", "count", "flips", "changes")
    RULE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    FLIPS_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    rule: str
    count: int
    flips: int
    changes: _containers.RepeatedCompositeFieldContainer[ShadowFlip]
    def __init__(self, rule: _Optional[str] = ..., count: _Optional[int] = ..., flips: _Optional[int] = ..., changes: _Optional[_Iterable[_Union[ShadowFlip, _Mapping]]] = ...) -> None: ...

class ShadowFlip(_message.Message):
    __slots__ = ("served", "candidate", "count")
    SERVED_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    served: str
    candidate: str
    count: int
    def __init__(self, served: _Optional[str] = ..., candidate: _Optional[str] = ..., count: _Optional[int] = ...) -> None: ...
