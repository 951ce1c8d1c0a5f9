"""The output's rows as Parquet. The schema follows from the model's dimensions alone."""

from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow
import pyarrow.parquet

from critiq.types import ItemResult
from critiq_server.bulk.rows import Row

OK = "OK"
ROW_GROUP = 8192


def schema(dimensions: Sequence[str]) -> Any:
    """The output's columns, for the dimensions that are asked for."""
    text, number, flag = pyarrow.string(), pyarrow.float64(), pyarrow.bool_()
    fields = [
        pyarrow.field("id", text, nullable=False),
        pyarrow.field("source", text, nullable=False),
        pyarrow.field("row", pyarrow.int64(), nullable=False),
        pyarrow.field("status", text, nullable=False),
        pyarrow.field("message", text),
    ]
    for dimension in dimensions:
        fields += [(f"{dimension}_{value}", number) for value in ("raw", "calibrated", "percentile")]
        fields.append((f"{dimension}_degraded", flag))
    fields += [
        ("prompt_truncated", flag),
        ("format", text),
        ("width", pyarrow.int32()),
        ("height", pyarrow.int32()),
        pyarrow.field("model", text, nullable=False),
        pyarrow.field("model_version", text, nullable=False),
        pyarrow.field("time", pyarrow.timestamp("ms", tz="UTC"), nullable=False),
    ]
    return pyarrow.schema(fields)


def _utf8(text: str) -> str:
    """Half characters, which JSON can write and UTF-8 cannot, become question marks."""
    return text.encode("utf-8", "replace").decode()


class Part:
    """The rows of one unit, as they come; :meth:`data` makes a file of them."""

    def __init__(self, source: str, model: str, version: str, dimensions: Sequence[str]) -> None:
        self._same = {"source": source, "model": model, "model_version": version}
        self._schema = schema(dimensions)
        self._rows: list[dict[str, Any]] = []
        self._file = io.BytesIO()
        self._writer = pyarrow.parquet.ParquetWriter(self._file, self._schema, compression="zstd")
        self.rows = 0
        self.failed: dict[str, int] = {}

    def add(self, row: Row, answer: ItemResult) -> None:
        """Takes a row; they must come in order."""
        found: dict[str, Any] = {"id": _utf8(row.id), "row": row.position, "status": OK, "time": datetime.now(UTC)}
        if answer.result is None:
            code = "INTERNAL" if answer.error is None else answer.error.code
            found |= {"status": code, "message": _utf8(str(answer.error))}
            self.failed[code] = self.failed.get(code, 0) + 1
        else:
            for score in answer.result.scores:
                for value in ("raw", "calibrated", "percentile", "degraded"):
                    found[f"{score.dimension}_{value}"] = getattr(score, value)
            image, prompt = answer.result.image, answer.result.prompt
            found |= {"format": image.format, "width": image.width, "height": image.height}
            if prompt is not None:
                found["prompt_truncated"] = prompt.truncated
        self._rows.append(found)
        self.rows += 1
        if len(self._rows) == ROW_GROUP:
            self._write()

    def data(self) -> bytes:
        """The finished file."""
        if self._rows or not self.rows:
            self._write()
        self._writer.close()
        return self._file.getvalue()

    def _write(self) -> None:
        table = pyarrow.Table.from_pylist([{**self._same, **row} for row in self._rows], self._schema)
        self._writer.write_table(table)
        self._rows = []
