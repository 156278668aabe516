"""``python -m xraylab.explain``: what it writes, of studies of all kinds, and that its maps lie where the findings are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import run_job, train_run
from omegaconf import OmegaConf
from test_predict import SMALL

import xraylab
from xraylab.combine import main as combine_main
from xraylab.errors import UserError


@pytest.fixture(scope="module")
def mura(tmp_path_factory, mura_root):
    """A run on bone X-rays, of several views a study."""
    overrides = ("dataset=mura", f"dataset.root={mura_root}")
    return train_run(tmp_path_factory.mktemp("explain") / "mura", *SMALL, *overrides)


@pytest.fixture(scope="module")
def knees(tmp_path_factory, mrnet_root):
    """Runs on two planes of knees, and on all planes at once."""
    folder, overrides = (
        tmp_path_factory.mktemp("explain"),
        ("dataset=mrnet", "task=[acl,meniscus]", f"dataset.root={mrnet_root}", "batch_size=4"),
    )
    return {plane: train_run(folder / plane, *SMALL, *overrides, f"plane={plane}") for plane in ("axial", "coronal", "all")}


@pytest.fixture
def explained(tmp_path, monkeypatch):
    """Run the command in an empty folder; returns the output's folder and its table."""
    monkeypatch.chdir(tmp_path)

    def run(*overrides: str) -> tuple[Path, pd.DataFrame]:
        run_job("explain", *overrides, "output=why")
        table = pd.read_csv("why/explanations.csv", dtype={"study": str}, keep_default_na=False, na_values=[""])
        return tmp_path / "why", table

    return run


def test_views_have_overlays_in_their_own_pixels_and_shares_that_add_up(explained, mura, mura_root):
    folder, table = explained(f"run={mura}", "input=test", "limit=5", "arrays=true")
    assert table["study"].nunique() == 5
    assert set(table["data"]) == {"synthetic sample"}
    module = xraylab.load(mura)
    for number, (study, rows) in enumerate(table.groupby("study", sort=False), start=1):
        images = [cv2.imread(str(mura_root / image), cv2.IMREAD_GRAYSCALE) for image in rows["image"]]
        p = module.predict(images)["abnormal"]
        assert rows["p"].tolist() == pytest.approx([p] * len(rows), abs=1e-5)
        assert rows["share"].sum() + rows["rest"].iloc[0] == pytest.approx(p, abs=1e-5)
        assert set(rows["adds_up_to"]) == {"probability"}
        (made,) = folder.glob(f"{number:04d}_*/abnormal")
        for k, (image, row) in enumerate(zip(images, rows.to_dict("records"), strict=True), start=1):
            (png,) = made.glob(f"{k:03d}_*.png")
            drawn = cv2.imread(str(png))
            assert drawn.shape[:2] == image.shape, study
            assert np.isnan(row["peak_x"]) or (0 <= row["peak_x"] <= image.shape[1] and 0 <= row["peak_y"] <= image.shape[0])
        assert (made / "sheet.png").is_file()
        maps = np.load(made.parent / "abnormal.npz")
        assert maps["maps_0"].shape[0] == len(rows) == len(maps["images_0"])
        assert maps["shares_0"] == pytest.approx(rows["share"].to_numpy())
    assert json.loads((folder / "explanations.json").read_text())["data"] == "synthetic sample"


def test_files_are_explained_as_predict_takes_them_and_a_bad_one_costs_itself_alone(explained, mura, mura_root, tmp_path, caplog):
    good = sorted((mura_root / "valid" / "XR_WRIST").rglob("image1.png"))[:2]
    for k, path in enumerate(good):
        shutil.copy(path, tmp_path / f"{k}.png")
    (tmp_path / "bad.png").write_bytes(good[0].read_bytes()[:300])
    _, table = explained(f"run={mura}", f"input=[{tmp_path}/0.png,{tmp_path}/bad.png,{tmp_path}/1.png]")
    assert table["study"].nunique() == 2
    assert "bad.png" in caplog.text


def test_slices_of_each_plane_are_named_and_decisive_ones_drawn(explained, knees, mrnet_root):
    folder, table = explained(f"run={knees['all']}", "input=test", "limit=2", "finding=acl", "images=3")
    assert set(table["finding"]) == {"acl"}
    for study, rows in table.groupby("study"):
        assert {image.split("/")[1] for image in rows["image"]} == {"axial", "coronal", "sagittal"}
        for image, of in rows.groupby("image"):
            assert of["slice"].tolist() == list(range(1, len(np.load(mrnet_root / image)) + 1)), study
        assert rows["share"].sum() + rows["rest"].iloc[0] == pytest.approx(rows["logit"].iloc[0], abs=1e-4)
    for made in folder.glob("*/acl"):
        assert len(list(made.glob("0*.png"))) == 3


