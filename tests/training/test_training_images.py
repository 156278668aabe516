"""The statistic of training images in the checkpoint: of what is held out, of photographs, pages of text and other samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_sample_images

import xraylab
from xraylab.data.preprocessing import prepare


def photographs() -> list[np.ndarray]:
    """Crops of two photographs that scikit-learn brings."""
    rng = np.random.default_rng(0)
    crops = []
    for picture in load_sample_images().images:
        grey = picture.mean(2).round().astype(np.uint8)
        for _ in range(10):
            side = int(rng.integers(150, 400))
            y, x = (int(rng.integers(0, n - side + 1)) for n in grey.shape)
            crops.append(grey[y : y + side, x : x + side])
    return crops


def pages() -> list[np.ndarray]:
    """Pages of text."""
    rng, out = np.random.default_rng(1), []
    for size in range(10, 30):
        page = Image.new("L", (600, 800), 255 - size)
        pen, font = ImageDraw.Draw(page), ImageFont.load_default(size)
        for y in range(20, 780, int(1.5 * size)):
            words = " ".join("".join(map(chr, rng.integers(97, 123, rng.integers(2, 9)))) for _ in range(12))
            pen.text((20, y), words, fill=size, font=font)
        out.append(np.asarray(page))
    return out


def refused(run, studies) -> float:
    """The share of studies that are unlike those of training."""
    module = xraylab.load(run)
    found = [module.unlike([prepare(study, **module.preprocessing)]) for study in studies]
    return float(np.mean([distance > threshold for distance, threshold in found]))


def test_photographs_pages_and_other_samples_are_told_apart_and_held_out_exams_are_not(knee_runs, mura_root, mrnet_root):
    run = knee_runs["axial"]
    module = xraylab.load(run)
    assert module.distribution.n > 30
    assert module.distribution.refused["test"]["n"] == 30
    assert module.distribution.refused["test"]["value"] <= 0.1
    own = [np.load(path) for path in sorted((mrnet_root / "valid" / "axial").glob("*.npy"))]
    assert refused(run, own) == pytest.approx(module.distribution.refused["test"]["value"])
    bones = [np.asarray(Image.open(path).convert("L"))[None] for path in sorted((mura_root / "valid").rglob("image*.png"))[:30]]
    for others in ([x[None] for x in photographs()], [x[None] for x in pages()], bones):
        assert refused(run, others) >= 0.95


def test_a_checkpoint_of_before_says_that_it_is_not_known(knee_runs, tmp_path):
    checkpoint = torch.load(knee_runs["axial"] / "checkpoints" / "best.ckpt", weights_only=True)
    del checkpoint["xraylab"]["distribution"]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    module = xraylab.load(tmp_path / "old.ckpt")
    assert module.distribution is None
    assert module.unlike([np.zeros((1, 32, 32), np.uint8)]) is None
