"""Every YAML that ships is composed and instantiated; what its hardware cannot run says so."""

from __future__ import annotations

import random

import hydra
import pytest
import pytorch_lightning as pl
import torch
from conftest import assemble
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from xraylab.config.instantiate import build
from xraylab.config.messages import every_key
from xraylab.config.settings import check_config
from xraylab.data.augmentation import Augmentation
from xraylab.data.datasets.base import DatasetReader
from xraylab.errors import UserError
from xraylab.models import Backbone, Pool
from xraylab.models.losses.base import Loss
from xraylab.system.paths import conf_dir
from xraylab.system.processes import planned
from xraylab.training.devices import hardware

CHOICES = sorted((p.parent.name, p.stem) for p in conf_dir().glob("*/*.yaml"))
KINDS = {"backbone": Backbone, "pool": Pool, "loss": Loss, "augmentation": Augmentation}


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes_and_instantiates(compose, group, choice, tmp_path):
    cfg = compose(f"{group}={choice}")
    check_config(cfg)
    node = cfg.get(group)
    if group in KINDS:
        if group == "backbone":
            node.pretrained = False
            if choice == "timm":
                with pytest.raises(UserError, match=r"backbone\.name must be given"):
                    build(node, group)
                node.name = "resnet10t"
            if choice == "cnn":
                with pytest.raises(UserError, match=r"set image\.size"):
                    build({**node, "image_size": None}, group)
                node.image_size = 64
        assert isinstance(build(node, group), KINDS[group])
    elif group == "optimizer":
        assert isinstance(build(node, group)([torch.nn.Parameter(torch.zeros(1))]), torch.optim.Optimizer)
    elif group == "scheduler" and node:
        plain = {k: 10 if v == "auto" else v for k, v in OmegaConf.to_container(node, resolve=True).items()}
        plain = {k: v for k, v in plain.items() if k not in ("interval", "monitor")}
        optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
        assert hasattr(build(plain, group)(optimizer), "step")
    elif group == "callbacks":
        if choice == "unfreeze":
            with pytest.raises(UserError, match=r"at must be given"):
                build(node.unfreeze, "callbacks.unfreeze")
            node.unfreeze["at"] = {2: None}
        if choice == "swa":
            with pytest.raises(UserError, match=r"start must be given"):
                build(node.swa, "callbacks.swa")
            node.swa["start"] = 2
        assert all(isinstance(build(n, group), pl.Callback) for n in node.values())
    elif group == "dataset":
        assert isinstance(build({k: v for k, v in node.items() if k != "embedded"}, group), DatasetReader)
    elif group == "logger":
        for n in node.values():
            assert isinstance(build({**n, "save_dir": str(tmp_path)}, group), pl.loggers.Logger)
    elif group == "accelerator":
        assert planned({**node, "num_nodes": 1}).world >= 1
        if choice in ("gpu", "gpus") and not torch.cuda.is_available():
            with pytest.raises(UserError, match="there is no GPU"):
                hardware(OmegaConf.to_container(node), "auto")
        elif choice == "tpu":
            with pytest.raises(UserError, match=r"torch_xla, which a TPU needs, is not installed .*; there is the .PU"):
                hardware(OmegaConf.to_container(node), "auto")
        else:
            options, precision = hardware(OmegaConf.to_container(node), "auto")
            pl.Trainer(**options, precision=precision, logger=False, enable_checkpointing=False)


def test_every_choice_says_what_it_is():
    for group, choice in CHOICES:
        lines = (conf_dir() / group / f"{choice}.yaml").read_text().splitlines()
        assert any(line.startswith("# ") and "@package" not in line for line in lines[:2]), f"{group}/{choice}"


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(UserError, match="needs a GPU"):
        hardware({"accelerator": "cpu"}, "16")


def test_a_wrong_argument_of_a_group_is_named():
    with pytest.raises(UserError, match=r"pool: .*hiden"):
        build({"_target_": "xraylab.models.Attention", "hiden": 3}, "pool")
    with pytest.raises(UserError, match="backbone"):
        build({"_target_": "xraylab.models.Nothing"}, "backbone")


