"""Masks to and from COCO's run-length encoding; the only door to pycocotools.

Counts travel as `str`, as in SA-1B's JSON. pycocotools overflows when it sums the areas of more
than 255 RLEs in one call (numpy 2), so areas are asked for one by one.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from stages.records import Rle

Mask = NDArray[np.bool_]


def encode_rle(mask: Mask) -> Rle:
    """(H, W) bool to RLE."""
    return _from_coco(coco.encode(np.asfortranarray(mask, dtype=np.uint8)))


def encode_window(window: Mask, *, offset_xy: tuple[int, int], size_hw: tuple[int, int]) -> Rle:
    """RLE of a mask that is known only inside a window and empty outside, without drawing it whole.

    Args:
        window: (h, w) bool.
        offset_xy: where the window's top left pixel lies in the full frame.
        size_hw: the full frame.
    """
    (h, w), (x0, y0) = window.shape, offset_xy
    # A closing row of zeros ends every run within its column, so runs map to the full frame alone.
    columns = np.zeros((w, h + 1), dtype=np.int8)
    columns[:, :h] = window.T
    edges = np.flatnonzero(np.diff(columns.ravel(), prepend=np.int8(0), append=np.int8(0)))
    flat = (edges // (h + 1) + x0) * size_hw[0] + edges % (h + 1) + y0
    return rle_from_runs(flat.reshape(-1, 2), size_hw)


def decode_rle(rle: Rle) -> Mask:
    """RLE to (H, W) bool."""
    mask: Mask = coco.decode(_to_coco(rle)).astype(bool)
    return mask


def rle_area(rle: Rle) -> int:
    return int(coco.area(_to_coco(rle)))


def rle_bbox(rle: Rle) -> tuple[float, float, float, float]:
    """XYWH; zeros for an empty mask."""
    x, y, width, height = (float(value) for value in coco.toBbox(_to_coco(rle)))
    return x, y, width, height


def rle_runs(rle: Rle) -> NDArray[np.int64]:
    """(N, 2) start and end of every run of mask pixels; positions in the columns laid end to end.

    What a shape statistic needs, at a hundredth of the cost of drawing the mask.
    """
    ends = np.cumsum(uncompressed_counts(rle.counts))
    runs = np.stack((ends[0 : len(ends) - 1 : 2], ends[1::2]), axis=1)
    return runs[runs[:, 0] < runs[:, 1]]


def rle_from_runs(runs: NDArray[np.int64], size_hw: tuple[int, int]) -> Rle:
    """RLE of the runs (N, 2) of `rle_runs`; they are in order, and may touch but not overlap."""
    starts, ends = runs.T
    apart = starts[1:] != ends[:-1]
    starts = starts[np.concatenate(([True], apart))] if len(starts) else starts
    ends = ends[np.concatenate((apart, [True]))] if len(ends) else ends
    height, width = size_hw
    bounds = np.concatenate(([0], np.stack((starts, ends), axis=1).ravel(), [height * width]))
    counts = np.diff(bounds).tolist()
    if len(counts) > 1 and counts[-1] == 0:  # the frame's last pixel is mask
        counts.pop()
    return rle_from_uncompressed(counts, height, width)


def uncompressed_counts(text: str) -> NDArray[np.int64]:
    """Run lengths of COCO's compressed counts, checked: pycocotools trusts any string.

    Each character holds five bits, low ones first, and in its sixth bit whether more follow; the
    last one's fifth bit is the sign. From the fourth run on, a run is stored as its difference to
    the one before the last.

    Raises:
        ValueError: the text is no RLE.
    """
    codes = np.frombuffer(text.encode("ascii"), dtype=np.uint8).astype(np.int64) - 48
    if not len(codes):
        return codes
    last = (codes & 32) == 0
    if codes.min() < 0 or codes.max() > 63 or not last[-1]:
        raise ValueError("counts hold characters that no RLE has, or end within a number")
    starts = np.flatnonzero(np.concatenate(([True], last[:-1])))
    place = np.arange(len(codes)) - np.repeat(starts, np.diff(np.append(starts, len(codes))))
    if place.max() > 8:
        raise ValueError("counts hold a number of more than 40 bits")
    runs = np.add.reduceat((codes & 31) << (5 * place), starts)
    negative = (codes[last] & 16) != 0
    runs[negative] -= 1 << (5 * (place[last][negative] + 1))
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def rle_iou(first: Sequence[Rle], second: Sequence[Rle]) -> NDArray[np.float64]:
    """(N, M) mask IoU of every pair."""
    if not first or not second:
        return np.zeros((len(first), len(second)))
    pairs = coco.iou([_to_coco(r) for r in first], [_to_coco(r) for r in second], [0] * len(second))
    return np.asarray(pairs, dtype=np.float64)


def rle_from_polygons(polygons: Sequence[Sequence[float]], height: int, width: int) -> Rle:
    """COCO polygons, each x0 y0 x1 y1 ..., united."""
    return _from_coco(coco.merge(coco.frPyObjects([list(p) for p in polygons], height, width)))


def rle_from_uncompressed(counts: Sequence[int], height: int, width: int) -> Rle:
    if sum(counts) != height * width or any(count < 0 for count in counts):
        raise ValueError(
            f"RLE counts sum to {sum(counts)}, expected {height} x {width} = {height * width}"
        )
    return _from_coco(
        coco.frPyObjects({"size": [height, width], "counts": list(counts)}, height, width)
    )


def _to_coco(rle: Rle) -> dict[str, Any]:
    return {"size": list(rle.size), "counts": rle.counts.encode("ascii")}


def _from_coco(encoded: Any) -> Rle:
    height, width = encoded["size"]
    return Rle(size=(int(height), int(width)), counts=encoded["counts"].decode("ascii"))
