import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as pycoco

from engine.coco import RefusedAnnotationError, read_mask
from stages.rle import decode_rle, encode_rle

SIZE = (20, 30)


def blob(height=20, width=30, seed=0):
    return np.random.default_rng(seed).random((height, width)) < 0.4


def refused(segmentation, size_hw=SIZE):
    with pytest.raises(RefusedAnnotationError) as caught:
        read_mask({"segmentation": segmentation}, size_hw)
    return caught.value.drop


def compressed(mask):
    rle = encode_rle(mask)
    return {"size": list(rle.size), "counts": rle.counts}


def uncompressed(mask):
    changes = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=0)).tolist()
    bounds = [0, *changes, mask.size]
    return {"size": list(mask.shape), "counts": np.diff(bounds).tolist()}


@pytest.mark.parametrize("form", [compressed, uncompressed])
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), height=st.integers(1, 70), width=st.integers(1, 70))
def test_rle_of_either_form_gives_back_its_mask(form, seed, height, width):
    mask = blob(height, width, seed)
    mask[0, 0] = True
    read = read_mask({"segmentation": form(mask)}, (1, 1))
    assert np.array_equal(decode_rle(read.segmentation), mask)
    assert read.segmentation == encode_rle(mask)
    assert read.area == mask.sum()


def test_long_runs_and_falling_runs_survive_the_compressed_form():
    mask = np.zeros((3000, 3000), bool)
    mask[:, 5:2900] = True
    mask[17, 40] = False
    assert read_mask({"segmentation": compressed(mask)}, (1, 1)).segmentation == encode_rle(mask)


def test_polygons_are_united_in_the_frame_of_their_image():
    squares = [[2, 3, 8, 3, 8, 9, 2, 9], [20.0, 10.0, 25.0, 10.0, 25.0, 15.0, 20.0, 15.0]]
    read = read_mask({"segmentation": squares}, SIZE)
    mask = decode_rle(read.segmentation)
    assert mask.shape == SIZE
    assert read.area == mask.sum() == 6 * 6 + 5 * 5
    assert mask[5, 5]
    assert mask[12, 22]
    assert not mask[5, 15]


def test_crowd_and_votes_are_kept():
    plain = read_mask({"segmentation": compressed(blob())}, SIZE)
    assert (plain.iscrowd, plain.votes) == (False, None)
    marked = read_mask({"segmentation": compressed(blob()), "iscrowd": 1, "votes": 3}, SIZE)
    assert (marked.iscrowd, marked.votes) == (True, 3)


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        3,
        "rubbish",
        [],
        [[]],
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5, 6, 7]],
        [1, 2, 3, 4, 5, 6],
        [["a", 2, 3, 4, 5, 6]],
        [[None, 2, 3, 4, 5, 6]],
        [[float("nan"), 2, 3, 4, 5, 6]],
        [[1e300, 2, 3, 4, 5, 6]],
        [[10**400, 2, 3, 4, 5, 6]],
        {},
        {"counts": [600]},
        {"size": [20], "counts": [600]},
        {"size": [20, 30], "counts": None},
        {"size": [20, 30], "counts": []},
        {"size": [20, 30], "counts": ""},
        {"size": [20, 30], "counts": [599]},
        {"size": [20, 30], "counts": [700, -100]},
        {"size": [20, 30], "counts": ["x"]},
        {"size": [20, 30], "counts": "hello"},
        {"size": [20, 30], "counts": "ümlaut"},
        {"size": [20, 30], "counts": " \n\t"},
        {"size": [20, 30], "counts": "o" * 100},
        {"size": [20, 30], "counts": "o" * 100 + "0"},
        {"size": [-20, -30], "counts": [600]},
        {"size": [10**9, 10**9], "counts": [10**18]},
    ],
)
def test_rubbish_is_refused_as_malformed(segmentation):
    assert refused(segmentation) == "malformed"


def test_a_scribble_is_refused_undrawn_and_an_intricate_outline_is_not():
    across = [[x, 0, x, 20] if x % 2 else [x, 20, x, 0] for x in range(30)]
    comb = [number for edge in across for number in edge]
    assert read_mask({"segmentation": [comb, comb]}, SIZE).area > 0
    scribble = [number for n in range(1000) for number in (60 if n % 2 else -60, n % 20)]
    assert refused([scribble]) == "malformed"
    assert refused([comb] * 10) == "malformed"


@pytest.mark.parametrize("votes", [True, 3_000_000_000, 2.5, "many"])
def test_votes_that_count_nothing_are_not_taken(votes):
    square = [[2, 3, 8, 3, 8, 9, 2, 9]]
    assert read_mask({"segmentation": square, "votes": votes}, SIZE).votes is None


def test_counts_of_another_size_are_refused():
    assert refused({**compressed(blob()), "size": [20, 31]}) == "malformed"
    assert refused({**compressed(blob()), "size": [10, 30]}) == "malformed"


def test_a_mask_without_pixels_is_refused_as_empty():
    assert refused({"size": [20, 30], "counts": [600]}) == "empty"
    assert refused([[-9, -9, -5, -9, -5, -5]]) == "empty"


@settings(deadline=None)
@given(text=st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=60))
def test_random_counts_are_refused_or_add_up(text):
    try:
        read = read_mask({"segmentation": {"size": [20, 30], "counts": text}}, SIZE)
    except RefusedAnnotationError:
        return
    rle = {"size": [20, 30], "counts": text.encode()}
    assert read.area == int(pycoco.area(rle))
