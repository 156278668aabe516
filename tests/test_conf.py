"""Every YAML that ships is composed and instantiated; what its hardware cannot run says so."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf

from xraylab import conf_dir
from xraylab.assemble import build, hardware
from xraylab.data.augmentation import Augmentation
from xraylab.data.reader import Reader
from xraylab.errors import UserError
from xraylab.losses import Loss
from xraylab.models import Backbone, Pool
from xraylab.settings import check_config

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
        assert isinstance(build(node, group), KINDS[group])
    elif group == "optimizer":
        assert isinstance(build(node, group)([torch.nn.Parameter(torch.zeros(1))]), torch.optim.Optimizer)
    elif group == "scheduler" and node:
        plain = {k: 10 if v == "auto" else v for k, v in OmegaConf.to_container(node, resolve=True).items()}
        plain = {k: v for k, v in plain.items() if k not in ("interval", "monitor")}
        optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
        assert hasattr(build(plain, group)(optimizer), "step")
    elif group == "callbacks":
        assert all(isinstance(build(n, group), pl.Callback) for n in node.values())
    elif group == "dataset":
        assert isinstance(build({k: v for k, v in node.items() if k != "embedded"}, group), Reader)
    elif group == "logger":
        for n in node.values():
            assert isinstance(build({**n, "save_dir": str(tmp_path)}, group), pl.loggers.Logger)
    elif group == "accelerator":
        if choice == "gpu" and not torch.cuda.is_available():
            with pytest.raises(UserError, match="there is no GPU"):
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
