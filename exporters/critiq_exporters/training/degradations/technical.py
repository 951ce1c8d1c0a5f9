"""Conventional technical degradations: the 25 families of KADID-10k, and three that today's pipelines add.

Source: Lin, Hosu and Saupe, "KADID-10k: a large-scale artificially distorted IQA database", section on distortions. The
strengths are our own, chosen so that level 1 is just visible and level 5 ruins the picture.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter
from scipy import ndimage

from critiq_exporters.training.degradations.pixelwise import (
    blur,
    convolve,
    disc,
    encoded,
    from_hsv,
    from_ycc,
    pick,
    rescale,
    to_hsv,
    to_pixels,
    to_ycc,
    warp,
)
from critiq_exporters.training.degradations.registry import Pixels, family


@family("technical")
def gaussian_blur(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    return to_pixels(blur(pixels, pick((0.7, 1.2, 2.0, 3.2, 5.0), level)))


@family("technical")
def lens_blur(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    return convolve(pixels, disc(pick((1.0, 1.8, 3.0, 4.5, 6.5), level)))


@family("technical")
def motion_blur(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    length = int(pick((3, 5, 9, 15, 23), level))
    line = np.zeros((length, length), dtype=np.float32)
    line[length // 2] = 1.0
    kernel = ndimage.rotate(line, float(rng.uniform(0, 180)), reshape=False, order=1)
    return convolve(pixels, (kernel / kernel.sum()).astype(np.float32))


@family("technical")
def colour_diffusion(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    ycc = to_ycc(pixels)
    ycc[..., 1:] = blur(ycc[..., 1:], pick((2, 4, 7, 11, 16), level))
    return from_ycc(ycc)


@family("technical")
def colour_shift(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    distance = pick((1, 2, 4, 7, 11), level)
    angle = rng.uniform(0, 2 * np.pi)
    result = pixels.copy()
    rows, columns = (round(distance * float(f(angle))) for f in (np.sin, np.cos))
    result[..., 1] = ndimage.shift(pixels[..., 1], (rows, columns), order=0, mode="nearest")
    result[..., 2] = ndimage.shift(pixels[..., 2], (-rows, -columns), order=0, mode="nearest")
    return result


@family("technical")
def colour_quantisation(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    colours = int(pick((64, 32, 16, 9, 5), level))
    return np.asarray(Image.fromarray(pixels).quantize(colours, Image.Quantize.FASTOCTREE).convert("RGB"))


@family("technical")
def desaturation(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    hsv = to_hsv(pixels)
    hsv[..., 1] *= pick((0.6, 0.45, 0.3, 0.15, 0.0), level)
    return from_hsv(hsv)


@family("technical")
def chroma_gain(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    ycc = to_ycc(pixels)
    ycc[..., 1:] = 128 + (ycc[..., 1:] - 128) * pick((1.6, 2.1, 3.0, 4.5, 7.0), level)
    return from_ycc(ycc)


@family("technical")
def jpeg2000(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    rate = pick((24, 40, 70, 120, 220), level)
    return encoded(pixels, "JPEG2000", quality_mode="rates", quality_layers=[rate])


@family("technical")
def jpeg(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    return encoded(pixels, "JPEG", quality=int(pick((40, 25, 15, 9, 4), level)))


@family("technical")
def webp(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    return encoded(pixels, "WEBP", quality=int(pick((35, 20, 10, 4, 0), level)), method=2)


@family("technical")
def white_noise(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    return to_pixels(pixels + rng.normal(0, pick((6, 11, 19, 32, 52), level), pixels.shape))


@family("technical")
def chroma_noise(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    ycc = to_ycc(pixels)
    ycc[..., 1:] += rng.normal(0, pick((8, 14, 24, 38, 60), level), (*pixels.shape[:2], 2)).astype(np.float32)
    return from_ycc(ycc)


@family("technical")
def impulse_noise(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    hit = rng.random(pixels.shape[:2]) < pick((0.004, 0.012, 0.03, 0.07, 0.15), level)
    result = pixels.copy()
    result[hit] = np.where(rng.random((int(hit.sum()), 3)) < 0.5, 0, 255).astype(np.uint8)
    return result


@family("technical")
def multiplicative_noise(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    return to_pixels(pixels * (1 + rng.normal(0, pick((0.06, 0.11, 0.19, 0.32, 0.5), level), pixels.shape)))


@family("technical")
def denoised(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Noise, then a median filter that is too strong: smeared detail with mottled rests."""
    noisy = pixels + rng.normal(0, pick((8, 14, 22, 34, 48), level), pixels.shape)
    size = int(pick((3, 3, 5, 5, 7), level))
    return np.asarray(Image.fromarray(to_pixels(noisy)).filter(ImageFilter.MedianFilter(size)))


