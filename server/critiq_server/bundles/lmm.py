"""What a manifest says of a large multimodal model (LMM) that is asked a question about a picture.

The answer is a *feature*: a hidden state, never generated text. Everything that it depends on stands here, so that the
digest of these fields names the feature: another revision, instruction, processor or number format is another feature.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

IMAGE, INSTRUCTION, PROMPT = "{image}", "{instruction}", "{prompt}"
"""Where the picture and the instruction stand in a template, and the picture's own prompt in an instruction."""

FloatFormat = Literal["float32", "float16", "bfloat16"]
OnMiss = Literal["compute", "remote", "stored"]
"""What happens when a feature is not in the store: compute it here, ask an LMM served elsewhere, or refuse."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class GridProcessor(_Strict):
    """The picture at its own resolution, sides rounded to whole visual tokens, resized only outside the bounds."""

    kind: Literal["grid"] = "grid"
    min_pixels: int = Field(gt=0, default=65_536)
    max_pixels: int = Field(gt=0, default=1_048_576)


class SquareProcessor(_Strict):
    """The picture padded to a square with the mean colour, then resized to ``side``."""

    kind: Literal["square"] = "square"
    side: int = Field(gt=0, default=448)


Processor = Annotated[GridProcessor | SquareProcessor, Field(discriminator="kind")]


class Backbone(_Strict):
    """An LMM and how it is read, without a question."""

    backbone: Literal["qwen3-vl", "mplug-owl2"]
    model: str = Field(min_length=1)
    """Hub id or name of the folder: what it is called in settings and messages."""
    revision: str = Field(min_length=1)
    """Fingerprint of the folder's weights, configuration and tokenizer (``critiq_server.runtime.lmm.folder``)."""
    template: str
    """The whole conversation, exactly, with ``{image}`` and ``{instruction}`` once each."""
    feature: Literal["last_token", "mean"]
    """The hidden state of the input's last token, or the mean over all positions."""
    layer: Literal[-1] = -1
    """Of the hidden states: the last layer's, behind the final norm."""
    width: int = Field(gt=0)
    """Numbers in one feature."""
    dtype: FloatFormat = "bfloat16"
    """In which the model computes."""
    stored: FloatFormat = "float16"
    """To which a feature is rounded, also where it comes straight from the model: stored or fresh, it is the same."""
    processor: Processor

    @model_validator(mode="after")
    def _template_has_its_places(self) -> Self:
        for place in (IMAGE, INSTRUCTION):
            if self.template.count(place) != 1:
                raise ValueError(f"the template must hold {place} exactly once")
        return self


class Lmm(Backbone):
    """An LMM asked one question."""

    instruction: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")
    """Id of the question."""
    text: str = Field(min_length=1)
    """Its exact words; ``{prompt}`` stands for the prompt that the picture was made from."""

    @property
    def reads_prompt(self) -> bool:
        """Whether the question quotes the picture's prompt."""
        return PROMPT in self.text

    def asked(self) -> Backbone:
        """The model without the question: stages that share it can be asked about a picture together."""
        return Backbone(**self.model_dump(exclude={"instruction", "text"}))
