"""Series of slices as studies: trained on from folders and tables, cached, and predicted from copies that hide their order."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, train_run

pytest.importorskip("pydicom")
from data.images.phantom import OF_PLANE, PATIENT, bars, write_enhanced, write_series
from pydicom.fileset import FileSet

from xraylab.data.cache.build import pack_table
from xraylab.data.datasets.csv_table import CsvTable
from xraylab.data.datasets.folder import Folder
from xraylab.data.preprocessing import prepare
from xraylab.data.synthetic.knee import write_mrnet
from xraylab.errors import UserError
from xraylab.inference.inputs import LEFT_OUT, find_studies
from xraylab.inference.predictor import predict
from xraylab.inference.studies import Options
from xraylab.predict import main as predict_main
from xraylab.training.study_module import load_module

SMALL = [
    *TINY, "max_epochs=1", "batch_size=4", "image.size=32", "backbone=resnet18_small", "+backbone.kwargs.channels=[8,8,16,16]",
    "pool=max_feature",
]  # fmt: skip


def knees(top, n=18, **options):
    """``train`` and ``test`` of two classes: 12-bit MR series of 4 to 6 slices, a localiser each, some with another."""
    for k in range(n):
        folder = top / ("train" if k < n * 2 // 3 else "test") / ("sick" if k % 2 else "normal") / f"knee{k:02d}"
        noise = np.random.default_rng(k).integers(0, 60 + 200 * (k % 2), (4 + k % 3, 24, 20))
        volume = (bars(4 + k % 3, dtype=np.uint16) * 12 + noise).astype(np.uint16)
        write_series(folder / "SE1", volume, series=f"1.{k}.1", study=f"1.{k}", **options)
        scout = {"series": f"1.{k}.2", "study": f"1.{k}", "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
        write_series(folder / "SE0", volume[:1], **scout)
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
    return found.table.set_index("id")


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


def test_what_is_read_depends_on_neither_cache_nor_threads(run, tmp_path):
    table = Folder(str(run / "knees")).read(run / "knees")
    packed = [pack_table(table, tmp_path / f"{n}", 32, False, "stop", workers=n) for n in (1, 3)]
    for images in table.frame["images"]:
        plain = prepare(table.source.read(images), 32)
        assert all(np.array_equal(of.source.read(images), plain) for of in packed)
    (file,) = list((run / "knees" / "test" / "sick" / "knee13" / "SE0").iterdir())
    assert file not in table.source.files("test/sick/knee13#axial")
    lung = Folder(str(run / "knees"), window="percentiles").read(run / "knees")
    pack_table(lung, tmp_path / "1", 32, False, "stop")
    assert len(list((tmp_path / "1").rglob("images.npy"))) == 4  # of each rule its own


def test_a_table_names_folders_and_disks(run, tmp_path):
    """A folder, a DICOMDIR and an enhanced file stand for a volume each, which is that of the folders of classes."""
    rows, disk = [], FileSet()
    of_class = Folder(str(run / "knees")).read(run / "knees")
    for path in (run / "knees" / "train" / "normal" / "knee00").rglob("IM*"):
        disk.add(path)
    disk.write(tmp_path / "disk")
    volume = bars(5)
    write_enhanced(tmp_path / "enhanced", volume)
    shutil.copytree(run / "knees" / "train" / "sick" / "knee01", tmp_path / "folder")
    shutil.copytree(run / "knees" / "test" / "sick" / "knee13", tmp_path / "held")
    for k, image in enumerate(("disk/DICOMDIR", "folder", "enhanced", "held")):
        rows.append(f"s{k},{'test' if k == 3 else 'train'},{image},{k % 2}")
    (tmp_path / "t.csv").write_text("\n".join(["id,split,images,ill", *rows]))
    table = CsvTable(str(tmp_path / "t.csv")).read(tmp_path / "t.csv")
    assert not table.views
    read = [table.source.read(images) for images in table.frame["images"]]
    for k, image in ((0, "train/normal/knee00#axial"), (1, "train/sick/knee01#axial"), (3, "test/sick/knee13#axial")):
        assert np.array_equal(read[k], of_class.source.read([image]))
    assert np.array_equal(read[2], volume)
    of_disk = probabilities(run / "run", str(tmp_path / "disk" / "DICOMDIR"))
    assert of_disk.index.tolist() == ["PT000000/ST000000"]  # the deepest folder that holds them all
    plain = probabilities(run / "run", str(run / "knees" / "train" / "normal" / "knee00"))
    assert of_disk["p_sick"].to_numpy() == pytest.approx(plain["p_sick"].to_numpy(), abs=1e-6)


def test_a_list_names_folders(run, tmp_path):
    (tmp_path / "list.csv").write_text(f"id,path\na,{run / 'knees' / 'test' / 'sick' / 'knee13'}\n")
    found = probabilities(run / "run", str(tmp_path / "list.csv"))
    of_run = pd.read_csv(run / "run" / "predictions" / "test.csv").set_index("id")["p_sick"]
    assert found["p_sick"]["a"] == pytest.approx(of_run["test/sick/knee13"], abs=1e-6)


def test_what_is_wrong_in_training_is_left_out_in_prediction(run, tmp_path):
    shutil.copytree(run / "knees", tmp_path / "set")
    torn = tmp_path / "set" / "test" / "sick" / "knee13" / "SE1" / "torn.dcm"
    torn.write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40)
    with pytest.raises(UserError, match=r"1 studies with DICOM files whose header cannot be read: test/sick/knee13"):
        Folder(str(tmp_path / "set")).read(tmp_path / "set")
    found = predict(run / "run", find_studies(str(tmp_path / "set" / "test")), Options(workers=0))
    assert len(found.table) == 5
    assert [(s.study, s.reason) for s in found.skipped] == [(LEFT_OUT, "studies with DICOM files whose header cannot be read")]


def test_three_planes_as_series_train_as_three_arrays(tmp_path):
    """The synthetic knees, written as series of eight bits, which nothing scales: every number is that of the arrays."""
    root = write_mrnet(tmp_path / "MRNet-v1.0", train=12, valid=30, slices=(2, 4), seed=3)
    rows = ["id,split,image,abnormal,acl,meniscus"]
    for split in ("train", "valid"):
        labels = [pd.read_csv(root / f"{split}-{t}.csv", header=None, dtype=str) for t in ("abnormal", "acl", "meniscus")]
        for study, *values in zip(labels[0][0], *(of[1] for of in labels), strict=True):
            rows.append(",".join([study, split, study, *values]))
            for number, (plane, orientation) in enumerate(OF_PLANE.items()):
                volume = np.load(root / split / plane / f"{study}.npy")
                volume = volume[::-1] if plane == "sagittal" else volume  # whose normal, as here, runs to the right
                write_series(
                    tmp_path / study / f"{number}", volume, orientation, series=f"1.{int(study)}.{number}", study=f"1.{study}"
                )
    (tmp_path / "knees.csv").write_text("\n".join(rows))
    how = [
        *SMALL,
        "augmentation=none",
        "selection=official",
        "monitor=valid/loss",
        "optimizer.lr=1e-3",
        f"cache={tmp_path / 'c'}",
    ]
    arrays = train_run(tmp_path / "arrays", *how, "dataset=mrnet", "plane=all", "task=acl", f"dataset.root={root}")
    series = train_run(
        tmp_path / "of_series", *how, "dataset=table", f"dataset.root={tmp_path / 'knees.csv'}", "dataset.series=planes",
        "dataset.labels=[acl]",
    )  # fmt: skip
    one, other = (pd.read_csv(run / "predictions" / "valid.csv", dtype={"id": str}).set_index("id") for run in (arrays, series))
    assert one["logit_acl"].equals(other["logit_acl"])
    packed = [
        sorted(f.read_bytes() for f in (tmp_path / "c").rglob("images.npy") if name in str(f)) for name in ("MRNet", "knees")
    ]
    assert len(packed[0]) == 6
    assert packed[0] == packed[1]
    top = tmp_path / "copy"
    for study in one.index:
        shutil.copytree(tmp_path / study, top / study)
    found = probabilities(series, str(shuffled(top, tmp_path / "shuffled")))
    assert found["p_acl"].to_numpy() == pytest.approx(other["p_acl"].to_numpy(), abs=1e-6)


def test_results_go_back_to_the_slices_of_a_series(run, tmp_path, here):
    """A heat map refers to the file of its slice, which its instance number does not tell."""
    from pydicom import dcmread

    study = run / "knees" / "test" / "sick" / "knee13"
    given = [f"run={run / 'run'}", f"input={study}", "format=dicom_sr", f"output={tmp_path / 'out'}", "num_workers=0"]
    code, text = here(*given, entry=predict_main)
    assert code == 0, text
    (report,) = (tmp_path / "out").glob("*.sr.dcm")
    slices = {str(dcmread(file).SOPInstanceUID) for file in (study / "SE1").iterdir()}
    assert dcmread(report).StudyInstanceUID == "1.13"
    (capture,) = (tmp_path / "out").glob("*.sc.dcm")
    assert dcmread(capture).SourceImageSequence[0].ReferencedSOPInstanceUID in slices


def test_nifti_files_train_and_are_predicted_whichever_way_their_axes_lie(tmp_path):
    """CT by three windows, as the channels of the network; the copies' axes are flipped and permuted."""
    nibabel = pytest.importorskip("nibabel")
    for k in range(18):
        split, sick = ("train", "test")[k >= 12], k % 2
        values = np.random.default_rng(k).integers(-1000, 200 + 600 * sick, (20, 24, 4 + k % 3)).astype(np.int16)
        affine = np.diag([1.0, 1.0, 3.0, 1.0])
        flipped = affine[:, [2, 0, 1, 3]].copy()
        flipped[:, 3] += flipped[:, 1] * 19
        flipped[:, 1] *= -1
        for top, data, of in (("ct", values, affine), ("copy", values[::-1].transpose(2, 0, 1), flipped)):
            folder = tmp_path / top / split / ("sick" if sick else "normal")
            folder.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(data), of), folder / f"p{k:02d}.nii.gz")
    how = ["dataset=folder", f"dataset.root={tmp_path / 'ct'}", "dataset.window=[lung,bone,soft_tissue]", "backbone.in_chans=3"]
    trained = train_run(tmp_path / "run", *SMALL, *how, f"cache={tmp_path / 'cache'}")
    assert load_module(trained / "checkpoints" / "best.ckpt").images["channels"] == 3
    of_run = pd.read_csv(trained / "predictions" / "test.csv").set_index("id")["p_sick"]
    for top in ("ct", "copy"):
        found = probabilities(trained, str(tmp_path / top / "test"))["p_sick"]
        assert sorted(f"test/{name}" for name in found.index) == sorted(of_run.index)
        assert found.sort_index().to_numpy() == pytest.approx(of_run.sort_index().to_numpy(), abs=1e-6)