@family("technical")
def brighten(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    return to_pixels(255 * (pixels / 255.0) ** pick((0.72, 0.58, 0.44, 0.31, 0.2), level))


@family("technical")
def darken(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    return to_pixels(255 * (pixels / 255.0) ** pick((1.5, 2.0, 2.8, 4.2, 6.5), level))


@family("technical")
def mean_shift(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    sign = 1 if rng.random() < 0.5 else -1
    return to_pixels(pixels + sign * pick((20, 35, 52, 74, 100), level))


@family("technical")
def jitter(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    strength = pick((0.6, 1.2, 2.2, 3.6, 5.5), level)
    offsets = rng.normal(0, strength, (2, *pixels.shape[:2])).astype(np.float32)
    return warp(pixels, offsets[0], offsets[1])


@family("technical")
def displaced_patches(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """KADID's non-eccentricity patches: small squares copied from close by."""
    height, width = pixels.shape[:2]
    side = max(4, min(height, width) // 16)
    result = pixels.copy()
    for _ in range(int(pick((15, 30, 55, 90, 140), level))):
        y, x = int(rng.integers(0, height - side)), int(rng.integers(0, width - side))
        dy, dx = rng.integers(-side, side + 1, 2)
        from_y, from_x = int(np.clip(y + dy, 0, height - side)), int(np.clip(x + dx, 0, width - side))
        result[y : y + side, x : x + side] = pixels[from_y : from_y + side, from_x : from_x + side]
    return result


@family("technical")
def pixelate(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    factor = pick((0.6, 0.42, 0.28, 0.18, 0.11), level)
    return rescale(pixels, factor, Image.Resampling.BOX, Image.Resampling.NEAREST)


@family("technical")
def quantisation(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    steps = pick((14, 9, 6, 4, 3), level) - 1
    return to_pixels(np.rint(pixels / 255.0 * steps) / steps * 255)


@family("technical")
def colour_blocks(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    height, width = pixels.shape[:2]
    side = max(4, min(height, width) // 14)
    result = pixels.copy()
    for _ in range(int(pick((2, 4, 8, 14, 24), level))):
        y, x = int(rng.integers(0, height - side)), int(rng.integers(0, width - side))
        result[y : y + side, x : x + side] = rng.integers(0, 256, 3)
    return result


@family("technical")
def oversharpen(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    detail = pixels - blur(pixels, 1.2)
    return to_pixels(pixels + pick((1.2, 2.2, 3.8, 6.5, 11.0), level) * detail)


@family("technical")
def contrast_change(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Flatter or harsher, around the mean grey."""
    gain = pick((0.72, 0.56, 0.42, 0.3, 0.18), level) if rng.random() < 0.5 else pick((1.5, 1.9, 2.6, 3.8, 6.0), level)
    mean = float(pixels.mean())
    return to_pixels(mean + (pixels - mean) * gain)


@family("technical")
def resampled(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Shrunk and enlarged again, as thumbnails are."""
    return rescale(
        pixels, pick((0.7, 0.5, 0.35, 0.24, 0.15), level), Image.Resampling.BILINEAR, Image.Resampling.BICUBIC
    )


@family("technical")
def repeated_jpeg(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Saved again and again with shifts, as pictures that travel through chats are (ELIQ, section 3.2.3)."""
    result = pixels
    for _ in range(3):
        quality = int(pick((48, 32, 21, 13, 7), level) + rng.integers(-2, 3))
        shift = tuple(int(v) for v in rng.integers(0, 8, 2))
        result = np.roll(
            encoded(np.roll(result, shift, (0, 1)), "JPEG", quality=quality), (-shift[0], -shift[1]), (0, 1)
        )
    return result
