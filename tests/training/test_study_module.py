"""Checkpoints that rebuild themselves, and loading them."""

from __future__ import annotations

import functools
import json
import sys

import cv2
import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from conftest import assemble

import xraylab
from xraylab.config.resume import resumed_config
from xraylab.data.datamodule import StudyDataModule
from xraylab.data.datasets.mrnet import MRNet
from xraylab.data.splits import assign_splits
from xraylab.errors import UserError
from xraylab.evaluation.metrics import METRICS
from xraylab.models import Attention, MaxFeature, StudyNet, Timm
from xraylab.models.losses.cross_entropy import WeightedBCE
from xraylab.training.study_module import StudyModule


@pytest.fixture(scope="module")
def made(mrnet_root, tmp_path_factory):
    """A module made in Python, without any configuration, trained for an epoch; and its checkpoint."""
    pl.seed_everything(0)
    table = assign_splits(MRNet(task=["acl", "abnormal"]).read(mrnet_root), "holdout", None, 0.2, 0)
    loss = WeightedBCE()
    loss.build(2)
    loss.fit(table.label_values(table.part("train").index), table.labels)
    net = StudyNet(
        Timm("resnet18", pretrained=False, in_chans=1, kwargs={"channels": (8, 16, 16, 32)}),
        Attention(16),
        2,
        hidden=[8],
        mean=58.0,
    )
    module = StudyModule(
        net, loss, table.labels, {"size": 48, "rescale": True}, functools.partial(torch.optim.Adam, lr=1e-3),
        functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1), data=table.data,
    )  # fmt: skip
    data = StudyDataModule(table, 4, size=48, rescale=True)
    folder = tmp_path_factory.mktemp("module")
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        use_distributed_sampler=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, data)
    trainer.save_checkpoint(folder / "one.ckpt")
    return module.eval(), data, folder / "one.ckpt"


def test_load_rebuilds_the_model_and_its_preprocessing(made):
    module, data, path = made
    loaded = xraylab.load(path)
    assert not loaded.training
    assert loaded.labels == ("acl", "abnormal")
    assert loaded.preprocessing == {"size": 48, "rescale": True, "resize": "each_axis"}
    assert loaded.data == "synthetic sample"
    batch = next(iter(data.val_dataloader()))
    with torch.no_grad():
        torch.testing.assert_close(loaded(batch), module(batch), rtol=0, atol=0)
    assert torch.equal(loaded.loss.balance_weights, module.loss.balance_weights)


def test_a_checkpoint_of_before_keeps_its_way_of_resizing(made, tmp_path):
    _, _, path = made
    saved = torch.load(path, weights_only=True)
    del saved["xraylab"]["preprocessing"]["resize"]
    torch.save(saved, tmp_path / "old.ckpt")
    image = np.random.default_rng(0).integers(0, 256, (1, 48, 200)).astype(np.uint8)
    old, new = xraylab.load(tmp_path / "old.ckpt"), xraylab.load(path)
    cubic = cv2.resize(image[0], (48, 48), interpolation=cv2.INTER_CUBIC)[None]
    assert old.predict(image) == pytest.approx(new.predict(cubic), abs=0.02)  # but for rescaling before or after
    assert old.predict(image) != pytest.approx(new.predict(image), abs=1e-4)


def test_predict_prepares_as_training_did(made):
    module, data, path = made
    row = int(data.table.part("valid").index[0])
    stored = data.table.source.read(data.table.frame["images"][row])
    batch = next(iter(data.val_dataloader()))
    with torch.no_grad():
        expected = torch.sigmoid(module(batch))[0].tolist()
    ours = xraylab.load(path).predict(stored)
    np.testing.assert_allclose(list(ours.values()), expected, rtol=1e-4)


def test_predict_refuses_what_training_never_saw(made):
    model = xraylab.load(made[2])
    image = np.random.default_rng(0).integers(0, 255, (48, 48)).astype(np.uint8)
    assert model.predict(image) == model.predict(image[None])
    for wrong in (image / 255, image[None, None].astype(np.float32), np.zeros((2, 48, 48, 4), np.uint8)):
        with pytest.raises(UserError, match="uint8"):
            model.predict(wrong)


@pytest.mark.slow
def test_load_needs_neither_hydra_nor_trust(made):
    import subprocess

    code = f"import sys; sys.modules['hydra'] = None\nimport xraylab; m = xraylab.load({str(made[2])!r}); print(m.labels)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert torch.load(made[2], weights_only=True)["xraylab"]["backbone"]["arguments"]["name"] == "resnet18"


