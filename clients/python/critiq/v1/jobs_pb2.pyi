from critiq.v1 import scoring_pb2 as _scoring_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JobState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_STATE_UNSPECIFIED: _ClassVar[JobState]
    JOB_STATE_QUEUED: _ClassVar[JobState]
    JOB_STATE_RUNNING: _ClassVar[JobState]
    JOB_STATE_DONE: _ClassVar[JobState]
    JOB_STATE_FAILED: _ClassVar[JobState]
    JOB_STATE_CANCELLED: _ClassVar[JobState]

class JobCallbackState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_CALLBACK_STATE_UNSPECIFIED: _ClassVar[JobCallbackState]
    JOB_CALLBACK_STATE_PENDING: _ClassVar[JobCallbackState]
    JOB_CALLBACK_STATE_DELIVERED: _ClassVar[JobCallbackState]
    JOB_CALLBACK_STATE_REFUSED: _ClassVar[JobCallbackState]
    JOB_CALLBACK_STATE_GIVEN_UP: _ClassVar[JobCallbackState]
JOB_STATE_UNSPECIFIED: JobState
JOB_STATE_QUEUED: JobState
JOB_STATE_RUNNING: JobState
JOB_STATE_DONE: JobState
JOB_STATE_FAILED: JobState
JOB_STATE_CANCELLED: JobState
JOB_CALLBACK_STATE_UNSPECIFIED: JobCallbackState
JOB_CALLBACK_STATE_PENDING: JobCallbackState
JOB_CALLBACK_STATE_DELIVERED: JobCallbackState
JOB_CALLBACK_STATE_REFUSED: JobCallbackState
JOB_CALLBACK_STATE_GIVEN_UP: JobCallbackState

class SubmitJobRequest(_message.Message):
    __slots__ = ("items", "policy", "policy_version", "callback", "idempotency_key")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    CALLBACK_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[_scoring_pb2.ScoreItem]
    policy: str
    policy_version: str
    callback: JobCallbackRequest
    idempotency_key: str
    def __init__(self, items: _Optional[_Iterable[_Union[_scoring_pb2.ScoreItem, _Mapping]]] = ..., policy: _Optional[str] = ..., policy_version: _Optional[str] = ..., callback: _Optional[_Union[JobCallbackRequest, _Mapping]] = ..., idempotency_key: _Optional[str] = ...) -> None: ...

class JobCallbackRequest(_message.Message):
    __slots__ = ("url",)
    URL_FIELD_NUMBER: _ClassVar[int]
    url: str
    def __init__(self, url: _Optional[str] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("id", "state", "items", "answered", "failed", "policy", "policy_version", "created", "started", "finished", "error", "callback", "decisions")
    class DecisionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    CALLBACK_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    id: str
    state: JobState
    items: int
    answered: int
    failed: int
    policy: str
    policy_version: str
    created: float
    started: float
    finished: float
    error: str
    callback: JobCallback
    decisions: _containers.ScalarMap[str, int]
    def __init__(self, id: _Optional[str] = ..., state: _Optional[_Union[JobState, str]] = ..., items: _Optional[int] = ..., answered: _Optional[int] = ..., failed: _Optional[int] = ..., policy: _Optional[str] = ..., policy_version: _Optional[str] = ..., created: _Optional[float] = ..., started: _Optional[float] = ..., finished: _Optional[float] = ..., error: _Optional[str] = ..., callback: _Optional[_Union[JobCallback, _Mapping]] = ..., decisions: _Optional[_Mapping[str, int]] = ...) -> None: ...

class JobCallback(_message.Message):
    __slots__ = ("host", "state", "attempts", "last_error", "next_attempt")
    HOST_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    NEXT_ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    host: str
    state: JobCallbackState
    attempts: int
    last_error: str
    next_attempt: float
    def __init__(self, host: _Optional[str] = ..., state: _Optional[_Union[JobCallbackState, str]] = ..., attempts: _Optional[int] = ..., last_error: _Optional[str] = ..., next_attempt: _Optional[float] = ...) -> None: ...

class GetJobRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class ListJobsRequest(_message.Message):
    __slots__ = ("state", "limit", "after")
    STATE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    state: JobState
    limit: int
    after: str
    def __init__(self, state: _Optional[_Union[JobState, str]] = ..., limit: _Optional[int] = ..., after: _Optional[str] = ...) -> None: ...

class ListJobsResponse(_message.Message):
    __slots__ = ("jobs",)
    JOBS_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[Job]
    def __init__(self, jobs: _Optional[_Iterable[_Union[Job, _Mapping]]] = ...) -> None: ...

class JobResultsRequest(_message.Message):
    __slots__ = ("id", "start", "limit")
    ID_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    id: str
    start: int
    limit: int
    def __init__(self, id: _Optional[str] = ..., start: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class JobResultsResponse(_message.Message):
    __slots__ = ("results", "next")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[JobResult]
    next: int
    def __init__(self, results: _Optional[_Iterable[_Union[JobResult, _Mapping]]] = ..., next: _Optional[int] = ...) -> None: ...

class JobResult(_message.Message):
    __slots__ = ("id", "response", "error", "verdict")
    ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    id: str
    response: _scoring_pb2.ScoreResponse
    error: _scoring_pb2.Error
    verdict: _scoring_pb2.Verdict
    def __init__(self, id: _Optional[str] = ..., response: _Optional[_Union[_scoring_pb2.ScoreResponse, _Mapping]] = ..., error: _Optional[_Union[_scoring_pb2.Error, _Mapping]] = ..., verdict: _Optional[_Union[_scoring_pb2.Verdict, _Mapping]] = ...) -> None: ...

class CancelJobRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...
