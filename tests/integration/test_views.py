"""Runs on studies of several views: learning, training by study and by image, results by both."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, run_job, train_run
from sklearn.metrics import cohen_kappa_score

import xraylab
from xraylab.data.datasets.mura import MURA
from xraylab.data.splits import assign_splits
from xraylab.errors import UserError

QUICK = ["dataset=mura", "backbone=resnet18", *TINY, "max_epochs=1", "+backbone.kwargs.channels=[8,8,16,16]"]


def weights(directory):
    return torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.slow
def test_the_sample_is_learned(command, tmp_path):
    """The command as people type it, without data."""
    done = command("train", "dataset=mura", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "SYNTHETIC SAMPLE" in done.stdout
    assert "packing" in done.stdout
    (run,) = (tmp_path / "outputs" / "mura").iterdir()
    test = json.loads((run / "evaluation.json").read_text())["splits"]["test"]
    assert test["labels"]["abnormal"]["auroc"]["value"] >= 0.9
    assert test["unit"] == "study"
    assert test["images"]["unit"] == "image"
    assert min(test["labels"]["abnormal"][c]["value"] for c in ("positives", "negatives")) >= 15
    assert len(test["groups"]) == 7


@pytest.fixture(scope="module")
def by_image(tmp_path_factory, mura_root):
    """A run trained by image, without the cache."""
    options = [*QUICK, "unit=image", "head.dropout=0.5", f"dataset.root={mura_root}", "cache=off"]
    return train_run(tmp_path_factory.mktemp("views") / "run", *options)


def test_results_come_by_study_and_by_image_and_each_is_named(by_image, mura_root):
    table = assign_splits(MURA().read(mura_root), "holdout", None, 0.2, 0)
    test = json.loads((by_image / "evaluation.json").read_text())["splits"]["test"]
    studies, images = (pd.read_csv(by_image / "predictions" / f"test{end}.csv") for end in ("", "_images"))
    part = table.part("test")
    assert studies["id"].tolist() == part["id"].tolist()
    assert images["image"].tolist() == [image for study in part["images"] for image in study]
    assert (test["n"], test["images"]["n"]) == (len(studies), len(images))
    assert test["images"]["bootstrap"]["over"] == "patients"
    # a study's probability is the mean over its views; the kappas are sklearn's
    mean = images.groupby("id", sort=False)["p_abnormal"].mean()
    np.testing.assert_allclose(studies["p_abnormal"], mean.loc[studies["id"]], rtol=1e-4)
    for rows, result in ((studies, test), (images, test["images"])):
        for name, part in [("all", result), *result["groups"].items()]:
            own = rows if name == "all" else rows[rows["group"] == name]
            kappa = part["labels"]["abnormal"]["kappa"]
            if kappa["value"] is not None:
                assert kappa["value"] == pytest.approx(cohen_kappa_score(own["y_abnormal"], own["p_abnormal"] >= 0.5))
            assert kappa["n"] == len(own)


def test_history_and_log_count_images_where_those_are_the_unit(by_image):
    history = pd.read_csv(by_image / "history.csv")
    assert history["images_per_s"].notna().all()
    assert history["studies_per_s"].isna().all()


def test_the_loaded_model_takes_views_of_different_sizes(by_image, mura_root):
    studies = pd.read_csv(by_image / "predictions" / "test.csv").set_index("id")
    table = MURA().read(mura_root).frame.set_index("id")
    name = next(i for i in studies.index if len(table.loc[i, "images"]) > 2)
    views = MURA().read(mura_root).source.read(table.loc[name, "images"])
    found = xraylab.load(by_image).predict(views)
    # best is last after one epoch
    assert found["abnormal"] == pytest.approx(studies.loc[name, "p_abnormal"], abs=1e-4)


@pytest.fixture(scope="module")
def one_view(tmp_path_factory, mura_root):
    """The same studies with their first view alone."""
    root = shutil.copytree(mura_root, tmp_path_factory.mktemp("one") / "MURA-v1.1")
    for split in ("train", "valid"):
        path = root / f"{split}_image_paths.csv"
        path.write_text("".join(line + "\n" for line in path.read_text().split() if line.endswith("image1.png")))
    return root


@pytest.mark.parametrize("balance", ["group", "none"])
def test_units_agree_for_studies_of_one_view(train_here, tmp_path, one_view, balance):
    runs = [
        train_here(
            tmp_path / unit, *QUICK, f"unit={unit}", f"dataset.root={one_view}", f"loss.balance={balance}", "head.dropout=0.5"
        )
        for unit in ("study", "image")
    ]
    one, two = map(weights, runs)
    assert all(torch.equal(one[k], two[k]) for k in one)
    histories = [pd.read_csv(r / "history.csv") for r in runs]
    assert histories[0]["valid/loss"].equals(histories[1]["valid/loss"])
    assert not (runs[1] / "predictions" / "test_images.csv").exists(), "by image it would be the same table"


def test_units_differ_for_studies_of_several(train_here, tmp_path, mura_root, by_image):
    run = train_here(tmp_path / "study", *QUICK, f"dataset.root={mura_root}", "unit=study", "head.dropout=0.5")
    one, two = weights(run), weights(by_image)
    assert not all(torch.equal(one[k], two[k]) for k in one)


def test_the_balance_is_counted_on_what_is_trained_on(compose, mura_root):
    from conftest import assemble

    for unit in ("study", "image"):
        job = assemble(compose(*QUICK, f"unit={unit}", f"dataset.root={mura_root}", "cache=off"), [])
        train = (job.table.by_image() if unit == "image" else job.table).part("train")
        for g, name in enumerate(job.module.groups):
            labels = train.loc[train["group"] == name, "abnormal"]
            expected = [[labels.mean(), 1 - labels.mean()]]
            torch.testing.assert_close(job.module.loss.balance_weights[g], torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("cache", ["auto", "folder"])
def test_a_run_is_the_same_with_and_without_the_cache(train_here, tmp_path, mura_root, cache, by_image):
    where = {"folder": str(tmp_path / "cache")}.get(cache, cache)
    options = [*QUICK, "unit=image", "head.dropout=0.5", f"dataset.root={mura_root}", f"cache={where}"]
    run = train_here(tmp_path / "run", *options)
    assert all(torch.equal(a, b) for a, b in zip(weights(run).values(), weights(by_image).values(), strict=True))
    if cache == "folder":
        assert list((tmp_path / "cache").rglob("images.npy"))


def test_slices_have_no_labels_of_their_own(compose, mrnet_root):
    from conftest import assemble

    with pytest.raises(UserError, match="unit=image: the images of MRNet"):
        assemble(compose(*TINY, "unit=image", f"dataset.root={mrnet_root}"), [])


def test_a_model_of_one_part_is_tested_on_all(train_here, tmp_path, mura_root):
    options = [*QUICK, f"dataset.root={mura_root}", "body_part=[wrist,hand]", "test_part=all"]
    splits = json.loads((train_here(tmp_path / "run", *options) / "evaluation.json").read_text())["splits"]
    assert set(splits["valid"]["groups"]) <= {"wrist", "hand"}
    assert len(splits["test"]["groups"]) == 7


@pytest.mark.slow
def test_prepare_builds_what_training_reads(command, tmp_path, mura_root):
    options = ["dataset=mura", f"dataset.root={mura_root}", "image.size=48", f"cache={tmp_path / 'cache'}"]
    first, second = (command("prepare", *options) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr
    assert "packing" in first.stdout
    assert "packing" not in second.stdout
    assert "ready:" in second.stdout
    done = command("prepare", *options[:2], "cache=off")
    assert done.returncode == 2
    assert "cache=off: leave it out" in done.stderr


def test_an_unreadable_image_leaves_the_others_in_their_splits(train_here, tmp_path, mura_root):
    """Whether the cache finds it before training, or nobody ever reads it; else evaluation could score what was trained on."""
    root = shutil.copytree(mura_root, tmp_path / "MURA-v1.1")
    whole = assign_splits(MURA().read(root), "holdout", None, 0.2, 0)
    bad = next(s for s in whole.part("train")["images"] if len(s) > 1)
    (root / bad[0]).write_bytes(b"no image")
    with pytest.raises(UserError, match=r"wrong with 1 of \d+ images(?s:.*)" + bad[0]):
        train_here(tmp_path / "stop", *QUICK, f"dataset.root={root}")
    run = train_here(tmp_path / "skip", *QUICK, f"dataset.root={root}", "dataset.on_error=skip")
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert list(evaluation["skipped"]) == ["images that cannot be read"]
    assert bad[0] in evaluation["skipped"]["images that cannot be read"][0]
    valid = pd.read_csv(run / "predictions" / "valid.csv")
    assert valid["id"].tolist() == whole.part("valid")["id"].tolist()
    # a study that is gone is another matter
    path = root / "train_labeled_studies.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(UserError, match="the data has other studies, or other splits"):
        run_job("evaluate", f"run={run}")


def test_typed_settings_survive_what_the_sample_brings(compose):
    from xraylab.config.dataset import resolved

    def found(*typed):
        return resolved(compose(*typed, "dataset.root=sample"), [*typed, "dataset.root=sample"]).config

    cfg = found("dataset=mura", "backbone.trainable_from=head")
    assert (cfg.backbone.name, cfg.backbone.trainable_from, cfg.backbone.pretrained) == ("resnet18", "head", False)
    cfg = found("experiment=mura_cnn", "backbone.layers=4")
    assert (cfg.backbone._target_, cfg.backbone.layers) == ("xraylab.models.CNN", 4)
    cfg = found("experiment=mura_densenet201_block31")
    assert (cfg.backbone.name, cfg.backbone.trainable_from) == ("densenet201", "denseblock4.denselayer31")
    with pytest.raises(UserError, match=r"backbone.layers: backbone=resnet18 is used here, which has no such key"):
        found("dataset=mura", "+backbone.layers=3")


@pytest.mark.slow
def test_no_study_at_all_is_said(command, tmp_path):
    for split in ("train", "test"):
        for name in ("normal", "abnormal"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            (tmp_path / "data" / split / name / "a.png").write_bytes(b"")
    for name in ("train", "describe", "prepare", "check"):
        weights = ["backbone.pretrained=false"] * (name == "train")
        words = ["dataset.on_error=skip"] * (name != "check")
        done = command(name, "dataset=folder", f"dataset.root={tmp_path / 'data'}", *words, *weights)
        assert done.returncode == 2, name
        assert "there is no study in it that can be used" in done.stderr
        assert "a.png" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_unfreezing_that_could_not_be_is_refused_before_data_is_read(compose, mura_root, monkeypatch):
    from conftest import assemble

    monkeypatch.setattr(MURA, "read", lambda *_: pytest.fail("data was read"))
    for at, said in (
        ("{40: null}", "epoch 40, but max_epochs=1"),
        ("{1: null}", "at least 2"),
        ("{2: layer9}", r"unfreeze.at=layer9"),
    ):
        options = [*QUICK, f"dataset.root={mura_root}", "callbacks=unfreeze", f"callbacks.unfreeze.at={at}"]
        options += ["max_epochs=3"] if "9" in at else []
        with pytest.raises(UserError, match=said):
            assemble(compose(*options), options)


def test_unfreezing_never_freezes(compose, mura_root):
    from conftest import assemble

    options = [*QUICK, f"dataset.root={mura_root}", "max_epochs=3", "callbacks=unfreeze", "callbacks.unfreeze.at={2: layer4}"]
    with pytest.raises(UserError, match=r"epoch 2 trains no more than before .*backbone.trainable_from=head"):
        assemble(compose(*options), options)


def test_a_last_batch_of_one_tiny_image_is_said_in_words(train_here, tmp_path, mura_root):
    images = len(assign_splits(MURA().read(mura_root), "holdout", None, 0.2, 0).by_image().part("train"))
    size = next(b for b in range(2, images) if images % b == 1)
    options = [*QUICK, f"dataset.root={mura_root}", "unit=image", "image.size=32", f"batch_size={size}"]
    with pytest.raises(
        UserError, match=rf"batch_size={size}: with {images} images .* one image, which cannot be batch-normalised"
    ):
        train_here(tmp_path / "run", *options)
    assert not (tmp_path / "run" / "config.yaml").exists(), "before anything is trained"


@pytest.mark.parametrize("unit", ["image", "study"])
def test_batches_of_static_shapes_train_and_evaluate_alike(unit, compose, tmp_path, mura_root):
    """Blank images fill them: in training by study, and in validation and prediction by either.

    Without batch normalisation, which makes 1e-3 of the last digits of float32 in an epoch; it has its test in test_module.
    """
    from conftest import assemble

    from xraylab.inference.evaluate import predict_split
    from xraylab.training.fit import fit

    options = ["dataset=mura", "backbone=cnn", "backbone.layers=3", "backbone.filters=8", "backbone.batch_norm=false", *TINY,
               "image.size=32", "max_epochs=1", "optimizer=sgd", "optimizer.lr=0.01", f"unit={unit}",
               f"dataset.root={mura_root}"]  # fmt: skip
    histories, predictions, timing = [], [], ["seconds", "studies_per_s", "images_per_s"]
    for name, more in (("plain", []), ("static", ["+accelerator.static_shapes=true"])):
        job = assemble(compose(*options, *more), [*options, *more])
        fit(job, tmp_path / name)
        histories.append(pd.read_csv(tmp_path / name / "history.csv").drop(columns=timing, errors="ignore"))
        predictions.append(predict_split(job, "test"))
    pd.testing.assert_frame_equal(*histories, rtol=1e-4)
    for plain, static in zip(*predictions, strict=True):
        np.testing.assert_allclose(static, plain, rtol=1e-4)