def test_a_broken_or_foreign_checkpoint_is_refused(made, tmp_path):
    cut = tmp_path / "cut.ckpt"
    for size in (20000, 0):
        cut.write_bytes(made[2].read_bytes()[:size])
        with pytest.raises(UserError, match="not a whole checkpoint"):
            xraylab.load(cut)
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(UserError, match="not a checkpoint of this version"):
        xraylab.load(tmp_path / "foreign.ckpt")
    with pytest.raises(UserError, match="neither a checkpoint file nor a run"):
        xraylab.load(tmp_path)
    evil = torch.load(made[2], weights_only=True)
    evil["xraylab"]["pool"]["class"] = "subprocess.Popen"
    torch.save(evil, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match="not a network component"):
        xraylab.load(tmp_path / "evil.ckpt")


def test_a_training_step_works_without_a_trainer(made):
    _, data, path = made
    module = xraylab.load(path).train()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    batch = next(iter(data.train_dataloader()))
    losses = []
    for _ in range(8):
        loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_every_parameter_gets_a_gradient(made):
    _, data, path = made
    module = xraylab.load(path).train()
    module.training_step(next(iter(data.train_dataloader())), 0).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters())


def test_a_trainer_validates_and_tests_a_loaded_model_as_its_run_did(train_here, tmp_path, chexpert_root):
    """With what makes an evaluation other than the usual: single images are trained on, and uncertain labels count."""
    run = train_here(
        tmp_path / "run", "dataset=chexpert", f"dataset.root={chexpert_root}", "backbone=resnet18", "image.size=32", "unit=image",
        "backbone.pretrained=false", "+backbone.kwargs.channels=[8,8,16,16]", "view=all", "findings=competition", "bootstrap=0",
        "num_workers=0", "precision=32", "valid_fraction=0.3", "max_epochs=1", "evaluate.uncertain=positive", "loss=multiclass",
    )  # fmt: skip
    data = assemble(resumed_config(str(run), []), [], fresh=False).data
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    model = xraylab.load(run)
    (valid,), (test,) = (do(model, datamodule=data, verbose=False) for do in (trainer.validate, trainer.test))
    results = json.loads((run / "evaluation.json").read_text())["splits"]
    for split, found in (("valid", valid), ("test", test)):
        for name, wanted in {**results[split]["labels"], "macro": results[split]["macro"]}.items():
            for metric in METRICS:
                value = wanted[metric]["value"]
                assert found[f"{split}/{name}/{metric}"] == pytest.approx(np.nan if value is None else value, nan_ok=True)
    history = pd.read_csv(run / "history.csv")
    assert valid["valid/loss"] == pytest.approx(history["valid/loss"][0], rel=1e-5)
    assert set(test) == {key.replace("valid/", "test/") for key in valid}


def quiet_trainer(**options):
    return pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, **options,
    )  # fmt: skip


