"""Every form of picture that a caller may hold."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageCms

import critiq
from critiq.images import split_pictures, to_image
from critiq.v1 import scoring_pb2

RAW = scoring_pb2.RawImage
RNG = np.random.default_rng(7)


def rgb(height: int = 6, width: int = 9) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def pixels_of(message: scoring_pb2.Image) -> np.ndarray[Any, Any]:
    """What a server would see, ``[height, width, channels]``: by the contract alone, not by the code under test."""
    if message.WhichOneof("source") == "encoded":
        return np.asarray(Image.open(io.BytesIO(message.encoded)))
    raw = message.raw
    kind = "<f4" if raw.dtype == RAW.DTYPE_FLOAT32 else np.uint8
    array = np.frombuffer(raw.data, kind).reshape(list(raw.shape))
    return array.transpose(1, 2, 0) if raw.layout == RAW.LAYOUT_CHW else array


@pytest.mark.parametrize("form", [str, Path, Path.read_bytes, lambda path: bytearray(path.read_bytes())])
def test_files_travel_as_they_are(tmp_path: Path, form: Callable[[Path], Any]) -> None:
    path = tmp_path / "a picture.jpg"
    Image.fromarray(rgb()).save(path)
    assert to_image(form(path)).encoded == path.read_bytes()


def test_file_objects(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    Image.fromarray(rgb()).save(path)
    with path.open("rb") as file:
        assert to_image(file).encoded == path.read_bytes()
    assert to_image(io.BytesIO(path.read_bytes())).encoded == path.read_bytes()


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "1", "I;16"])
def test_pil_images_lose_nothing(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(RNG.integers(0, 65536, (6, 9), dtype=np.uint16))
    else:
        image = Image.fromarray(RNG.integers(0, 256, (6, 9, 4), dtype=np.uint8), "RGBA").convert(mode)
    message = to_image(image)
    sent = pixels_of(message)
    assert np.array_equal(sent, np.asarray(image))
    assert (message.WhichOneof("source") == "raw") == (mode == "RGB")


def test_pil_palette_keeps_its_colours() -> None:
    image = Image.fromarray(rgb()).quantize(16)
    sent = Image.open(io.BytesIO(to_image(image).encoded))
    assert np.array_equal(np.asarray(sent.convert("RGB")), np.asarray(image.convert("RGB")))


def test_pil_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    pixels = rgb()
    path = tmp_path / "turned.png"
    Image.fromarray(pixels).save(path, exif=exif)
    assert np.array_equal(pixels_of(to_image(Image.open(path))), np.rot90(pixels, -1))


def test_pil_profile_travels_along() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.fromarray(rgb())
    image.info["icc_profile"] = profile
    assert Image.open(io.BytesIO(to_image(image).encoded)).info["icc_profile"] == profile


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "LAB"])
def test_pil_modes_that_no_png_can_hold(mode: str) -> None:
    image = Image.new(mode, (9, 6))
    assert np.array_equal(pixels_of(to_image(image)), np.asarray(image.convert("RGB")))


def test_pil_cmyk_with_a_broken_profile() -> None:
    image = Image.new("CMYK", (9, 6))
    image.info["icc_profile"] = b"no profile"
    with pytest.raises(critiq.InvalidArgument, match=r"^image: "):
        to_image(image)


def test_pil_image_of_a_truncated_file() -> None:
    buffer = io.BytesIO()
    Image.fromarray(rgb(200, 200)).save(buffer, "JPEG")
    with pytest.raises(critiq.InvalidArgument, match="truncated"):
        to_image(Image.open(io.BytesIO(buffer.getvalue()[:2000])))


@given(
    arrays.arrays(
        np.uint8,
        st.tuples(st.integers(5, 12), st.integers(5, 12), st.sampled_from([1, 3])),
        elements=st.integers(0, 255),
    )
)
def test_both_layouts_and_strides(picture: np.ndarray[Any, Any]) -> None:
    assert np.array_equal(pixels_of(to_image(picture)), picture)
    assert np.array_equal(pixels_of(to_image(picture.transpose(2, 0, 1))), picture)
    assert np.array_equal(pixels_of(to_image(picture[::-1, ::2])), picture[::-1, ::2])


def test_grey_arrays() -> None:
    grey = rgb()[:, :, 0]
    assert np.array_equal(pixels_of(to_image(grey))[:, :, 0], grey)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_float_arrays(dtype: Any) -> None:
    picture = RNG.random((6, 9, 3)).astype(dtype)
    message = to_image(picture)
    assert message.raw.dtype == RAW.DTYPE_FLOAT32
    assert np.array_equal(pixels_of(message), picture.astype(np.float32))


@pytest.mark.parametrize("layout", ["hwc", "chw"])
def test_rgba_arrays_keep_their_alpha(layout: str) -> None:
    picture = RNG.integers(0, 256, (6, 9, 4), dtype=np.uint8)
    sent = pixels_of(to_image(picture if layout == "hwc" else picture.transpose(2, 0, 1)))
    assert np.array_equal(sent, picture)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.bfloat16])
def test_torch_tensors(dtype: torch.dtype) -> None:
    picture = torch.rand(3, 6, 9)
    picture = (picture * 255).to(dtype) if dtype == torch.uint8 else picture.to(dtype)
    message = to_image(picture)
    assert message.raw.layout == RAW.LAYOUT_CHW
    assert np.array_equal(pixels_of(message), picture.permute(1, 2, 0).to(torch.float32).numpy())
    assert np.array_equal(pixels_of(to_image(picture.permute(1, 2, 0))), pixels_of(message))


def test_torch_tensor_with_a_gradient() -> None:
    assert to_image(torch.rand(3, 6, 9, requires_grad=True)).raw.shape == [3, 6, 9]


class Tensor:
    """What the client may rely on in a tensor of any library: these methods and no more."""

    def __init__(self, array: np.ndarray[Any, Any], device: str = "cuda") -> None:
        self._array, self._device, self._attached = array, device, True
        self.dtype = array.dtype
        self.shape = array.shape

    def detach(self) -> Tensor:
        self._attached = False
        return self

    def cpu(self) -> Tensor:
        self._device = "cpu"
        return self

    def numpy(self) -> np.ndarray[Any, Any]:
        if self._attached or self._device != "cpu":
            raise RuntimeError("detach it and bring it to the CPU first")
        return self._array


def test_tensors_are_known_by_their_methods() -> None:
    picture = rgb().transpose(2, 0, 1)
    assert np.array_equal(pixels_of(to_image(Tensor(picture))), picture.transpose(1, 2, 0))


def test_ambiguous_shapes_follow_the_library() -> None:
    picture = RNG.integers(0, 256, (3, 8, 3), dtype=np.uint8)
    assert to_image(picture).raw.layout == RAW.LAYOUT_HWC
    assert to_image(torch.from_numpy(picture)).raw.layout == RAW.LAYOUT_CHW


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "NoneType is no picture"),
        (17, "int is no picture"),
        ([[1, 2], [3, 4]], "list is no picture"),
        (b"", "no bytes"),
        ("https://example.org/photo.jpg", "is a URL"),
        ("no/such/file.png", "cannot read 'no/such/file.png': No such file"),
        ("nul\0byte", "cannot read"),
        (Path(__file__).parent, "cannot read"),
        (io.StringIO("text"), "binary mode"),
        (np.zeros((6, 9, 5), np.uint8), "neither the first nor the last axis"),
        (np.zeros((6, 0, 3), np.uint8), "no picture"),
        (np.zeros(9, np.uint8), "no picture"),
        (np.zeros((2, 6, 9, 3), np.uint8), "score_batch"),
        (np.zeros((6, 9, 3), np.int64), "dtype int64"),
        (np.zeros((6, 9, 3), np.uint16), "dtype uint16"),
        (np.zeros((6, 9, 3), bool), "dtype bool"),
        (np.zeros((6, 9, 3), complex), "dtype complex128"),
        (np.zeros((6, 9, 4), np.float32), "alpha travels only with uint8"),
        (np.array(["text"]), "no picture"),
        (torch.zeros(3, 6, 9).to_sparse(), "no NumPy form"),
    ],
)
def test_what_is_no_picture(value: Any, words: str) -> None:
    with pytest.raises(critiq.InvalidArgument, match=words) as caught:
        to_image(value, "first")
    assert caught.value.field == "first"


def test_empty_and_huge_files(tmp_path: Path) -> None:
    empty = tmp_path / "empty.png"
    empty.touch()
    with pytest.raises(critiq.InvalidArgument, match="is empty"):
        to_image(empty)
    huge = tmp_path / "huge.png"
    with huge.open("wb") as file:
        file.truncate(10**12)  # sparse
    with pytest.raises(critiq.TooLarge, match="1000000000000 bytes"):
        to_image(huge)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("library", [np.asarray, torch.from_numpy])
def test_arrays_of_pictures_are_split(layout: str, library: Callable[[Any], Any]) -> None:
    pictures = RNG.integers(0, 256, (4, 6, 9, 3), dtype=np.uint8)
    together = library(pictures if layout == "nhwc" else pictures.transpose(0, 3, 1, 2).copy())
    messages = [to_image(picture) for picture in split_pictures(together, "images")]
    assert np.array_equal(np.stack([pixels_of(message) for message in messages]), pictures)


@pytest.mark.parametrize("value", ["photo.jpg", b"bytes", Path("photo.jpg"), Image.new("RGB", (1, 1)), rgb(), 3, None])
def test_one_picture_is_no_sequence(value: Any) -> None:
    with pytest.raises(critiq.InvalidArgument, match=r"^images: "):
        split_pictures(value, "images")