@pytest.mark.parametrize(
    "primary",
    ["config", "evaluate", "predict", "explain", "serve", "export", "combine", "sample", "check", "describe", "prepare"],
)
def test_every_command_composes(primary):
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = hydra.compose(primary)
    own = {
        "evaluate": {"run", "table"},
        "predict": {"run", "input"},
        "explain": {"run", "input"},
        "serve": {"run", "limits"},
        "export": {"run", "format"},
        "combine": {"runs"},
        "sample": {"root", "dataset"},
    }
    own |= {"check": {"names", "dataset"}, "describe": {"pictures"}}
    assert set(cfg) >= own.get(primary, {"monitor", "cache"})


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.lr=abc", "optimizer.lr=abc: it should be a number"),
        ("optimizer.lr=-1", "Invalid learning rate: -1"),
        ("monitor=valid/auc", "there is no such metric"),
        ("scheduler.factor=2.0", "scheduler: Factor should be < 1.0"),
        ("loss.label_smoothing=abc", "label_smoothing=abc"),
        ("backbone.trainable_from=conv9", "there is no such stage"),
        ("backbone.pretrained=maybe", "there is no such file"),
        ("backbone.pretrained=model.h5", "weights of other frameworks are out of scope"),
        ("augmentation.per=slice", "it is study or image"),
        ("+augmentation.transforms.0.rotat=[1,2]", "rotat"),
        ("scheduler.interval=step", "a plateau is seen once an epoch"),
        ("accelerator.accelerator=foo", "accelerator: "),
        ("+accelerator.foo=1", "accelerator: .*foo"),
        ("image.std=0", "image.std=0"),
        ("image.mean=[1,2]", "2 values for 3 channels"),
        ("unit=slice", "unit=slice: it should be 'study' or 'image'"),
        ("dataset.on_error=ignore", "it is stop or skip"),
    ],
)
def test_a_wrong_value_is_refused_before_data_is_read(compose, tmp_path, mrnet_root, monkeypatch, override, said):
    monkeypatch.setattr("xraylab.data.datasets.mrnet.MRNet.read", lambda *_: pytest.fail("data was read"))
    overrides = [f"dataset.root={mrnet_root}", "backbone.pretrained=false", override]
    with pytest.raises(UserError, match=said):
        assemble(compose(*overrides), overrides)


def test_no_value_of_any_key_ends_in_a_traceback(compose, tmp_path, mrnet_root, monkeypatch):
    class Reached(Exception):
        """Everything before the data."""

    def stop(*_):
        raise Reached

    monkeypatch.setattr("xraylab.training.experiment.split_table", stop)
    overrides = [f"dataset.root={mrnet_root}", "backbone=cnn", "backbone.layers=1", "backbone.filters=2", "image.size=32"]
    cfg = compose(*overrides, "accelerator=cpu", "precision=32", "augmentation=mrnet", "callbacks=ema")
    keys = [k for k, _ in every_key(OmegaConf.to_container(cfg)) if not k.startswith(("sweep", "dataset.embedded", "_"))]
    values = [None, True, -1, [0.9], {"a": 1}, "no", ""]
    pairs = [(key, value) for key in keys if "_target_" not in key and "_partial_" not in key for value in values]
    reached, unnamed = 0, []
    for key, value in random.Random(0).sample(pairs, 120) + [("optimizer.betas", v) for v in values]:
        changed = OmegaConf.create(OmegaConf.to_container(cfg))
        OmegaConf.update(changed, key, value, merge=False)
        try:
            check_config(changed)
            assemble(changed, [f"{key}=x"])
        except Reached:
            reached += 1
        except Exception as error:
            unnamed += [(key, value, repr(error))] * (
                not isinstance(error, UserError) or not any(part in str(error) for part in key.split("."))
            )
    assert not unnamed
    assert reached < 60