def test_predict_of_a_model_in_training_is_as_in_evaluation_and_leaves_it_as_it_was(made):
    model = xraylab.load(made[2])
    model.net.head = torch.nn.Sequential(torch.nn.Dropout(0.5), *model.net.head)
    image = np.random.default_rng(0).integers(0, 255, (3, 48, 48)).astype(np.uint8)
    expected = model.predict(image)
    model.train()
    model.net.backbone.model.bn1.eval()  # as a frozen one
    modes = [m.training for m in model.modules()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert model.predict(image) == model.predict(image) == expected
    assert [m.training for m in model.modules()] == modes
    with pytest.raises(UserError, match="uint8"):
        model.predict(image / 255)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_checkpoint_is_loaded_in_the_way_of_lightning_too(made):
    image = np.random.default_rng(0).integers(0, 255, (3, 48, 48)).astype(np.uint8)
    loaded = StudyModule.load_from_checkpoint(made[2], map_location=torch.device("cpu"))
    assert loaded.predict(image) == xraylab.load(made[2]).predict(image)
    with pytest.raises(UserError, match=r"labels given; xraylab.load\(path\)"):
        StudyModule.load_from_checkpoint(made[2], labels=["x"])


def test_a_model_is_copied_and_pickled_also_after_training(made):
    import copy
    import pickle

    image = np.random.default_rng(0).integers(0, 255, (3, 48, 48)).astype(np.uint8)
    model = made[0]
    assert model._scheduler is not None
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.predict(image) == model.predict(image)
        assert not {id(p) for p in other.parameters()} & {id(p) for p in model.parameters()}
    assert model._scheduler is not None


def test_a_trainer_of_ones_own_trains_in_every_usual_way(made):
    """Twice, a few batches, a trial run; predictions are those of the model; what cannot be is said."""
    module, data, path = made
    train = quiet_trainer(max_epochs=1, limit_train_batches=2)
    schedule = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1)
    model = StudyModule(
        xraylab.load(path).train().net, module.loss, module.labels, module.preprocessing,
        functools.partial(torch.optim.SGD, lr=0.1), schedule,
    )  # fmt: skip
    train.fit(model, data)
    again = quiet_trainer(max_epochs=2, limit_train_batches=1)
    again.fit(model, data)
    assert (train.global_step, again.global_step) == (2, 2)
    assert model._scheduler.last_epoch == 2, "a second training begins its schedule anew"
    quiet_trainer(fast_dev_run=True).fit(model, data)
    model.train()
    outputs = quiet_trainer().predict(model, datamodule=data)
    rows, found = (torch.cat([o[i] for o in outputs]) for i in (0, 1))
    assert rows.tolist() == data.table.part("test").index.tolist()
    stored = data.table.source.read(data.table.frame["images"][int(rows[1])])
    np.testing.assert_allclose(list(model.predict(stored).values()), found[1], rtol=1e-4)
    with pytest.raises(UserError, match=r"StudyDataModule\(accumulate=1\).*both the same"):
        quiet_trainer(max_epochs=1, accumulate_grad_batches=4).fit(model, data)
    with pytest.raises(UserError, match=r"model.predict\(images\)"):
        model(torch.zeros(1, 1, 48, 48))


def test_a_few_batches_are_overfitted_in_the_way_that_is_named(made):
    module, data, path = made
    model = StudyModule(
        xraylab.load(path).train().net,
        module.loss,
        module.labels,
        module.preprocessing,
        functools.partial(torch.optim.Adam, lr=0.01),
    )
    with pytest.raises(UserError, match=r"overfit_batches=2\).*limit_train_batches=2\).*loader\('train', plain=True\)"):
        quiet_trainer(overfit_batches=2, max_epochs=1).fit(model, data)
    seen = []
    plain = model.training_step

    def training_step(batch, batch_idx):
        loss = plain(batch, batch_idx)
        seen.append((batch.ids, loss.detach()))
        return loss

    model.training_step = training_step
    quiet_trainer(max_epochs=6, limit_train_batches=2).fit(model, data.loader("train", plain=True))
    assert len(seen) == 12
    assert [ids for ids, _ in seen] == [ids for ids, _ in seen[:2]] * 6
    assert sum(loss for _, loss in seen[-2:]) < 0.8 * sum(loss for _, loss in seen[:2])


@pytest.mark.parametrize("backbone", ["resnet10t", "densenet121"])
def test_blank_images_change_no_loss_gradient_statistic_or_probability(backbone, mrnet_root):
    """An epoch of ragged exams with batch normalisation, and predictions after it, in double precision."""
    small = {"densenet121": {"growth_rate": 4, "block_config": (1, 1, 1, 1)}, "resnet10t": {"channels": (4, 4, 8, 8)}}
    table = assign_splits(MRNet(task=["acl", "abnormal"]).read(mrnet_root), "holdout", None, 0.2, 0)
    found = []
    for static in (False, True):
        torch.manual_seed(0)
        net = StudyNet(Timm(backbone, pretrained=False, in_chans=1, kwargs=small[backbone]), MaxFeature(), 2).double()
        module = StudyModule(net, WeightedBCE("none"), table.labels).double().train()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        batches = [
            batch._replace(labels=batch.labels.double())
            for batch in StudyDataModule(table, 5, size=32, static_shapes=static).loader("train", plain=True)
        ]
        assert any(len(batch.images) != batch.real for batch in batches)
        losses = []
        for batch in batches:
            losses.append(module.training_step(batch, 0))
            optimizer.zero_grad()
            losses[-1].backward()
            optimizer.step()
        gradients = [p.grad for p in module.parameters()]
        parts = [module.eval().predict_step(batch) for batch in batches]
        by_image = [images[:real] for _, _, images, real, *_ in parts]
        found.append((losses, gradients, module.state_dict(), [part[1] for part in parts], by_image))
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-9)
    assert found[0][0][-1] != found[0][0][0]
    assert all(gradient.abs().sum() > 0 for gradient in found[0][1][:1])
