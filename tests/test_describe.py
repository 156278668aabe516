"""``python -m xraylab.describe``: numbers that add up, in a report that opens anywhere."""

from __future__ import annotations

import base64
import re
import shutil
from pathlib import Path

import cv2
import hydra
import numpy as np
import pandas as pd
import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from test_check import first_image, write_mura_tree

from xraylab.data.datasets.base import DatasetReader
from xraylab.data.datasets.medmnist import MedMNIST
from xraylab.data.datasets.mrnet import MRNet
from xraylab.data.datasets.mura import MURA
from xraylab.data.splits import assign_splits
from xraylab.data.study_table import UNREADABLE
from xraylab.data.synthetic.medmnist import write_medmnist
from xraylab.errors import UserError
from xraylab.reporting.dataset_page import write
from xraylab.reporting.dataset_report import Description, describe
from xraylab.system.paths import conf_dir


def described(reader: DatasetReader, path: Path, out: Path, sizes_of: int | None = 5000) -> tuple[Description, str]:
    """A description of what training would see, and its report."""
    table = assign_splits(reader.read(path), "holdout", None, 0.3, 0)
    found = describe(table, sizes_of, 2, 0, reader.on_error == "skip")
    write(found, out, path, "selection=holdout", "python -m xraylab.describe")
    return found, (out / "report.html").read_text()


@pytest.fixture(scope="module")
def mura(mura_root, tmp_path_factory):
    """The folder and report of the synthetic MURA."""
    out = tmp_path_factory.mktemp("described")
    _, page = described(MURA(str(mura_root)), mura_root, out)
    return out, page


def test_the_numbers_are_those_of_training(mura, mura_root):
    out, _ = mura
    frame = assign_splits(MURA(str(mura_root)).read(mura_root), "holdout", None, 0.3, 0).frame
    counts = pd.read_csv(out / "counts.csv").set_index(["split", "group"])
    for (split, group), part in frame.groupby(["split", "group"]):
        row = counts.loc[(split, group)]
        assert row["studies"] == len(part)
        assert row["patients"] == part["patient"].nunique()
        assert row["images"] == part["images"].map(len).sum()
        assert row["abnormal_positive"] == (part["abnormal"] == 1).sum()
        assert row["abnormal_negative"] == (part["abnormal"] == 0).sum()
        assert row["abnormal_uncertain"] == row["abnormal_blank"] == 0
    assert len(counts) == frame.groupby(["split", "group"]).ngroups
    per_study = pd.read_csv(out / "images_per_study.csv")
    per_patient = pd.read_csv(out / "studies_per_patient.csv")
    sizes = pd.read_csv(out / "image_sizes.csv")
    for split, part in frame.groupby("split"):
        of_study, of_patient = per_study[per_study["split"] == split], per_patient[per_patient["split"] == split]
        assert of_study["studies"].sum() == (of_patient["studies"] * of_patient["patients"]).sum() == len(part)
        assert (of_study["images"] * of_study["studies"]).sum() == part["images"].map(len).sum()
        assert of_patient["patients"].sum() == part["patient"].nunique()
    assert sizes["images"].sum() == counts["images"].sum()
    first = cv2.imread(str(mura_root / frame["images"].iloc[0][0]), cv2.IMREAD_GRAYSCALE).shape
    assert ((sizes["height"] == first[0]) & (sizes["width"] == first[1])).any()
    for table in (counts.reset_index(), per_study, per_patient, sizes):
        assert table.columns[-1] == "data"
        assert set(table["data"]) == {"synthetic sample"}


def test_the_report_is_one_file_that_says_what_it_shows(mura):
    _, page = mura
    assert not [a for a in re.findall(r"https?://[^\s\"'<)]+", page) if "w3.org" not in a], "name spaces are not fetched"
    assert not re.search(r"<(script|link|iframe)\b", page)
    assert set(re.findall(r'<img [^>]*src="(.{22})', page)) == {"data:image/png;base64,"}
    assert "Synthetic sample: every number and figure" in page
    assert page.count("<svg") == 4, "labels, images per study, studies per patient, sizes"
    assert page.count("synthetic sample -->") == page.count("<svg"), "each figure is marked"
    for group in ("elbow", "wrist"):
        assert f"<h3>{group}</h3>" in page
        assert page.count(f'alt="abnormal positive: train/XR_{group.upper()}') in (1, 2)


def test_real_data_is_not_marked(tmp_path):
    root = write_mura_tree(tmp_path / "MURA-v1.1")
    _, page = described(MURA(str(root)), root, tmp_path / "out")
    assert "ynthetic" not in page
    assert "data" not in pd.read_csv(tmp_path / "out" / "counts.csv")


def test_sizes_of_a_seeded_sample_are_named_as_such(mura_root, tmp_path):
    found, page = described(MURA(str(mura_root)), mura_root, tmp_path / "out", sizes_of=25)
    total = int(found.totals["images"].sum())
    assert found.sizes["images"].sum() == 25
    assert f"25 images, drawn at random from {total:,}" in page
    again, _ = described(MURA(str(mura_root)), mura_root, tmp_path / "again", sizes_of=25)
    assert again.sizes.equals(found.sizes)


