"""Lightning's own callbacks: each works here, or is refused in words before data is read."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from conftest import assemble
from pytorch_lightning import callbacks as of_lightning

from xraylab.errors import UserError

L = "pytorch_lightning.callbacks."
TINY = ["backbone=cnn", "backbone.layers=1", "backbone.filters=2", "image.size=16", "early_stopping=null", "bootstrap=0",
        "cases=0", "num_workers=0", "accelerator=cpu", "precision=32", "optimizer.lr=1e-3"]  # fmt: skip
REFUSED = {
    "GradientAccumulationScheduler": (["scheduling={0:2}"], "Set accumulate=<number>"),
    "BatchSizeFinder": ([], "Set batch_size=<number>"),
    "LearningRateFinder": ([], "Set optimizer.lr=<number>"),
    "ModelPruning": (["pruning_fn=l1_unstructured"], "does not work here"),
    "StochasticWeightAveraging": (["swa_lrs=0.1"], "Set callbacks=swa"),
    "WeightAveraging": ([], "callbacks=ema"),
    "EMAWeightAveraging": ([], "callbacks=ema"),
    "BackboneFinetuning": ([], "Set callbacks=unfreeze"),
    "BaseFinetuning": ([], "Set callbacks=unfreeze"),
    "BasePredictionWriter": ([], "would never be called"),
    "ProgressBar": ([], "there is a progress bar already"),
    "TQDMProgressBar": ([], "there is a progress bar already"),
    "RichProgressBar": ([], "there is a progress bar already|requires `rich`"),
    "LearningRateMonitor": ([], "add logger=tensorboard or logger=wandb"),
    "DeviceStatsMonitor": ([], "add logger=tensorboard or logger=wandb"),
    "ThroughputMonitor": (["batch_size_fn={_target_:hydra.utils.get_method,path:builtins.len}"], "add logger=tensorboard"),
    "EarlyStopping": (["monitor=val_loss"], r"callbacks\.x\.monitor=val_loss: there is no such metric"),
    "ModelCheckpoint": (["monitor=valid/loss"], "Name a folder"),
    "Timer": (["duration='00:00:00:09'"], r"Set \+callbacks\.x\.interval=epoch"),
}
MORE = [
    ("EarlyStopping", ["monitor=valid/macro/auroc"], "the best valid/macro/auroc is the max"),
    ("ModelCheckpoint", ["monitor=val_loss", "dirpath=kept"], "there is no such metric"),
    ("ModelCheckpoint", ["monitor=valid/macro/auroc", "dirpath=kept"], "Set callbacks.x.mode=max"),
]
# LambdaCallback is one whose functions a YAML cannot name
WORKING = {
    "early": ["EarlyStopping", "monitor=valid/loss", "patience=9"],
    "keep": ["ModelCheckpoint", "monitor=valid/loss", "dirpath=kept"],
    "rates": ["LearningRateMonitor"],
    "device": ["DeviceStatsMonitor", "cpu_stats=false"],
    "speed": ["ThroughputMonitor", "batch_size_fn={_target_:hydra.utils.get_method,path:tests_further.studies}"],
    "timer": ["Timer", "duration='00:00:09:00'", "interval=epoch"],
    "summary": ["ModelSummary"],
    "crash": ["OnExceptionCheckpoint", "dirpath=kept"],
    "nothing": ["LambdaCallback"],
}
if find_spec("rich"):
    WORKING["rich"] = ["RichModelSummary"]
else:
    REFUSED["RichModelSummary"] = ([], "requires `rich`")


def words(name, kind, *arguments):
    return [f"+callbacks.{name}._target_={L}{kind}", *(f"+callbacks.{name}.{argument}" for argument in arguments)]


def test_every_callback_of_lightning_is_known():
    bases = {"Callback", "Checkpoint", "SpikeDetection"}
    there = {kind for kind in of_lightning.__all__ if kind not in bases}
    assert there <= {*REFUSED, *(kind for kind, *_ in WORKING.values())}


@pytest.mark.parametrize(("kind", "arguments", "said"), [*((k, *v) for k, v in REFUSED.items()), *MORE])
def test_what_would_end_or_change_a_run_is_refused_before_data_is_read(compose, mrnet_root, monkeypatch, kind, arguments, said):
    monkeypatch.setattr("xraylab.data.datasets.mrnet.MRNet.read", lambda *_: pytest.fail("data was read"))
    typed = [f"dataset.root={mrnet_root}", *TINY, *words("x", kind, *arguments)]
    with pytest.raises(UserError, match=said):
        assemble(compose(*typed), typed)


def test_two_that_keep_the_same_are_refused(compose, mrnet_root):
    typed = [f"dataset.root={mrnet_root}", *TINY[:4], *TINY[5:], *words("x", "EarlyStopping", "monitor=valid/loss", "patience=9")]
    with pytest.raises(UserError, match=r"early_stopping: callbacks\.x is the same already"):
        assemble(compose(*typed), typed)


def studies(batch):
    return len(batch.ids)


def test_the_others_work(train_here, tmp_path, mrnet_root, monkeypatch):
    pytest.importorskip("tensorboard")
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "tests_further", sys.modules[__name__])
    typed = [word for name, given in WORKING.items() for word in words(name, *given)]
    run = train_here(tmp_path / "run", f"dataset.root={mrnet_root}", *TINY, *typed, "max_epochs=1", "logger=tensorboard")
    assert len((run / "history.csv").read_text().splitlines()) == 2
    assert (run / "evaluation.json").is_file()
    assert len(list((tmp_path / "kept").glob("*.ckpt"))) == 1
