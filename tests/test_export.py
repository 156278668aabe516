"""``python -m xraylab.export``: a file that says what predict says, without xraylab, and mistakes in words."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from conftest import REPOSITORY, TINY, run_job, train_run

import xraylab
from xraylab.combine import main as combine_main
from xraylab.errors import UserError
from xraylab.export import main as export_main
from xraylab.exporting.about import moved
from xraylab.exporting.formats import NEEDED

SMALL = [*TINY, "max_epochs=1", "batch_size=8", "image.size=32", "backbone=cnn", "backbone.layers=2", "backbone.filters=2"]


@pytest.fixture(scope="module")
def mura(tmp_path_factory, mura_root):
    """A run on bone X-rays, of several views a study."""
    return train_run(tmp_path_factory.mktemp("export") / "mura", *SMALL, "dataset=mura", f"dataset.root={mura_root}")


@pytest.fixture(scope="module")
def knees(tmp_path_factory, mrnet_root):
    """Runs on two planes of knees, and on all planes at once."""
    folder = tmp_path_factory.mktemp("export")
    words = ("dataset=mrnet", "task=[acl,meniscus]", f"dataset.root={mrnet_root}", "batch_size=4", "image.rescale=true")
    return {plane: train_run(folder / plane, *SMALL, *words, f"plane={plane}") for plane in ("axial", "coronal", "all")}


@pytest.fixture(scope="module")
def written(mura, tmp_path_factory):
    """The run on bones as ONNX, in the run's directory."""
    run_job("export", f"run={mura}", "studies=3")
    return mura / "model.onnx"


def said(file: Path) -> dict:
    """What an ONNX file says of itself."""
    return {entry.key: json.loads(entry.value) for entry in onnx.load(file).metadata_props}


def test_a_file_says_what_the_run_predicted_of_its_studies(written, mura, mura_root):
    session = onnxruntime.InferenceSession(str(written))
    (images,) = session.get_inputs()
    assert (images.name, images.type, images.shape) == ("images", "tensor(uint8)", ["pictures", "height", "width"])
    table = pd.read_csv(mura / "predictions" / "test.csv", dtype={"id": str})
    compared = 0
    for row in table.to_dict("records"):
        (folder,) = {path.parent for path in mura_root.rglob("*.png") if str(path).find(row["id"]) >= 0}
        pictures = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in sorted(folder.glob("image*.png"))]
        if len({picture.shape for picture in pictures}) > 1:
            continue
        p, z = session.run(["probabilities", "logits"], {"images": np.stack(pictures)})
        assert p.dtype == np.float32
        assert p[0] == pytest.approx(row["p_abnormal"], abs=1e-5)
        assert z[0] == pytest.approx(row["logit_abnormal"], abs=1e-4)
        compared += 1
    assert compared >= 5  # of views of one size


def test_a_file_says_what_it_is(written, mura):
    about = said(written)
    assert about["labels"] == ["abnormal"]
    assert about["xraylab"] == xraylab.__version__
    assert about["run"] == "/".join(mura.parts[-2:])
    assert about["synthetic"] is True
    assert "no medical device" in about["notice"]
    assert "mean nothing for patients" in about["notice"]
    assert (about["calibrated"], about["temperatures"]) == (False, {})
    chosen = json.loads((mura / "operating_points.json").read_text())
    rules = {rule: {"abnormal": of["value"]} for rule, of in chosen["labels"]["abnormal"]["thresholds"].items()}
    assert about["operating_points"]["thresholds"] == rules
    assert about["inputs"]["images"]["shape"] == ["pictures", "height", "width"]
    assert about["models"][0]["preprocessing"]["size"] == 32
    onnx.checker.check_model(str(written))
    assert not list(written.parent.glob("*.data")), "it is one file"


def test_the_example_runs_without_torch_and_xraylab(written, mura, mura_root, tmp_path):
    page = (REPOSITORY / "docs" / "guides" / "exporting.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    assert len(code.splitlines()) <= 12
    code += "assert not {'torch', 'xraylab', 'cv2'} & set(sys.modules)\n"
    (tmp_path / "example.py").write_text(code, encoding="utf-8")
    pictures = sorted(mura_root.rglob("image1.png"))[:2]
    same = [pictures[0], pictures[0]]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "example.py", str(written), *map(str, same)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    wanted = xraylab.load(mura).predict([cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in same])
    found = json.loads(done.stdout)
    assert found.pop("notice") == said(written)["notice"]
    assert found == pytest.approx(wanted, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "form"), [("mean", "onnx"), ("stack", "torch_export")])
def test_a_combination_of_planes_has_an_input_a_plane(knees, here, mrnet_root, method, form, tmp_path):
    both = f"runs=[{knees['axial']},{knees['coronal']}]"
    assert here(both, f"method={method}", "hydra.run.dir=both", entry=combine_main)[0] == 0
    code, words = here("run=both", f"format={form}", "output=both.bin", "studies=2", entry=export_main)
    assert code == 0, words
    table = pd.read_csv("both/predictions/test.csv", dtype={"id": str})
    for row in table.head(5).to_dict("records"):
        volumes = {f"images_{p}": np.load(mrnet_root / "valid" / p / f"{row['id']}.npy") for p in ("axial", "coronal")}
        if form == "onnx":
            session = onnxruntime.InferenceSession("both.bin")
            assert [of.name for of in session.get_inputs()] == list(volumes)
            (p,) = session.run(["probabilities"], volumes)
        else:
            extra = {"labels": "", "combination": "", "inputs": ""}
            program = torch.export.load("both.bin", extra_files=extra).module()
            assert json.loads(extra["combination"]) == {"method": "stack"}
            assert list(json.loads(extra["inputs"])) == list(volumes)
            with torch.no_grad():
                p = program(*map(torch.from_numpy, volumes.values()))[0].numpy()
        assert p == pytest.approx([row["p_acl"], row["p_meniscus"]], abs=1e-5)


