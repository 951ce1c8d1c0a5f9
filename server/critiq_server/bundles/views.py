"""Views: how a stage sees the picture."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Filter = Literal["bilinear", "bicubic", "lanczos", "box", "opencv_cubic"]
"""Pillow's antialiased filters; ``opencv_cubic`` is OpenCV's ``INTER_CUBIC``, which does not antialias."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ResizeView(_Strict):
    """The whole picture at a fixed size: uint8 ``[height, width, 3]``."""

    kind: Literal["resize"] = "resize"
    height: int = Field(gt=0, le=4096)
    width: int = Field(gt=0, le=4096)
    fit: Literal["stretch", "crop", "crop_rounded", "pad", "pad_black"] = "stretch"
    """``stretch`` ignores the aspect ratio; ``crop`` keeps it, cuts the middle; ``pad`` keeps it, adds grey borders.

    ``crop_rounded`` is torchvision's middle (where the excess is 3, 7, 11, ... pixels it lies one further down or right
    than ``crop``'s, which is transformers'); ``pad_black`` adds black borders.
    """
    filter: Filter = "bicubic"

    @property
    def size_bytes(self) -> int:
        """Bytes of what a stage gets."""
        return 3 * self.height * self.width


class CropsView(_Strict):
    """Windows of the picture at (nearly) its own resolution: uint8 ``[rows * columns, height, width, 3]``.

    The windows lie on an even grid that touches all four borders (one row or column: the middle); they overlap when the
    picture is small. Before cutting, the picture is resized, keeping its aspect ratio, only if its shorter side is
    outside ``[shorter_min, shorter_max]``.
    """

    kind: Literal["crops"] = "crops"
    height: int = Field(gt=0, le=4096)
    width: int = Field(gt=0, le=4096)
    rows: int = Field(gt=0, le=16)
    columns: int = Field(gt=0, le=16)
    shorter_min: int = Field(gt=0)
    shorter_max: int = Field(gt=0)
    filter: Filter = "bicubic"

    @property
    def size_bytes(self) -> int:
        """Bytes of what a stage gets."""
        return 3 * self.height * self.width * self.rows * self.columns

    @model_validator(mode="after")
    def _window_fits(self) -> Self:
        if not max(self.height, self.width) <= self.shorter_min <= self.shorter_max:
            raise ValueError("crops need max(height, width) <= shorter_min <= shorter_max")
        return self


class FiveCropsView(_Strict):
    """The four corners and the middle of the picture: uint8 ``[5, height, width, 3]``.

    In this order: top left, top right, bottom left, bottom right, middle. Before cutting, the picture is resized,
    keeping its aspect ratio, only if its shorter side is outside ``[shorter_min, shorter_max]``.
    """

    kind: Literal["five_crops"] = "five_crops"
    height: int = Field(gt=0, le=4096)
    width: int = Field(gt=0, le=4096)
    shorter_min: int = Field(gt=0)
    shorter_max: int = Field(gt=0)
    filter: Filter = "bicubic"

    @property
    def size_bytes(self) -> int:
        """Bytes of what a stage gets."""
        return 5 * 3 * self.height * self.width

    @model_validator(mode="after")
    def _window_fits(self) -> Self:
        if not max(self.height, self.width) <= self.shorter_min <= self.shorter_max:
            raise ValueError("crops need max(height, width) <= shorter_min <= shorter_max")
        return self


class NativeView(_Strict):
    """The whole picture at its own resolution: uint8 ``[height, width, 3]``, another shape for every size of picture.

    It is resized, keeping its aspect ratio, only if its shorter side is below ``shorter_min`` (enlarged) or its longer
    side above ``longer_max`` (shrunk). Both cannot be had of a very long strip: its shorter side becomes
    ``shorter_min``, and of its longer side the middle ``longer_max`` are kept. What is over a multiple of ``multiple``
    is then cut off at the bottom and on the right.
    """

    kind: Literal["native"] = "native"
    shorter_min: int = Field(gt=0, le=4096, default=1)
    longer_max: int = Field(gt=0, le=16384, default=2048)
    multiple: int = Field(gt=0, le=1024, default=1)
    filter: Filter = "bicubic"

    @property
    def size_bytes(self) -> int:
        """Bytes of what a stage gets, at the most."""
        longest = self.longer_max // self.multiple * self.multiple
        return 3 * longest**2

    @model_validator(mode="after")
    def _bounds_leave_room(self) -> Self:
        if not self.multiple <= self.shorter_min <= self.longer_max:
            raise ValueError("a native view needs multiple <= shorter_min <= longer_max")
        return self


View = Annotated[ResizeView | CropsView | FiveCropsView | NativeView, Field(discriminator="kind")]
