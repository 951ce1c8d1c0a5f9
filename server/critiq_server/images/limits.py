"""How large and how long a picture may be. Checked from the header, before anything is decoded."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from critiq.errors import InvalidArgument, TooLarge

PILLOW_MAX_PIXELS = 89_478_485
"""Beyond this Pillow itself takes a picture for a decompression bomb, so no setting may go further."""


class ImageLimits(BaseModel):
    """Limits on one picture. The defaults admit any generator's output and common cameras' photographs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_bytes: int = Field(
        25 * 2**20,
        gt=0,
        description="Bytes of an encoded file. Raw pixels are bounded by max_pixels alone.",
    )
    max_pixels: int = Field(
        50_000_000,
        gt=0,
        le=PILLOW_MAX_PIXELS,
        description="Width times height. Decoding takes about 7 bytes a pixel at its peak (WebP 18, AVIF 12).",
    )
    min_side: int = Field(
        16,
        gt=0,
        description="Pixels of the shorter side. Smaller pictures hold nothing that could be judged.",
    )
    max_side: int = Field(
        16_384,
        gt=0,
        description="Pixels of the longer side.",
    )
    max_aspect: float = Field(
        20.0,
        ge=1,
        description="Longer side divided by shorter side.",
    )

    def check_bytes(self, count: int, field: str) -> None:
        """Raises ``InvalidArgument`` for an empty file, ``TooLarge`` beyond ``max_bytes``."""
        if count == 0:
            raise InvalidArgument("the picture is empty (0 bytes); send the bytes of an image file", field=field)
        if count > self.max_bytes:
            raise TooLarge(
                f"the file has {count:,} bytes, more than the {self.max_bytes:,} that this server accepts; "
                "send a smaller or more compressed picture",
                field=field,
            )

    def check_size(self, width: int, height: int, field: str) -> None:
        """Raises ``InvalidArgument`` or ``TooLarge`` if a picture of ``width`` x ``height`` pixels is not accepted."""
        shorter, longer = min(width, height), max(width, height)
        picture = f"the picture has {width} x {height} pixels"
        if shorter < self.min_side:
            raise InvalidArgument(
                f"{picture}; its shorter side must have at least {self.min_side}; send a larger picture", field=field
            )
        if longer > self.max_side:
            raise TooLarge(
                f"{picture}; no side may have more than {self.max_side:,}; send a smaller picture", field=field
            )
        if width * height > self.max_pixels:
            raise TooLarge(
                f"{picture}, {width * height:,} in all; at most {self.max_pixels:,} are accepted; "
                "send a smaller picture",
                field=field,
            )
        if longer > self.max_aspect * shorter:
            raise InvalidArgument(
                f"{picture}; its longer side may be at most {self.max_aspect:g} times the shorter one; "
                "crop it or send its parts",
                field=field,
            )
