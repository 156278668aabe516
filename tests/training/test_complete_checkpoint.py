"""The statistic of training images in the checkpoint: of what is held out, of photographs, pages of text and other samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_sample_images

import xraylab
from xraylab.data.preprocessing import prepare
from xraylab.inference.inputs import find_studies
from xraylab.inference.predictor import predict
from xraylab.inference.studies import Options
from xraylab.inference.tolerant_loader import by_study
from xraylab.predict import main as predict_main


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


def test_predicting_names_studies_that_are_unlike_training(knee_runs, mrnet_root, here, tmp_path):
    (tmp_path / "new").mkdir()
    exam = min((mrnet_root / "valid" / "axial").glob("*.npy"))
    volumes = {"exam": np.load(exam), "photographs": np.stack([np.resize(x, (150, 150)) for x in photographs()[:3]])}
    for name, volume in volumes.items():
        np.save(tmp_path / "new" / f"{name}.npy", volume)
    code, text = here(f"run={knee_runs['axial']}", "input=new", "output=new.csv", entry=predict_main)
    assert code == 0
    assert "1 of 2 studies are not like those that the model was trained on" in text
    assert "nothing: photographs" in text
    module = xraylab.load(knee_runs["axial"])
    done = predict(knee_runs["axial"], find_studies(str(tmp_path / "new")), Options(workers=0))
    wanted = [name for name in done.table["id"] if np.greater(*module.unlike([prepare(volumes[name], **module.preprocessing)]))]
    assert done.unlike == wanted == ["photographs"]


def test_means_over_images_are_by_study():
    values, study = torch.tensor([1.0, 5.0, 2.0, 3.0]), torch.tensor([0, 1, 0, 1])
    assert by_study(values, study, 3).tolist() == [1.5, 4.0, 0.0]
