"""One worker: an engine in this process that turns units into parts. No ports, no faces."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from itertools import islice

from critiq.errors import CritiqError
from critiq.types import ItemResult
from critiq_server.assembly import Assembly
from critiq_server.bulk.errors import BulkError, StorageError
from critiq_server.bulk.parts import Part
from critiq_server.bulk.reading import read_rows
from critiq_server.bulk.rows import Row
from critiq_server.bulk.storage import Place, place
from critiq_server.bulk.task import Task, choose_model
from critiq_server.bulk.units import Done, Unit
from critiq_server.engine.demand import Priority
from critiq_server.images.source import EncodedImage, RemoteImage
from critiq_server.listening import StartError
from critiq_server.queries import Item, Query, Target
from critiq_server.telemetry.metrics import Metrics

_CHUNK = 16
_TRIES = 3
_PAUSE = 1.0


class Scorer:
    """Use :meth:`open`, then :meth:`score` for units, several at once if wanted, then :meth:`close`.

    Args:
        task: what is to be done.
        cores: of the CPU that it uses; 0: all that this process may use.
    """

    def __init__(self, task: Task, cores: int = 0) -> None:
        self._task = task
        self._cores = cores
        self._output: Place = place(task.output)

    async def open(self) -> None:
        """Loads the model.

        Raises:
            BulkError: it cannot be loaded, or is not what the run began with.
        """
        settings, model = self._task.settings, self._task.model
        if choose_model(settings, model.name, model.version, ()).digest != model.digest:
            raise BulkError(f"model {model.name!r} version {model.version!r} here is not what the run began with")
        self._assembly = Assembly(settings, Metrics(), cores=self._cores)
        try:
            await self._assembly.load()
        except StartError as error:
            raise BulkError(str(error)) from error
        self._service = self._assembly.service

    async def close(self) -> None:
        await self._assembly.close()

    async def score(self, unit: Unit) -> Done:
        """Scores a unit's rows and writes its part, in one piece.

        Raises:
            StorageError: the input cannot be read or the output not be written, several times over.
        """
        for attempt in range(1, _TRIES):
            try:
                return await self._score(unit)
            except StorageError:
                await asyncio.sleep(_PAUSE * attempt**2)
        return await self._score(unit)

    async def _score(self, unit: Unit) -> Done:
        started = time.monotonic()
        model = self._task.model
        part = Part(unit.shard, model.name, model.version, model.dimensions)
        async for row, answer in self._answers(unit):
            part.add(row, answer)
        data = await asyncio.to_thread(part.data)
        await asyncio.to_thread(self._output.write, unit.part, data)
        return Done(unit.number, part.rows, part.failed, round(time.monotonic() - started, 3))

    async def _answers(self, unit: Unit) -> AsyncIterator[tuple[Row, ItemResult]]:
        """Rows and their answers, in order."""
        limits = self._task.settings.limits
        rows = read_rows(unit, self._task.columns, limits.image)
        under_way: dict[int, tuple[Row, Query | CritiqError]] = {}
        answered: dict[int, tuple[Row, ItemResult]] = {}
        failure: list[BaseException] = []

        async def items() -> AsyncIterator[Item]:
            count = 0
            try:
                while chunk := await asyncio.to_thread(_take, rows):
                    for row in chunk:
                        query = self._query(row)
                        under_way[count] = row, query
                        yield Item(str(count), query)
                        count += 1
            except Exception as error:  # of reading: the run's own, not one of the service
                failure.append(error)

        due = 0
        async for answer in self._service.score_stream(items(), limits.max_timeout_seconds):
            number = int(answer.id)
            row, query = under_way.pop(number)
            # Those behind a slow one wait here, without their pictures.
            answered[number] = replace(row, image=b""), await self._tried_again(query, answer)
            while due in answered:
                yield answered.pop(due)
                due += 1
        if failure:
            raise failure[0]

    async def _tried_again(self, query: Query | CritiqError, answer: ItemResult) -> ItemResult:
        """The answer; if it is an error that may pass, what comes of a few more tries."""
        for attempt in range(1, _TRIES):
            if answer.error is None or not answer.error.retryable or isinstance(query, CritiqError):
                break
            await asyncio.sleep(answer.error.retry_after or _PAUSE * attempt)
            try:
                result = await self._service.score(query, self._task.settings.limits.max_timeout_seconds)
                answer = ItemResult(answer.id, result=result)
            except CritiqError as error:
                answer = ItemResult(answer.id, error=error)
        return answer

    def _query(self, row: Row) -> Query | CritiqError:
        if isinstance(row.image, CritiqError):
            return row.image
        model = self._task.model
        target = Target(model.name, model.version, model.dimensions if self._task.explicit else ())
        image = RemoteImage(row.image) if isinstance(row.image, str) else EncodedImage(row.image)
        return Query(image, row.prompt, target, Priority.BULK)


def _take(rows: Iterator[Row]) -> list[Row]:
    return list(islice(rows, _CHUNK))
