"""Recipes: their settings against the publications, field by field, and a run of each on its generated tree."""

from __future__ import annotations

import json

import pytest
import torch
from omegaconf import OmegaConf

from xraylab import conf_dir
from xraylab.assemble import assemble
from xraylab.settings import check_config

RECIPES = sorted(p.stem for p in (conf_dir() / "experiment").glob("*.yaml") if p.stem != "none")
ALEXNET_FEATURES = 2_469_696  # torchvision's AlexNet, its five convolutions

# Figures of the publications, copied; None where the publication does not say.
PUBLISHED = {
    "mrnet_blog": {
        "backbone._target_": "xraylab.models.AlexNet",
        "backbone.pretrained": True,
        "pool._target_": "xraylab.models.MaxFeature",
        "selection": "official",
        "task": "acl",
        "batch_size": 1,
        "accumulate": 1,
        "loss._target_": "xraylab.losses.WeightedBCE",
        "loss.balance": "label",
        "augmentation.per": "study",
        "augmentation.transforms.0.rotate": [-25, 25],
        "augmentation.transforms.0.translate_percent": [-0.11, 0.11],
        "augmentation.transforms.1.p": 0.5,
        "image.mean": 0.0,
        "image.std": 1.0,
        "image.rescale": False,
        "optimizer._target_": "torch.optim.Adam",
        "optimizer.lr": 1e-5,
        "optimizer.weight_decay": 0.1,
        "scheduler._target_": "torch.optim.lr_scheduler.ReduceLROnPlateau",
        "scheduler.factor": 0.3,
        "scheduler.patience": 3,
        "scheduler.threshold": 1e-4,
        "max_epochs": 50,
        "early_stopping.monitor": "valid/loss",
        "early_stopping.patience": 5,
        "monitor": "valid/macro/auroc",
        "trainable": ALEXNET_FEATURES + 257,
    },
    "mrnet_paper": {
        "backbone._target_": "xraylab.models.AlexNet",
        "backbone.pretrained": True,
        "pool._target_": "xraylab.models.MaxFeature",
        "batch_size": 1,
        "loss.balance": "label",
        "augmentation.per": "study",
        "augmentation.transforms.0.rotate": [-25, 25],
        "augmentation.transforms.0.translate_percent": [-25 / 256, 25 / 256],
        "augmentation.transforms.1.p": 0.5,
        "image.mean": 58.09,
        "image.std": 49.73,
        "image.rescale": True,
        "optimizer._target_": "torch.optim.Adam",
        "optimizer.lr": 1e-5,
        "optimizer.weight_decay": 0.01,
        "trainable": ALEXNET_FEATURES + 257,
    },
    # the published ResNet-18 of 28 pixels: a stem of 3x3, stride 1, no pooling
    "pneumoniamnist": {"backbone.name": "resnet18", "backbone.stem": "small", "resolution": 28, "trainable": 11_168_193},
}


@pytest.fixture
def weights(monkeypatch, tmp_path):
    """Stand-ins for published weights in the local cache, so that recipes run as they ship."""
    import torchvision

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(torchvision.models.alexnet().state_dict(), folder / "alexnet-owt-7be5be79.pth")


@pytest.fixture
def trees(mrnet_root, pneumonia_file):
    return {"mrnet_blog": mrnet_root, "mrnet_paper": mrnet_root, "pneumoniamnist": pneumonia_file}


def test_every_recipe_has_its_publication_and_its_record():
    assert set(PUBLISHED) == set(RECIPES)
    records = "".join(p.read_text() for p in (conf_dir().parent / "experiments").glob("*/README.md"))
    assert not [name for name in RECIPES if f"experiment={name}" not in records]


@pytest.mark.parametrize("name", RECIPES)
def test_settings_are_the_published_ones(name, compose, trees, weights):
    cfg = compose(f"experiment={name}", f"dataset.root={trees[name]}")
    check_config(cfg)
    expected = dict(PUBLISHED[name])
    trainable = expected.pop("trainable")
    for key, value in expected.items():
        found = OmegaConf.select(cfg, key)
        found = OmegaConf.to_container(found) if OmegaConf.is_config(found) else found
        assert found == (pytest.approx(value) if isinstance(value, float | list) else value), key
    module = assemble(cfg, []).module
    assert sum(p.numel() for p in module.parameters() if p.requires_grad) == trainable


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_runs_on_its_tree(name, train_here, tmp_path, trees, weights):
    size = ["image.size=64"] if name.startswith("mrnet") else ["+backbone.kwargs.channels=[8,8,16,16]"]
    run = train_here(tmp_path / name, f"experiment={name}", f"dataset.root={trees[name]}", "max_epochs=1", "bootstrap=20", *size)
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert evaluation["data"] == "synthetic sample"
    official = name.startswith("mrnet")
    assert set(evaluation["splits"]) == ({"valid"} if official else {"valid", "test"})
    assert evaluation["splits"]["valid"]["selected_on"]
    assert (run / "report.html").exists()