@pytest.mark.parametrize("how", ["mean", "stack"])
def test_a_combination_is_explained_by_its_members_maps(explained, here, knees, how, tmp_path):
    runs = f"runs=[{knees['axial']},{knees['coronal']}]"
    assert here(runs, f"method={how}", "hydra.run.dir=both", entry=combine_main)[0] == 0
    folder, table = explained("run=both", "input=test", "limit=2", "finding=meniscus")
    assert set(table["member"]) == {"axial", "coronal"}
    parts = {plane: explained_alone(knees[plane], tmp_path / plane) for plane in ("axial", "coronal")}
    record = json.loads(Path("both/combination.json").read_text())
    coefficients = record["labels"]["meniscus"]["coefficients"] if how == "stack" else None
    for plane, alone in parts.items():
        weight = 0.5 if coefficients is None else coefficients[plane]
        rows = table[table["member"] == plane]
        assert rows["share"].to_numpy() == pytest.approx(weight * alone["share"].to_numpy(), abs=1e-5)
    assert set(table["adds_up_to"]) == {"members" if coefficients is None else "logit"}, "a mean is of probabilities"
    for _, rows in table.groupby("study") if coefficients is not None else ():
        rest = rows.groupby("member")["rest"].first().sum()
        assert rows["share"].sum() + rest == pytest.approx(rows["logit"].iloc[0], abs=1e-4)
    names = {path.name for path in next(Path(folder).rglob("sheet.png")).parent.glob("0*.png")}
    assert any("axial" in name for name in names), "a slice's plane is named where there are several"
    assert any("coronal" in name for name in names)


def explained_alone(run: Path, output: Path) -> pd.DataFrame:
    run_job("explain", f"run={run}", "input=test", "limit=2", "finding=meniscus", f"output={output}")
    return pd.read_csv(output / "explanations.csv")


def test_methods_are_measured_with_intervals_or_the_reason_why_there_is_none(explained, mura, tmp_path, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO", "xraylab")
    run_job("explain", f"run={mura}", "input=test", "measure=true", "limit=2", "images=1", "output=measured", "method=stem")
    found = json.loads(Path("measured/measures.json").read_text())
    of = found["methods"]["stem"]
    assert set(of) == set(found["measures"])
    assert of["pointing"]["n"] >= of["pointing"]["patients"] >= 10
    assert of["random_weights"]["low"] is None
    assert "no interval" in of["random_weights"]["reason"]
    assert found["data"] == "synthetic sample"
    assert "SYNTHETIC SAMPLE" in caplog.text
    assert found["why"] in caplog.text


def test_mistakes_are_said_before_a_model_is_made(mura, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words, said in (
        (("method=gradcm",), "Did you mean gradcam"), (("finding=acl",), "the model has no such finding"),
        (("limit=0",), "limit=0: it is a number from 1 on, or null"), (("images=x",), "images=x"),
        (("arrays=3",), "arrays=3: it is true or false"), (("measure=true", "boxes=none.csv"), "boxes=none.csv"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            run_job("explain", f"run={mura}", "input=test", *words)
    assert not (mura / "explanations").exists()


def test_shares_add_up_where_the_run_was_trained_and_predicts_in_half_precision(explained, knees, tmp_path):
    run = shutil.copytree(knees["axial"], tmp_path / "half")
    config = OmegaConf.load(run / "config.yaml")
    config.precision = "bf16"
    OmegaConf.save(config, run / "config.yaml")
    _, table = explained(f"run={run}", "input=test", "limit=10", "finding=acl")
    logits = table.groupby("study")["logit"].first()
    for study, rows in table.groupby("study"):
        assert rows["share"].sum() + rows["rest"].iloc[0] == pytest.approx(logits[study], abs=1e-5)
    run_job("predict", f"run={run}", "input=test", "output=half.csv")
    half = pd.read_csv("half.csv", dtype={"id": str}).set_index("id")["logit_acl"]
    assert (half - logits).abs().max() > 1e-4, "the run itself predicts in half precision"


def test_a_method_that_is_not_for_the_model_leaves_nothing(knees, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="image of a part"):
        run_job("explain", f"run={knees['all']}", "input=test", "limit=1", "method=cam", "output=why")
    assert not (tmp_path / "why").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "words"), [("mrnet", ("plane=axial", "task=acl")), ("mura", ())])
def test_on_trained_samples_the_default_beats_chance_and_the_centre(dataset, words, here):
    assert here(f"dataset={dataset}", *words, "hydra.run.dir=run")[0] == 0
    run_job("explain", "run=run", "input=test", "measure=true", "limit=1", "method=stem", "output=measured")
    of = json.loads(Path("measured/measures.json").read_text())["methods"]["stem"]
    for name in ("pointing_chance", "pointing_centre", "energy_chance", "energy_centre"):
        assert of[name]["low"] > 0, name
