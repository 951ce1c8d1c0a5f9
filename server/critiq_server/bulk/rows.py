"""A row of the input, whatever it was read from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from critiq.errors import CritiqError, InvalidArgument, NotFound
from critiq_server.bulk.errors import StorageError
from critiq_server.bulk.storage import Place, place
from critiq_server.images.headers import FIELD
from critiq_server.images.limits import ImageLimits

Image = bytes | str
"""The bytes of a picture file, or its ``http(s)://`` URL."""


@dataclass(frozen=True, slots=True)
class Row:
    """One picture to score, or why there is none.

    Attributes:
        position: from 0 in its shard; with the shard's URI it names the row.
        id: what the row is called in the output.
    """

    position: int
    id: str
    image: Image | CritiqError
    prompt: str = ""


@dataclass(frozen=True, slots=True)
class PendingRow:
    """A row whose picture is yet to be read; ``read`` gives the picture and the prompt."""

    position: int
    id: str
    read: Callable[[], tuple[Image, str]]

    def finish(self) -> Row:
        """Reads the picture; what is wrong with it becomes the row's own error. Raises :class:`StorageError`."""
        try:
            image, prompt = self.read()
        except CritiqError as error:
            return Row(self.position, self.id, error)
        return Row(self.position, self.id, image, prompt)


def read_picture(folder: Place, path: str, limits: ImageLimits) -> bytes:
    """The bytes of a file. Raises ``NotFound``, ``InvalidArgument``, ``TooLarge`` or :class:`StorageError`."""
    try:
        entry = folder.entry(path)
        if entry is None:
            raise NotFound("the picture's file is not there", field=FIELD)
        limits.check_bytes(entry.size, FIELD)
        with folder.open(path) as file:
            return file.read()
    except FileNotFoundError as error:
        raise NotFound("the picture's file is not there", field=FIELD) from error
    except StorageError as error:
        if isinstance(error.__cause__, PermissionError):
            raise InvalidArgument("the picture's file may not be read", field=FIELD) from error
        raise
    except ValueError as error:  # a name that cannot be one, with a zero in it
        raise InvalidArgument(f"the picture's path is none: {error}", field=FIELD) from error


def read_pointer(base: Place, pointer: str, limits: ImageLimits) -> Image:
    """What ``pointer`` names: an ``http(s)://`` URL is left as it is, else a URI, or a path from ``base``."""
    if pointer.startswith(("http://", "https://")):
        return pointer
    if "://" in pointer or pointer.startswith("/"):
        return read_picture(place(pointer), "", limits)
    return read_picture(base, pointer, limits)
