"""Several dimensions of one or more models, scored together and added up with weights."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import critiq
from critiq._endpoint import DEFAULT_URL
from critiq.errors import (
    CritiqError,
    FailedPrecondition,
    FeaturesMissing,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unauthenticated,
)
from critiq.rewards.groups import normalised_within
from critiq.rewards.pictures import Batch, prompts_of
from critiq.rewards.terms import Scale, Term, Terms, as_terms
from critiq.types import Priority, ScoreResult

OnError = Literal["raise", "nan"]
Normalise = Literal["", "total", "components"]
_Outcomes = list[ScoreResult | CritiqError]


@dataclass(frozen=True, slots=True)
class Rewards:
    """One entry a picture, in their order.

    ``total`` is the weighted sum; ``components`` has each term by its label, before weights and normalisation; NaN
    where a picture failed, and ``errors`` says why.
    """

    total: list[float]
    components: dict[str, list[float]]
    errors: list[CritiqError | None]


class Mix:
    """Scores batches against a server. For any number of threads; each process makes its own connection.

    Args:
        terms: see :data:`critiq.rewards.terms.Terms`.
        url, timeout, retries, headers, ca_file: of the :class:`critiq.Client`; ``timeout`` is how long to wait for the
            next result. Refused or unreached calls are tried ``retries`` times, as training should outlive a restart.
        scale: of terms that are given by name.
        window: pictures under way at once, for each model.
        on_error: ``raise`` what is wrong with a picture, or give it ``nan``. What is wrong with every picture (a model
            or dimension that is not there, a server that is not reached) is always raised.
        normalise: ``total``: the sum is normalised within each prompt; ``components``: each component is, before it is
            weighted, so that their scales do not matter; empty: neither.
        allow_degraded: takes scores of fallback heads as well; on the scale ``raw`` they never count.
        priority: ``bulk`` lets interactive callers of the same server go first.
    """

    def __init__(
        self,
        terms: Terms,
        *,
        url: str = DEFAULT_URL,
        scale: Scale = "calibrated",
        timeout: float | None = 120.0,
        retries: int = 8,
        headers: Mapping[str, str] | None = None,
        ca_file: str | Path | None = None,
        window: int = 64,
        on_error: OnError = "raise",
        normalise: Normalise = "",
        allow_degraded: bool = False,
        priority: Priority = "interactive",
    ) -> None:
        _check_choice("on_error", on_error, get_args(OnError))
        _check_choice("normalise", normalise, get_args(Normalise))
        self.terms = as_terms(terms, scale)
        self._connect = partial(critiq.Client, url, timeout=timeout, retries=retries, headers=headers, ca_file=ca_file)
        self._window = window
        self._on_error = on_error
        self._normalise = normalise
        self._allow_degraded = allow_degraded
        self._priority: Priority = priority
        self._client: critiq.Client | None = None
        self._process = 0

    def score(self, images: Any, prompts: Sequence[str] | None = None) -> Rewards:
        """Rewards of a batch; see :class:`critiq.rewards.pictures.Batch` for what ``images`` may be.

        Raises :class:`~critiq.errors.InvalidArgument` for what is no batch, and the errors that ``on_error`` does not
        turn into NaN; ``images[3]`` in their field is the picture at index 3.
        """
        batch = Batch(images)
        texts = prompts_of(prompts, len(batch))
        by_model: dict[tuple[str, str], list[Term]] = {}
        for term in self.terms:
            by_model.setdefault((term.model, term.version), []).append(term)
        components: dict[str, list[float]] = {term.label: [] for term in self.terms}
        errors: list[CritiqError | None] = [None] * len(batch)
        for terms, outcomes in zip(by_model.values(), self._outcomes(batch, texts, by_model), strict=True):
            for index, outcome in enumerate(outcomes):
                for term in terms:
                    value = self._value(term, outcome)
                    if isinstance(value, CritiqError):
                        placed = value if _concerns_all(value) else value.within(f"images[{index}]")
                        errors[index] = errors[index] or placed
                    components[term.label].append(math.nan if isinstance(value, CritiqError) else value)
        self._check(errors)
        return Rewards(self._total(components, texts), components, errors)

    async def score_async(self, images: Any, prompts: Sequence[str] | None = None) -> Rewards:
        """:meth:`score` for asyncio, in a thread: packing pixels would hold up the event loop."""
        return await asyncio.to_thread(self.score, images, prompts)

    def close(self) -> None:
        """Ends the connection; the next call makes a new one."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None}

    def _outcomes(
        self, batch: Batch, prompts: Sequence[str], by_model: dict[tuple[str, str], list[Term]]
    ) -> list[_Outcomes]:
        if not len(batch):
            return [[] for _ in by_model]
        client = self._connected()

        def run(entry: tuple[tuple[str, str], list[Term]]) -> _Outcomes:
            (model, version), terms = entry
            return self._stream(client, batch, prompts, model, version, terms)

        if len(by_model) == 1:
            return [run(entry) for entry in by_model.items()]
        with ThreadPoolExecutor(len(by_model), "critiq-rewards") as threads:
            return list(threads.map(run, by_model.items()))

    def _stream(
        self,
        client: critiq.Client,
        batch: Batch,
        prompts: Sequence[str],
        model: str,
        version: str,
        terms: Sequence[Term],
    ) -> _Outcomes:
        outcomes: dict[int, ScoreResult | CritiqError] = {}

        def items() -> Iterator[critiq.Item]:
            for index, prompt in enumerate(prompts):
                try:
                    yield critiq.Item(batch[index], prompt, str(index))
                except CritiqError as error:
                    outcomes[index] = error

        results = client.score_stream(
            items(),
            window=self._window,
            model=model,
            version=version,
            dimensions=tuple(dict.fromkeys(term.dimension for term in terms)),
            priority=self._priority,
        )
        for result in results:
            outcomes[int(result.id)] = result.unwrap() if result.error is None else result.error
        return [outcomes[index] for index in range(len(prompts))]

    def _value(self, term: Term, outcome: ScoreResult | CritiqError) -> float | CritiqError:
        if isinstance(outcome, CritiqError):
            return outcome
        return term.value(outcome[term.dimension], allow_degraded=self._allow_degraded)

    def _check(self, errors: Sequence[CritiqError | None]) -> None:
        """Raises what is wrong with every picture, and with ``on_error="raise"`` what is wrong with any."""
        failed = [error for error in errors if error is not None]
        for error in failed:
            if _concerns_all(error):
                raise error
        if failed and (self._on_error == "raise" or len(failed) == len(errors)):
            raise failed[0]

    def _total(self, components: dict[str, list[float]], prompts: Sequence[str]) -> list[float]:
        total = [0.0] * len(prompts)
        for term in self.terms:
            values = components[term.label]
            if self._normalise == "components":
                values = normalised_within(prompts, values)
            total = [so_far + term.weight * value for so_far, value in zip(total, values, strict=True)]
        return normalised_within(prompts, total) if self._normalise == "total" else total

    def _connected(self) -> critiq.Client:
        if self._client is None or self._process != os.getpid():  # a client does not survive a fork
            self._client = self._connect()
            self._process = os.getpid()
        return self._client


def _concerns_all(error: CritiqError) -> bool:
    if isinstance(error, FeaturesMissing):
        return False
    return isinstance(error, NotFound | FailedPrecondition | PermissionDenied | Unauthenticated)


def _check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise InvalidArgument(f"{value!r}; known are {list(known)}", field=name)
