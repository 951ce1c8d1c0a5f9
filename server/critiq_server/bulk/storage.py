"""Where inputs lie and outputs go: a local directory, or an object store behind pyarrow's or fsspec's file systems.

Paths below a place are relative to it, with ``/`` between their parts.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import pyarrow
import pyarrow.fs

from critiq_server.bulk.errors import BulkError, StorageError

TEMPORARY = "_critiq/writing"
"""Where a local place keeps files that are still being written."""

_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+)://")


@dataclass(frozen=True, slots=True)
class Entry:
    """A file below a place; ``stamp`` changes when the file is written again."""

    path: str
    size: int
    stamp: int


class Place(Protocol):
    """A directory or a prefix. Methods raise ``StorageError``; reading what is not there, ``FileNotFoundError``."""

    uri: str

    def files(self, below: str = "") -> Iterator[Entry]:
        """All files below, at any depth, in no particular order. Hidden ones (``.name``) are left out."""
        ...

    def entry(self, path: str = "") -> Entry | None:
        """The file at ``path``; ``None`` if there is no file of that name."""
        ...

    def open(self, path: str = "") -> BinaryIO:
        """The file, for reading from any position."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Writes a file in one piece: whoever looks sees all of it or what was there before."""
        ...

    def delete(self, path: str) -> None:
        """Deletes a file, if it is there."""
        ...

    def is_directory(self) -> bool: ...

    @property
    def is_local(self) -> bool: ...


def place(uri: str) -> Place:
    """The place that ``uri`` names: a path, ``file://``, ``s3://``, ``gs://``, or what fsspec knows.

    Raises:
        BulkError: the scheme is not known, or its access cannot be set up.
    """
    scheme = _SCHEME.match(uri)
    if scheme is None:
        return LocalPlace(uri)
    if scheme[1] == "file":
        return LocalPlace(uri.removeprefix("file://"))
    try:
        return RemotePlace(uri, *_file_system(uri, scheme[1]))
    except (OSError, ValueError, ImportError, pyarrow.ArrowException) as error:
        raise BulkError(f"cannot reach {_bare(uri)}: {error}") from error


def join(base: str, path: str) -> str:
    """The URI of ``path`` below the URI ``base``."""
    place_, question, options = base.partition("?")
    return f"{place_.rstrip('/')}/{path}{question}{options}" if path else base


class LocalPlace:
    """A directory or file of this machine."""

    is_local = True

    def __init__(self, path: str) -> None:
        self.uri = path
        self._root = Path(path)

    def files(self, below: str = "") -> Iterator[Entry]:
        root = os.fspath(self._root / below)
        for folder, folders, names in os.walk(root, onerror=_raise):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                path = os.path.join(folder, name)
                if name.startswith(".") or not os.path.isfile(path):
                    continue
                yield _local_entry(os.path.relpath(path, self._root), os.stat(path))

    def entry(self, path: str = "") -> Entry | None:
        whole = self._root / path
        try:
            return _local_entry(path, whole.stat()) if whole.is_file() else None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return None
            raise StorageError(f"cannot read {whole}: {error.strerror}") from error

    def open(self, path: str = "") -> BinaryIO:
        try:
            return (self._root / path).open("rb")
        except (FileNotFoundError, IsADirectoryError):
            raise FileNotFoundError(f"there is no file {self._root / path}") from None
        except OSError as error:
            raise StorageError(f"cannot read {self._root / path}: {error.strerror}") from error

    def write(self, path: str, data: bytes) -> None:
        final = self._root / path
        temporary = self._root / TEMPORARY / f"{final.name}.{secrets.token_hex(8)}"
        try:
            for directory in (final.parent, temporary.parent):
                directory.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(final)
            _sync_directory(final.parent)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise StorageError(f"cannot write {final}: {error.strerror or error}") from error

    def delete(self, path: str) -> None:
        try:
            (self._root / path).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"cannot delete {self._root / path}: {error.strerror}") from error

    def is_directory(self) -> bool:
        return self._root.is_dir()


class RemotePlace:
    """A prefix of an object store. A write there is one upload, which the store takes as a whole or not at all."""

    is_local = False

    def __init__(self, uri: str, file_system: Any, root: str) -> None:
        self.uri = uri
        self._fs = file_system
        self._root = root.rstrip("/")

    def files(self, below: str = "") -> Iterator[Entry]:
        selector = pyarrow.fs.FileSelector(self._whole(below), recursive=True, allow_not_found=True)
        with _StorageErrors(self.uri):
            found = self._fs.get_file_info(selector)
        for info in found:
            path = info.path[len(self._root) :].lstrip("/")
            if info.type is pyarrow.fs.FileType.File and not any(part.startswith(".") for part in path.split("/")):
                yield _remote_entry(path, info)

    def entry(self, path: str = "") -> Entry | None:
        with _StorageErrors(self.uri):
            info = self._fs.get_file_info(self._whole(path))
        return _remote_entry(path, info) if info.type is pyarrow.fs.FileType.File else None

    def open(self, path: str = "") -> BinaryIO:
        with _StorageErrors(self.uri):
            return cast(BinaryIO, self._fs.open_input_file(self._whole(path)))

    def write(self, path: str, data: bytes) -> None:
        with _StorageErrors(self.uri):
            self._fs.create_dir(self._whole(path).rpartition("/")[0])
            with self._fs.open_output_stream(self._whole(path)) as stream:
                stream.write(data)

    def delete(self, path: str) -> None:
        with _StorageErrors(self.uri):
            if self.entry(path) is not None:
                self._fs.delete_file(self._whole(path))

    def is_directory(self) -> bool:
        with _StorageErrors(self.uri):
            return bool(self._fs.get_file_info(self._root).type is pyarrow.fs.FileType.Directory)

    def _whole(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root


class _StorageErrors:
    """Turns what a file system raises into a :class:`StorageError` that names the place."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FileNotFoundError | BulkError):
            return
        if isinstance(error, OSError | pyarrow.ArrowException):
            raise StorageError(f"{_bare(self._uri)}: {error}") from error


def _file_system(uri: str, scheme: str) -> tuple[Any, str]:
    if scheme in ("s3", "gs", "gcs", "abfs", "abfss", "hdfs"):
        file_system, path = pyarrow.fs.FileSystem.from_uri(uri)
        return file_system, path
    try:
        import fsspec  # type: ignore[import-untyped, unused-ignore]
    except ModuleNotFoundError:
        raise ImportError(f"{scheme}:// needs fsspec: pip install 'critiq[ray]', or fsspec alone") from None
    opened, path = fsspec.core.url_to_fs(uri)
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(opened)), path


def _bare(uri: str) -> str:
    """A URI for messages: without what could be a password or a signature."""
    return re.sub(r"//[^/@]*@", "//", uri.partition("?")[0])


def _local_entry(path: str, found: os.stat_result) -> Entry:
    return Entry(path, found.st_size, found.st_mtime_ns)


def _remote_entry(path: str, info: Any) -> Entry:
    return Entry(path, info.size or 0, info.mtime_ns or 0)


def _raise(error: OSError) -> None:
    raise StorageError(f"cannot read {error.filename}: {error.strerror}") from error


def _sync_directory(directory: Path) -> None:
    """Makes a rename last through a crash of the machine."""
    if os.name == "posix":
        opened = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
