"""What an extractor is: pictures and questions in, features out; and how a feature is named.

An offline build and a server name a feature by the same functions, so what one computed the other finds.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from critiq.errors import Unavailable
from critiq_server.bundles.lmm import PROMPT, FloatFormat, Lmm
from critiq_server.bundles.manifest import ImageInput, NativeView, Stage, TextInput, View
from critiq_server.features.keys import Key, output_key, stage_digest

FEATURE = "feature"
"""Name of an LMM stage's output."""

Pixels = NDArray[np.uint8]
"""RGB ``[height, width, 3]``."""

NATIVE = NativeView(longer_max=4096)
"""How LMM stages see pictures: as they are, unless a side is enormous. The LMM's own processor does the rest."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """A question; ``{prompt}`` in its text stands for the prompt that the picture was made from."""

    id: str
    text: str

    @property
    def reads_prompt(self) -> bool:
        return PROMPT in self.text

    def filled(self, prompt: str) -> str:
        """The words that the LMM reads for a picture made from ``prompt``."""
        return self.text.replace(PROMPT, prompt)


class LmmUnreachable(Unavailable):
    """An LMM that is served elsewhere does not answer as it should."""


class Extractor(Protocol):
    """One LMM. ``extract`` blocks, and may be called from several threads."""

    @property
    def provider(self) -> str:
        """Where it runs, for instance ``torch:cuda:0``."""
        ...

    @property
    def concurrency(self) -> int:
        """How many calls it works on at once without one slowing another down."""
        ...

    @property
    def gathers(self) -> bool:
        """Whether questions and pictures cost less in one call than in several."""
        ...

    def bucket(self, height: int, width: int) -> Hashable:
        """Pictures whose buckets are equal have as many tokens, and are best put into one call."""
        ...

    def extract(
        self, pictures: Sequence[Pixels], prompts: Sequence[str] | None, instructions: Sequence[Instruction]
    ) -> NDArray[np.float32]:
        """Features, float32 ``[pictures, instructions, width]``, rounded to the backbone's ``stored`` format.

        Args:
            pictures: of any sizes; those of one bucket are computed together.
            prompts: one a picture, normalised; needed if an instruction quotes it, otherwise not read.
            instructions: asked of every picture.

        Raises:
            ValueError: an instruction needs prompts and there are none.
            LmmUnreachable: a remote LMM does not answer.
        """
        ...

    def close(self) -> None:
        """Gives up what it holds: memory, connections."""
        ...


def lmm_digest(lmm: Lmm, view: View = NATIVE) -> Key:
    """Digest of an LMM stage: of what the manifest says of the LMM, its question, and the view of the picture."""
    return stage_digest({"runtime": "lmm", "lmm": lmm.model_dump(mode="json"), "view": view.model_dump(mode="json")})


def feature_key(lmm: Lmm, pixels: Key, prompt: Key, view: View = NATIVE) -> Key:
    """Name of one feature.

    Args:
        lmm: the LMM and its question.
        pixels: ``pixels_key`` of the decoded picture, before the view.
        prompt: ``prompt_key`` of the normalised prompt; hashed only if the question quotes it.
        view: through which the LMM sees the picture.
    """
    return output_key(lmm_digest(lmm, view), [pixels, prompt] if lmm.reads_prompt else [pixels])


def lmm_stage(name: str, lmm: Lmm, view: View = NATIVE, **settings: object) -> Stage:
    """The stage of a manifest that asks ``lmm``; ``settings`` are further fields of :class:`Stage`."""
    inputs: dict[str, object] = {"image": ImageInput(view=view)}
    if lmm.reads_prompt:
        inputs["prompt"] = TextInput()
    return Stage.model_validate(
        {"name": name, "runtime": "lmm", "lmm": lmm, "inputs": inputs, "outputs": [FEATURE], **settings}
    )


def rounded(features: NDArray[np.float32], stored: FloatFormat) -> NDArray[np.float32]:
    """``features`` as they come back from a store that keeps them as ``stored``.

    Relative error at most 2**-11 for float16 (values beyond 65504 are cut to it; below 6e-5 the error is 3e-8
    absolute) and 2**-8 for bfloat16.
    """
    if stored == "float16":
        limit = np.finfo(np.float16).max
        return np.clip(features, -limit, limit).astype(np.float16).astype(np.float32)
    if stored == "bfloat16":
        bits = np.ascontiguousarray(features, np.float32).view(np.uint32)
        even = ((bits >> 16) & 1) + np.uint32(0x7FFF)
        return ((bits + even) & np.uint32(0xFFFF0000)).view(np.float32)
    return features
