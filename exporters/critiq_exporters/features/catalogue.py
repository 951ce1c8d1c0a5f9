"""What a store of built features says of itself: which pictures it holds the features of, and of which questions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from critiq_server.bundles.lmm import Lmm
from critiq_server.bundles.manifest import ImageInput, View
from critiq_server.features.disk import DiskStore
from critiq_server.features.keys import Key
from critiq_server.runtime.lmm.base import NATIVE, feature_key, lmm_digest

_ITEM, _QUESTION = "item:", "question:"


@dataclass(frozen=True, slots=True)
class Asked:
    """A question to an LMM, and how the LMM sees pictures: what decides a feature besides picture and prompt."""

    lmm: Lmm
    view: View = NATIVE

    @property
    def digest(self) -> str:
        """Hexadecimal; names the question in stores."""
        return lmm_digest(self.lmm, self.view).hex()

    def key(self, picture: Key, prompt: Key) -> Key:
        """Name of the feature: the server derives the same."""
        return feature_key(self.lmm, picture, prompt, self.view)

    def note(self) -> tuple[str, dict[str, Any]]:
        """As it stands in a store."""
        described = {"lmm": self.lmm.model_dump(mode="json"), "view": self.view.model_dump(mode="json")}
        return _QUESTION + self.digest, described


@dataclass(frozen=True, slots=True)
class Entry:
    """One picture in a store."""

    name: str
    prompt: str
    file: str
    """``encoded_key`` of the file, hexadecimal: tells whether it is still the same without decoding it."""
    picture: str
    """``pixels_key``, hexadecimal."""
    height: int
    width: int
    features: Mapping[str, str] = field(default_factory=dict)
    """Keys by the digest of their question, hexadecimal both."""

    def note(self) -> tuple[str, dict[str, Any]]:
        """As it stands in a store."""
        described = {
            "prompt": self.prompt,
            "file": self.file,
            "picture": self.picture,
            "size": [self.height, self.width],
            "features": dict(self.features),
        }
        return _ITEM + self.name, described

    def joined(self, other: Entry | None) -> Entry:
        """With the features of ``other`` too, if it is about the same picture and prompt."""
        if other is None or (other.picture, other.prompt) != (self.picture, self.prompt):
            return self
        return Entry(
            self.name,
            self.prompt,
            self.file,
            self.picture,
            self.height,
            self.width,
            {**other.features, **self.features},
        )


def find_entry(store: DiskStore, name: str) -> Entry | None:
    """The picture called ``name``; ``None`` where there is none."""
    note = store.note(_ITEM + name)
    return _entry(name, note) if note is not None else None


def entries(store: DiskStore) -> Iterator[Entry]:
    """Every picture, in an order that depends on the names alone."""
    for name, note in store.notes():
        if name.startswith(_ITEM):
            yield _entry(name.removeprefix(_ITEM), note)


def questions(store: DiskStore) -> dict[str, Asked]:
    """Every question by its digest. Raises ``ValidationError`` if a later version of critiq wrote it."""
    return {
        name.removeprefix(_QUESTION): Asked(
            Lmm.model_validate(note["lmm"]), ImageInput.model_validate({"view": note["view"]}).view
        )
        for name, note in store.notes()
        if name.startswith(_QUESTION)
    }


def _entry(name: str, note: Mapping[str, Any]) -> Entry:
    height, width = note["size"]
    return Entry(name, note["prompt"], note["file"], note["picture"], height, width, note["features"])
