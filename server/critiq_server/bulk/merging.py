"""``--output FILE.parquet``: the parts of a run that is done, in one file, with the manifest beside it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet

from critiq_server.bulk.errors import BulkError, StorageError
from critiq_server.bulk.ledger import SUCCESS
from critiq_server.bulk.storage import Place


def single_file(output: str) -> bool:
    """Whether the output is one file. Raises ``BulkError`` where that cannot be."""
    if not output.endswith(".parquet"):
        return False
    if "://" in output:
        raise BulkError(f"--output {output}: in an object store the output is a folder; leave .parquet out")
    return True


def parts_of(output: str) -> str:
    """Where the parts of a single file are gathered."""
    return f"{output}.parts"


def manifest_of(output: str, fingerprint: str, *, restart: bool) -> dict[str, Any] | None:
    """The manifest of a file that a run like this one has finished; ``None`` if there is work to do.

    Raises:
        BulkError: the file is of another run, or of something else.
    """
    file, beside = Path(output), Path(f"{output}.json")
    if restart:
        if beside.exists():
            file.unlink(missing_ok=True)
            beside.unlink()
    elif beside.exists() and file.exists():
        manifest: dict[str, Any] = json.loads(beside.read_text(encoding="utf-8"))
        if manifest.get("fingerprint") != fingerprint:
            raise BulkError(
                f"{output} is of another run (its settings are in {beside.name}); choose another --output, or start "
                "anew with --restart, which deletes it"
            )
        shutil.rmtree(parts_of(output), ignore_errors=True)  # left by a run that was killed while it cleaned up
        return manifest
    if file.exists() and not Path(parts_of(output)).is_dir():
        raise BulkError(f"{output} exists and is not of a bulk run; choose another --output")
    return None


def merge(parts: Place, output: str) -> None:
    """Writes the file and its manifest, then removes the parts. Can be done again at any point."""
    final = Path(output)
    temporary = final.with_name(f".{final.name}.{os.getpid()}")
    names = sorted(entry.path for entry in parts.files() if entry.path.startswith("part-"))
    writer = None
    try:
        for name in names:
            with parts.open(name) as opened:
                part = pyarrow.parquet.ParquetFile(opened)
                writer = writer or pyarrow.parquet.ParquetWriter(temporary, part.schema_arrow, compression="zstd")
                for group in range(part.metadata.num_row_groups):
                    writer.write_table(part.read_row_group(group))
        if writer is not None:
            writer.close()
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(final)
        with parts.open(SUCCESS) as manifest:
            Path(f"{output}.json").write_bytes(manifest.read())
        shutil.rmtree(parts.uri, ignore_errors=True)
    except OSError as error:
        raise StorageError(f"cannot write {output}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