def test_an_unreadable_image_stops_it_or_is_named(tmp_path):
    root = write_mura_tree(tmp_path / "MURA-v1.1")
    first_image(root).write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"patient00001/study1_positive/image1\.png"):
        described(MURA(str(root)), root, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    found, page = described(MURA(str(root), on_error="skip"), root, tmp_path / "out")
    assert found.skipped == {UNREADABLE: ["train/XR_ELBOW/patient00001/study1_positive/image1.png"]}
    assert "1 images that cannot be read: train/XR_ELBOW/patient00001/study1_positive/image1.png" in page
    assert found.sized == (12, 13)


def test_skipped_studies_are_listed(tmp_path):
    root = write_mura_tree(tmp_path / "MURA-v1.1")
    first_image(root).unlink()
    _, page = described(MURA(str(root), on_error="skip"), root, tmp_path / "out")
    assert '<h2 id="skipped">Skipped</h2>' in page
    assert "1 missing image files of train_image_paths.csv: train/XR_ELBOW/patient00001/study1_positive/image1.png" in page


def test_the_images_of_an_exam_are_its_slices(mrnet_root, tmp_path):
    found, page = described(MRNet(str(mrnet_root), task=["acl", "meniscus"]), mrnet_root, tmp_path)
    every = [len(np.load(p, mmap_mode="r")) for p in (mrnet_root / "valid" / "axial").iterdir()]
    test = found.per_study[found.per_study["split"] == "test"]
    assert dict(zip(test["images"], test["studies"], strict=True)) == {n: every.count(n) for n in sorted(set(every))}
    assert found.sizes.to_dict("records") == [{"height": 256, "width": 256, "images": found.totals["images"].sum()}]
    assert "Each is 256 x 256" in page
    assert "Patients are not known" in page
    assert not (tmp_path / "studies_per_patient.csv").exists()
    assert re.search(r"acl negative: \d{4}, slice \d of [234]<", page)


def test_classes_are_shown_one_by_one_in_their_colours(tmp_path):
    path = write_medmnist(tmp_path / "retinamnist.npz", "retinamnist", train=40, val=20, test=20)
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays["train_images"][:] = (200, 100, 50)
    np.savez(path, **arrays)
    found, page = described(MedMNIST(str(path)), path, tmp_path / "out")
    assert [caption.split(":")[0] for caption, _ in found.pictures["retinamnist"]] == [f"grade-{i // 2}" for i in range(10)]
    png = base64.b64decode(re.search(r"base64,([^\"]+)", page).group(1))
    assert cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR_RGB)[0, 0].tolist() == [200, 100, 50]
    assert "Each of the 80 studies has 1 image." in page
    assert "The labels are exclusive" in page


def test_uncertain_and_blank_labels_are_counted(mrnet_root, tmp_path):
    table = assign_splits(MRNet(str(mrnet_root)).read(mrnet_root), "holdout", None, 0.3, 0)
    frame = table.frame.copy()
    train = frame.index[frame["split"] == "train"]
    frame.loc[train[:3], "acl"] = -1.0
    frame.loc[train[3:5], "acl"] = np.nan
    found = describe(type(table)(**{**vars(table), "frame": frame}), None, 0, 0, skip=False)
    write(found, tmp_path, mrnet_root, "", "")
    row = pd.read_csv(tmp_path / "counts.csv").iloc[0]
    assert (row["acl_uncertain"], row["acl_blank"]) == (3, 2)
    assert row[["acl_positive", "acl_negative"]].sum() == row["studies"] - 5
    page = (tmp_path / "report.html").read_text()
    assert "<th>uncertain</th><th>blank</th>" in page
    assert "<img" not in page


def test_the_command(command, tmp_path, mrnet_root):
    done = command("describe", f"dataset.root={mrnet_root}", "valid_fraction=0.5", "pictures=1", "task=acl")
    assert done.returncode == 0, done.stderr
    (out,) = (tmp_path / "empty" / "outputs" / "describe_mrnet").iterdir()
    assert f"outputs/describe_mrnet/{out.name}/report.html" in done.stdout
    counts = pd.read_csv(out / "counts.csv").set_index("split")
    assert counts["studies"].to_dict() == {"train": 20, "valid": 20, "test": 30}
    for split, row in counts.iterrows():
        assert re.search(rf"{split} +{row['studies']} studies; acl {row['acl_positive']}\+/{row['acl_negative']}-", done.stdout)
    page = (out / "report.html").read_text()
    assert "selection=holdout, valid_fraction=0.5, seed=0" in page
    assert page.count("<img") == 2


def test_without_data_it_describes_the_sample_and_says_so(command, tmp_path):
    small = [f"dataset.sample.{split}=8" for split in ("train", "val", "test")]
    done = command("describe", "dataset=medmnist", *small)
    assert done.returncode == 0, done.stderr
    assert "SYNTHETIC SAMPLE (no pneumoniamnist.npz in dataset.root" in done.stdout
    (page,) = (tmp_path / "empty").rglob("report.html")
    assert "Synthetic sample: every number" in page.read_text()


def test_a_fault_stops_it_and_leaves_nothing(command, mrnet_root, tmp_path):
    root = shutil.copytree(mrnet_root, tmp_path / "MRNet-v1.0")
    next((root / "train" / "axial").iterdir()).unlink()
    done = command("describe", f"dataset.root={root}")
    assert done.returncode == 2
    assert "ids of train without a file" in done.stderr
    done = command("describe", f"dataset.root={root}", "sizes_of=0")
    assert done.returncode == 2
    assert "sizes_of=0: it is a number from 1 on" in done.stderr
    assert not list((tmp_path / "empty").iterdir())


def test_it_composes():
    GlobalHydra.instance().clear()
    OmegaConf.register_new_resolver("run_dir", lambda name, resume: f"outputs/{name}/now", replace=True)
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = hydra.compose("describe", return_hydra_config=True)
    assert cfg.hydra.run.dir == "outputs/describe_mrnet/now"
    assert (cfg.sizes_of, cfg.pictures) == (5000, 2)