@pytest.mark.slow
def test_temperatures_and_thresholds_are_applied_together(knees, here, tmp_path):
    run = shutil.copytree(knees["all"], tmp_path / "calibrated")
    file = run / "operating_points.json"
    chosen = json.loads(file.read_text())
    for k, of in enumerate(chosen["labels"].values()):
        of["temperature"] = {"value": 1.5 + k, "reason": None}
        of["thresholds"]["youden"] = {"value": 0.3, "reason": None}
    file.write_text(json.dumps(chosen))
    code, words = here(f"run={run}", "calibrate=true", "format=torch_export", "studies=2", entry=export_main)
    assert code == 0, words
    assert "images_axial, images_coronal, images_sagittal" in words
    extra = dict.fromkeys(("temperatures", "operating_points", "calibrated"), "")
    program = torch.export.load(run / "model_calibrated.pt2", extra_files=extra).module()
    assert json.loads(extra["temperatures"]) == {"acl": 1.5, "meniscus": 2.5}
    assert json.loads(extra["calibrated"]) is True
    points = json.loads(extra["operating_points"])["thresholds"]["youden"]
    assert points["acl"] == pytest.approx(1 / (1 + np.exp(-np.log(0.3 / 0.7) / 1.5)))
    rng = np.random.default_rng(0)
    volumes = {
        plane: rng.integers(0, 256, (3 + k, 40, 50 + k), np.uint8) for k, plane in enumerate(("axial", "coronal", "sagittal"))
    }
    wanted = xraylab.load(run).predict(volumes, calibrate=True)
    with torch.no_grad():
        p = program(*map(torch.from_numpy, volumes.values()))[0].tolist()
    assert p == pytest.approx(list(wanted.values()), abs=1e-5)


def test_thresholds_that_call_all_or_none_do_so_still():
    assert [moved(0.0, 2.0), moved(1.0, 2.0), moved(0.5, 3.0)] == [0.0, 1.0, 0.5]
    assert moved(0.9, 2.0) == pytest.approx(0.75)  # odds of 9 become 3


def test_a_file_that_would_say_something_else_is_not_written(mura, here, monkeypatch, tmp_path):
    monkeypatch.setattr("xraylab.exporting.resizing.SLIVER", 0.9)  # cells that end too early
    monkeypatch.setattr("xraylab.exporting.parity.MOST", 1e-9)
    code, words = here(f"run={mura}", "format=torch_export", "output=x.pt2", "studies=2", entry=export_main)
    assert code == 2, words
    assert "x.pt2 is not written" in words
    assert "would say another probability than xraylab" in words
    assert not list(tmp_path.iterdir())


def test_without_the_runs_data_drawn_studies_are_compared(mura, here, mura_root):
    code, words = here(f"run={mura}", "format=torch_export", "output=x.pt2", "root=nowhere", entry=export_main)
    assert code == 0, words
    assert "no studies of test to compare on" in words
    assert "(3 drawn ones of odd sizes)" in words


def test_mistakes_are_said_in_words(mura, here, monkeypatch, tmp_path):
    (tmp_path / "there.onnx").touch()
    (tmp_path / "folder").mkdir()
    shutil.copy(mura / "checkpoints" / "best.ckpt", tmp_path / "alone.ckpt")
    monkeypatch.setattr("xraylab.exporting.written.models_of", lambda *_: pytest.fail("a model was made"))
    for words, why in (
        (("format=onix",), "Did you mean onnx"), (("output=there.onnx",), "overwrite=true"),
        (("output=folder",), "it is a folder"), (("studies=0",), "studies=0: it is a number from 1 on"),
        (("calibrate=3",), "calibrate=3: it is true or false"),
        (("output=there.onnx/x",), "its folder cannot be made"),
    ):  # fmt: skip
        code, printed = here(f"run={mura}", *words, entry=export_main)
        assert (code, why in printed) == (2, True), printed
    for run, why in (("nothing", "is not a run directory"), ("alone.ckpt", "output must be given"), ("model.h5", "out of scope")):
        code, printed = here(f"run={run}", entry=export_main)
        assert (code, why in printed) == (2, True), printed


def test_a_missing_extra_is_named(mura, monkeypatch):
    monkeypatch.setitem(NEEDED, "onnx", ("onnx", "onnxscript_is_not_here"))
    with pytest.raises(UserError, match=r"format=onnx needs onnxscript_is_not_here: pip install 'xraylab\[export\]'"):
        run_job("export", f"run={mura}", "output=x.onnx")


def test_a_combination_that_looks_at_groups_is_refused(knees, here):
    assert here(f"runs=[{knees['axial']},{knees['coronal']}]", "method=mean", "hydra.run.dir=both", entry=combine_main)[0] == 0
    record = json.loads(Path("both/combination.json").read_text())
    Path("both/combination.json").write_text(json.dumps({**record, "method": "own", "groups": ["axial", "coronal"]}))
    code, words = here("run=both", "output=x.onnx", entry=export_main)
    assert code == 2
    assert "a combination by own cannot be one file" in words
    assert not Path("x.onnx").exists()


def test_help_comes_without_torch():
    code = "import sys; sys.argv[1:] = ['--help']; import xraylab.export as e; e.main(); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert "for research, and no medical device" in done.stdout
