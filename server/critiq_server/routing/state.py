"""The file in which aliases outlive the process, and by which several processes of one machine agree on them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from critiq.aliases import Alias
from critiq.errors import FailedPrecondition

_FORM = 1
_ALIASES: TypeAdapter[dict[str, Alias | None]] = TypeAdapter(dict[str, Alias | None])

Stamp = tuple[int, int, int]


class StateError(Exception):
    """The file cannot be used; the message names it."""


class StateFile:
    """Aliases by name; ``None`` stands for one that was removed, whatever the settings say.

    Every change replaces the file as a whole, so a reader sees the old or the new one, and a full disk changes nothing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def stamp(self) -> Stamp | None:
        """Differs when the file has changed; ``None`` if there is none."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def read(self) -> dict[str, Alias | None]:
        """What is in the file; nothing if there is none. Raises ``StateError``."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise StateError(f"models.state_file: {self.path} cannot be read: {error}") from error
        try:
            content = json.loads(data)
            if not isinstance(content, dict) or content.get("form") != _FORM:
                raise ValueError(f"it is not of form {_FORM}")
            found = _ALIASES.validate_python(content.get("aliases"))
        except (ValueError, ValidationError) as error:
            raise StateError(
                f"models.state_file: {self.path} holds no aliases ({_first_line(error)}); put the right file there, or "
                "remove it to begin with the settings' aliases"
            ) from error
        if broken := [name for name, alias in found.items() if alias is not None and not alias.targets]:
            raise StateError(f"models.state_file: {self.path}: the alias {broken[0]!r} has no targets")
        return found

    def change(self, name: str, alias: Alias | None, seen: Mapping[str, Alias | None]) -> None:
        """Writes one alias, if it stands there as it was ``seen`` last; all of them, if the file was deleted meanwhile.

        Raises ``FailedPrecondition`` or ``StateError``.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._locked():
                held = self.read() if self.path.exists() else seen
                if held.get(name) != seen.get(name):
                    raise FailedPrecondition(
                        f"the alias {name!r} was changed by another process in this moment; look at it and try again",
                        field="name",
                    )
                self._write({**held, name: alias})
        except OSError as error:
            raise StateError(f"models.state_file: {self.path} cannot be written: {error}") from error

    def _write(self, aliases: Mapping[str, Alias | None]) -> None:
        entries = {name: asdict(alias) if alias is not None else None for name, alias in sorted(aliases.items())}
        text = json.dumps({"form": _FORM, "aliases": entries}, indent=1)
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            with beside.open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self.path)
        finally:
            beside.unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Other processes' changes wait."""
        if sys.platform == "win32":  # one process only
            yield
            return
        import fcntl

        with self.path.with_name(f".{self.path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        problem = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
    return str(error).splitlines()[0]
