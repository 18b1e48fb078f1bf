"""File bytes to pixels: upright RGB, or a reason why not.

Whatever the file holds, a caller gets uint8 (H, W, 3) or an `UnreadableImageError`:

- EXIF orientation is applied. Where the tag sits behind a PNG's pixels it is ignored, so that a
  look at the header and a full decode never disagree.
- Greyscale, 1-bit, palette, CMYK and YCCK become RGB without their colour profile.
- More than 8 bits of grey (16-bit, 32-bit, float) are stretched from the image's own range to
  0..255: a 12-bit scan in a 16-bit file keeps its contrast where a shift would leave it black.
- Transparency is laid over white, as a page would show it.
- Of an animation or a multi-page file only the first frame is read.

A file that ends early is refused, never padded with grey: Pillow notices a cut end itself, and PNG
checksums and the JPEG end marker find the end that was allocated but never written. Formats
without either (BMP, raw TIFF, WebP) hide such a hole.
"""

import io
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, PositiveInt

from engine.errors import UnreadableImageError
from stages.records import ImageStatus

Pixels = NDArray[np.uint8]

# Raster formats only: some of Pillow's other readers start programs (EPS) or open other files.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
MAX_REASON = 200
MAX_JPEG_SIDE = 65_500
"""Pixels; libjpeg writes no longer one."""


class ImageLimits(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    max_pixels: PositiveInt = 200_000_000
    """Images of more pixels than this are refused on their header, before any memory is taken."""


class WorkSize(BaseModel):
    """The frame in which masks are made. SA-1B: short side 1500."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    max_short_side: PositiveInt | None = 1500
    """Pixels; None leaves the short side as it is."""
    max_long_side: PositiveInt | None = None
    """Pixels; None leaves the long side as it is."""


@dataclass(frozen=True)
class ImageHeader:
    width: int
    height: int
    """Upright, original pixels."""
    orientation: int
    """EXIF orientation of the stored pixels, 1 to 8; 1 means that they are upright already."""


def read_pixels(data: bytes, limits: ImageLimits) -> Pixels:
    """Upright RGB (H, W, 3) of a whole file, writable and contiguous.

    Raises:
        UnreadableImageError: the bytes are no image, end early, or exceed the limits.
    """
    with _pillow(data):
        image = _open(data, limits)
        orientation = _orientation(image)
        _refuse_unfinished(image, data)
        image.load()
        return np.array(turn_upright(np.asarray(_to_rgb(image)), orientation), order="C")


def probe(data: bytes, limits: ImageLimits) -> ImageHeader:
    """What the header promises; nothing is decoded, so a cut file passes."""
    with _pillow(data):
        image = _open(data, limits)
        orientation = _orientation(image)
    width, height = image.size if orientation < 5 else image.size[::-1]
    return ImageHeader(width=width, height=height, orientation=orientation)


def turn_upright(stored: NDArray[Any], orientation: int) -> NDArray[Any]:
    """A view of (H, W, ...) pixels as EXIF says they are to be seen."""
    turned = stored.swapaxes(0, 1) if orientation >= 5 else stored
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return turned[::rows, ::columns]


def work_size_hw(size_hw: tuple[int, int], size: WorkSize) -> tuple[int, int]:
    """The size an image is worked on at; never larger than the original, never below 1."""
    short, long = min(size_hw), max(size_hw)
    scale = min(1.0, (size.max_short_side or short) / short, (size.max_long_side or long) / long)
    height, width = (max(1, round(side * scale)) for side in size_hw)
    return height, width


def resize_to_work_size(pixels: Pixels, size: WorkSize) -> Pixels:
    """Shrink to the work size (Lanczos); an image within it is returned as it is."""
    height, width = work_size_hw((pixels.shape[0], pixels.shape[1]), size)
    if pixels.shape[:2] == (height, width):
        return pixels
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
    return np.array(image, dtype=np.uint8)


# Pillow's bomb limit, its tolerance of cut files and Python's warning filters belong to the whole
# process: they are ours for one decode at a time, and put back after it.
_PROCESS_SETTINGS = threading.Lock()


@contextmanager
def _pillow(data: bytes) -> Iterator[None]:
    """Run Pillow with our limits, in silence, every complaint an UnreadableImageError."""
    if not data:
        raise UnreadableImageError(ImageStatus.UNREADABLE, "the file is empty (0 bytes)")
    with _PROCESS_SETTINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        saved = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = None, False
        try:
            yield
        except (UnreadableImageError, MemoryError):
            raise  # too little memory is the machine's fault, not the file's
        except Exception as error:  # Pillow lets hostile bytes raise nearly anything
            raise UnreadableImageError(ImageStatus.UNREADABLE, _reason(error)) from error
        finally:
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = saved


def _open(data: bytes, limits: ImageLimits) -> Image.Image:
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    image = Image.open(io.BytesIO(data), formats=formats)
    width, height = image.size
    if width < 1 or height < 1:
        raise ValueError(f"the header gives a size of {width} x {height}")
    if width * height > limits.max_pixels:
        raise UnreadableImageError(
            ImageStatus.TOO_LARGE,
            f"{width} x {height} is more than the limit of {limits.max_pixels} pixels",
        )
    return image


def _orientation(image: Image.Image) -> int:
    """A tag that cannot be read costs the image its orientation, not its row."""
    if "exif" not in image.info and "Raw profile type exif" not in image.info:
        return 1  # also what getexif() would say of a PNG, after decoding all of it
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # the parser trips over broken tags in many ways
        return 1
    return value if value in range(1, 9) else 1


def _refuse_unfinished(image: Image.Image, data: bytes) -> None:
    """Find an end that was allocated but never written: the decoders take its zeros for pixels."""
    if image.format == "PNG":
        Image.open(io.BytesIO(data), formats=["PNG"]).verify()  # the checksum of every chunk
    elif image.format in ("JPEG", "MPO") and not _jpeg_has_end(data):
        raise ValueError("the JPEG data has no end marker: the file is cut off or half written")


# In a JPEG's entropy-coded data 0xff is followed by 0x00 (stuffing) or a restart marker.
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_END, _SCAN = 0xD9, 0xDA


def _jpeg_has_end(data: bytes) -> bool:
    """Whether the first image of a JPEG file reaches its end marker; what follows is no concern."""
    position = 2
    while found := _NEXT_MARKER.search(data, position):
        marker = data[found.start() + 1]
        if marker == _END:
            return True
        length = int.from_bytes(data[found.end() : found.end() + 2], "big")
        position = found.end() + length  # over the segment; a scan's pixels follow its header
    return False


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_stretch(np.asarray(image))).convert("RGB")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    coloured = image.convert("RGBA")
    white = Image.new("RGBA", coloured.size, "white")
    return Image.alpha_composite(white, coloured).convert("RGB")


def _stretch(values: NDArray[np.generic]) -> Pixels:
    """The range of the finite values to 0..255, anything not finite and a uniform image to 0."""
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros(values.shape, dtype=np.uint8)
    known = np.where(finite, values, values[finite].min()).astype(np.float64)
    known -= known.min()
    known /= known.max() or 1.0
    return np.rint(known * 255).astype(np.uint8)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its own text holds a memory address
        return f"not an image of a known format ({', '.join(FORMATS)})"
    lines = str(error).splitlines()
    return (lines[0] if lines else type(error).__name__)[:MAX_REASON]
