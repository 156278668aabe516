"""Series of slices as studies: trained on from folders and tables, cached, and predicted from copies that hide their order."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, train_run

pytest.importorskip("pydicom")
from data.images.phantom import PATIENT, bars, write_series  # noqa: E402

from xraylab.data.datasets.folder import Folder  # noqa: E402
from xraylab.inference.inputs import find_studies  # noqa: E402
from xraylab.inference.predictor import predict  # noqa: E402
from xraylab.inference.studies import Options  # noqa: E402
from xraylab.training.study_module import load_module  # noqa: E402

SMALL = [
    *TINY, "max_epochs=1", "batch_size=4", "image.size=32", "backbone=resnet18_small", "+backbone.kwargs.channels=[8,8,16,16]",
    "pool=max_feature",
]  # fmt: skip


def knees(top, n=18, **options):
    """``train`` and ``test`` of two classes: 12-bit MR series of 4 to 6 slices, each with a localiser, some with a second series."""
    for k in range(n):
        folder = top / ("train" if k < n * 2 // 3 else "test") / ("sick" if k % 2 else "normal") / f"knee{k:02d}"
        rng = np.random.default_rng(k)
        volume = bars(4 + k % 3, dtype=np.uint16) * 12 + rng.integers(0, 60 + 200 * (k % 2), (4 + k % 3, 24, 20)).astype(np.uint16)
        write_series(folder / "SE1", volume, series=f"1.{k}.1", study=f"1.{k}", **options)
        write_series(folder / "SE0", volume[:1], series=f"1.{k}.2", study=f"1.{k}", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
        if k % 3 == 0:
            write_series(folder / "SE2", volume[:3] // 2, (1, 0, 0, 0, 0, -1), series=f"1.{k}.3", study=f"1.{k}")
    return top


def shuffled(top, to):
    """A copy in which files are called otherwise, in another order, and lie in other folders of their study."""
    rng = np.random.default_rng(5)
    for study in sorted({p.parents[1].relative_to(top) for p in top.rglob("IM*")}):
        files = sorted((top / study).rglob("IM*"))
        for number, place in zip(rng.permutation(900)[: len(files)], rng.permutation(len(files)), strict=True):
            file = to / study / "DICOM" / f"PA{number % 2}" / f"{number:08d}"
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(files[place], file)
    return to


def probabilities(run, given):
    found = predict(run, find_studies(given), Options(workers=0))
    assert not found.skipped
    return found.table.frame.set_index("id") if hasattr(found.table, "frame") else found.table.set_index("id")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    top = tmp_path_factory.mktemp("series")
    knees(top / "knees")
    train_run(top / "run", *SMALL, "dataset=folder", f"dataset.root={top / 'knees'}", f"cache={top / 'cache'}")
    return top


def test_a_shuffled_copy_is_predicted_as_it_was_trained(run, tmp_path):
    of_run = pd.read_csv(run / "run" / "predictions" / "test.csv").set_index("id")["p_sick"]
    copy = shuffled(run / "knees" / "test", tmp_path / "copy")
    for top in (run / "knees" / "test", copy):
        found = probabilities(run / "run", str(top))["p_sick"]
        assert len(found) == 6
        assert [name.split("/")[1] for name in found.index.sort_values()] == [n.split("/")[2] for n in of_run.index.sort_values()]
        assert found.sort_index().to_numpy() == pytest.approx(of_run.sort_index().to_numpy(), abs=1e-6)
    assert load_module(run / "run" / "checkpoints" / "best.ckpt").images["rule"] == {
        "series": "largest", "window": [], "slices": None
    }  # fmt: skip


def test_nothing_of_a_patient_is_left_of_a_series(run):
    for file in [*(run / "run").rglob("*"), *(run / "cache").rglob("*")]:
        for secret in PATIENT.values() if file.is_file() else ():
            assert secret.encode() not in file.read_bytes(), file


def test_studies_labels_and_pixels_do_not_depend_on_names(run, tmp_path):
    copy = shuffled(run / "knees", tmp_path / "knees")
    one, other = (Folder(str(top)).read(top) for top in (run / "knees", copy))
    assert one.frame.drop(columns="group").equals(other.frame.drop(columns="group"))
    for images in one.frame["images"]:
        assert np.array_equal(one.source.read(images), other.source.read(images))
