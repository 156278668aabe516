"""Preprocessing as a graph: the grey levels of OpenCV, in both of its ways to compute them, over odd sizes."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from xraylab.data.preprocessing import EACH_AXIS, SHORTER_SIDE, prepare
from xraylab.exporting.resizing import fixed_point, prepared

SIZES = [
    (223, 512, 224), (3000, 2000, 320), (301, 299, 150), (256, 256, 224), (512, 512, 320), (224, 224, 224), (28, 28, 64),
    (100, 77, 224), (300, 100, 224), (224, 500, 224), (31, 64, 32), (1, 1, 32),
    (96, 128, 64), (480, 640, 320), (336, 448, 224), (560, 448, 224), (640, 480, 320), (768, 1024, 512),
    (448, 448, 224), (446, 446, 223), (448, 224, 224), (450, 300, 150), (896, 448, 224), (640, 640, 224), (1024, 768, 300),
]  # fmt: skip


@pytest.fixture(params=[True, False], ids=["intel", "plain"])
def library(request):
    """OpenCV with Intel's library, and without, where it has it."""
    before = cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(request.param)
    if request.param and not cv2.ipp.useIPP():
        pytest.skip("this OpenCV has no such library")
    yield
    cv2.ipp.setUseIPP(before)


def pictures(height: int, width: int) -> dict[str, np.ndarray]:
    """Noise, whose values are of all fractions, and smooth slopes, whose values are near each other; uint8 (2,H,W)."""
    noise = np.random.default_rng(height).integers(0, 256, (2, height, width), np.uint8)
    return {"noise": noise, "smooth": np.stack([cv2.GaussianBlur(image, (0, 0), 5) for image in noise])}


def graph(images: np.ndarray, size: int | None, rescale: bool, resize: str, together: bool = True) -> np.ndarray:
    """(N,H,W[,3]) by the graph's operations."""
    x = torch.from_numpy(images).double()
    x = x[:, None] if x.ndim == 3 else x.permute(0, 3, 1, 2)
    out = prepared(x, size, rescale, resize, together, fixed_point()).permute(0, 2, 3, 1).numpy()
    return out[..., 0] if images.ndim == 3 else out


@pytest.mark.parametrize("resize", [EACH_AXIS, SHORTER_SIDE])
@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_grey_levels_are_those_of_opencv(library, height, width, size, resize):
    for kind, images in pictures(height, width).items():
        for rescale in (False, True):
            wanted = prepare(images, size, rescale, resize).astype(int)
            differences = np.abs(graph(images, size, rescale, resize) - wanted)
            assert differences.max() <= 1, kind
            assert (differences > 0).mean() <= 2e-4, kind


def test_whole_factors_and_equal_sizes_are_exact(library):
    for height, width, size in ((448, 448, 224), (446, 446, 223), (896, 448, 224), (672, 448, 224), (224, 224, 224)):
        for images in pictures(height, width).values():
            assert np.array_equal(graph(images, size, False, EACH_AXIS), prepare(images, size))


def test_halves_of_two_by_two_go_up_and_others_to_even():
    two = np.tile(np.array([[0, 1], [1, 0]], np.uint8), (4, 4))[None]  # each mean is 0.5
    assert (graph(two, 4, False, EACH_AXIS) == 1).all()
    assert (prepare(two, 4) == 1).all()
    four = np.tile(np.array([[1, 0, 1, 0]] * 2, np.uint8), (2, 2))[None]  # of 2 rows and 4 columns
    assert (graph(four[:, :4, :8], 2, False, EACH_AXIS) == 0).all()
    assert (prepare(four[:, :4, :8], 2) == 0).all()


@pytest.mark.parametrize("together", [True, False])
def test_ranges_are_stretched_together_of_a_volume_and_alone_of_views(together):
    rng = np.random.default_rng(0)
    images = np.stack([rng.integers(40, 90, (33, 20), np.uint8), rng.integers(100, 201, (33, 20), np.uint8)])
    wanted = prepare(images if together else list(images), None, True)
    assert np.array_equal(graph(images, None, True, EACH_AXIS, together), wanted)
    assert (graph(images, None, True, EACH_AXIS, together)[0].max() == 255) is np.bool_(not together)


def test_one_grey_level_does_not_divide_by_zero():
    images = np.full((2, 8, 8), 77, np.uint8)
    assert np.array_equal(graph(images, 4, True, EACH_AXIS), prepare(images, 4, True))


def test_colours_are_resized_one_by_one(library):
    images = np.random.default_rng(0).integers(0, 256, (2, 223, 512, 3), np.uint8)
    assert (graph(images, 224, True, EACH_AXIS) != prepare(images, 224, True)).mean() < 1e-4
