"""Recipes: their settings against the publications, field by field, and a run of each on its generated tree."""

from __future__ import annotations

import json
import re

import pandas as pd
import pytest
import torch
from conftest import assemble
from omegaconf import OmegaConf

from xraylab.config.settings import check_config
from xraylab.data.synthetic.bone import write_mura
from xraylab.system.paths import conf_dir

SWEEPS = sorted(p.stem for p in (conf_dir() / "sweep").glob("*.yaml") if p.stem != "none")
RECIPES = sorted(p.stem for p in (conf_dir() / "experiment").glob("*.yaml") if p.stem != "none")
QUICK = ("mura_cnn",)  # which the others vary; whole runs of exams are in test_training
ALEXNET_FEATURES = 2_469_696  # torchvision's AlexNet, its five convolutions
DENSENET121_FEATURES = 7_978_856 - 1_025_000  # torchvision's without its classifier of 1,000 classes
DENSENET169_FEATURES = 14_149_480 - 1_665_000  # torchvision's without its classifier of 1,000 classes
RESNET50_STAGE4, RESNET50_BLOCK3 = 14_964_736, 4_462_592  # of torchvision's


def slow(name: str, is_slow: bool):
    """A case of a test, marked where it takes long."""
    return pytest.param(name, marks=pytest.mark.slow) if is_slow else name


def densenet201_from(layer: int) -> int:
    """Parameters of DenseNet-201 from a layer of its last dense block on: norm, 1x1 to 128, norm, 3x3 to 32; the last norm."""
    widths = [896 + 32 * (k - 1) for k in range(layer, 33)]
    return sum(2 * c + 128 * c + 2 * 128 + 128 * 32 * 9 for c in widths) + 2 * 1920


def mlp(width: int) -> int:
    """Parameters of a head of 512 and 512 and one output."""
    return width * 512 + 512 + 512 * 512 + 512 + 512 + 1


MURA = {
    "dataset._target_": "xraylab.data.MURA",
    "pool._target_": "xraylab.models.MeanProbability",
    "optimizer._target_": "torch.optim.Adam",
    "augmentation.per": "image",
    "valid_fraction": 0.2,
}
PAPER = MURA | {
    "backbone.name": "densenet169",
    "backbone.pretrained": True,
    "backbone.trainable_from": None,
    "selection": "holdout",
    "loss._target_": "xraylab.losses.WeightedBCE",
    "loss.balance": "group",
    "optimizer.lr": 1e-4,
    "optimizer.betas": [0.9, 0.999],
    "batch_size": 8,
    "image.size": 224,
    "image.mean": None,  # the backbone's own, ImageNet's
    "scheduler._target_": "torch.optim.lr_scheduler.ReduceLROnPlateau",
    "scheduler.factor": 0.1,
    "scheduler.monitor": "valid/loss",
    "monitor": "valid/loss",
    "augmentation.transforms.0._target_": "albumentations.HorizontalFlip",
    "augmentation.transforms.1.limit": [-30, 30],
    "trainable": DENSENET169_FEATURES + 1665,
}
KERAS = MURA | {
    "unit": "image",
    "body_part": "all",
    "selection": "holdout",  # its official valid is its test
    "loss._target_": "xraylab.losses.WeightedBCE",
    "loss.balance": "keras",
    "image.size": 256,
    "backbone.in_chans": 3,
    "optimizer.lr": 1e-3,
    "early_stopping.monitor": "valid/loss",
    "early_stopping.patience": 10,
    "scheduler._target_": "torch.optim.lr_scheduler.ReduceLROnPlateau",
    "scheduler.factor": 0.2,
    "scheduler.min_lr": 0.0,
    "max_epochs": 100,
    "monitor": "valid/loss",
    "augmentation.transforms.0._target_": "albumentations.HorizontalFlip",
    "augmentation.transforms.1._target_": "albumentations.VerticalFlip",
    "augmentation.transforms.2.limit": [-30, 30],
}
CNN = KERAS | {
    "backbone._target_": "xraylab.models.CNN",
    "backbone.filters": 32,
    "backbone.kernel": 3,
    "backbone.convs": 1,
    "backbone.pool": "max",
    "backbone.pool_size": 2,
    "backbone.pool_stride": 2,
}
PLAIN = ("augmentation.transforms.0._target_", "augmentation.transforms.1._target_", "augmentation.transforms.2.limit")
CNN2 = {k: v for k, v in CNN.items() if k not in (*PLAIN, "augmentation.per")} | {
    "augmentation.transforms": [],
    "loss.balance": "none",
    "backbone.layers": 2,
    "backbone.batch_norm": False,
    "backbone.dropout": 0.0,
    "backbone.spatial_dropout": 0.0,
    "head.dropout": 0.0,
    "trainable": 896 + 18_496 + 64 * 64 * 64 + 1,  # two convolutions, and one output of 64 maps of 64x64
}
DENSENET201 = KERAS | {"backbone.name": "densenet201", "backbone.pretrained": True, "head.hidden": []}
RESNET50 = KERAS | {"backbone.name": "resnet50", "backbone.pretrained": True, "head.hidden": []}

TUTORIAL = {
    "backbone.name": "densenet121",
    "backbone.pretrained": False,
    "backbone.in_chans": 1,
    "backbone.spatial": "max",
    "head.hidden": [],
    "image.size": 320,
    "image.mean": 0.0,
    "image.std": 255.0,
    "dataset.view": "frontal",
    "dataset.findings": "all",
    "loss._target_": "xraylab.losses.Uncertainty",
    "loss.u": 0.4,
    "loss.w": 0.75,
    "loss.blank": "negative",
    "loss.reduction": "all",
    "loss.balance": "none",
    "evaluate.blank": "negative",
    "batch_size": 32,
    "max_epochs": 3,
    "optimizer._target_": "torch.optim.Adam",
    "optimizer.lr": 1e-3,
    "trainable": DENSENET121_FEATURES - 2 * 64 * 49 + 14 * 1025,  # of one channel
}

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
        "augmentation.transforms.0.translate_percent": [-0.10156, 0.10156],  # of 256 pixels, cut to 25
        "augmentation.transforms.1.p": 0.5,
        "image.mean": 58.09,
        "image.std": 49.73,
        "image.rescale": True,
        "optimizer._target_": "torch.optim.Adam",
        "optimizer.lr": 1e-5,
        "optimizer.weight_decay": 0.01,
        "trainable": ALEXNET_FEATURES + 257,
    },
    "mura_paper": PAPER | {"unit": "image", "body_part": "all"},
    "mura_wrist": PAPER | {"unit": "study", "body_part": "wrist", "augmentation.transforms.1.limit": [-10, 10]},
    "mura_mxnet": MURA
    | {
        "unit": "image",
        "backbone.name": "densenet169",
        "backbone.pretrained": True,
        "loss._target_": "xraylab.losses.TwoSoftmax",
        "loss.balance": "none",
        "selection": "split_valid",
        "augmentation.per": "study",
        "trainable": DENSENET169_FEATURES + 2 * 1665,
    },
    "mura_cnn": CNN | {"backbone.layers": 6, "backbone.batch_norm": True, "head.dropout": 0.25, "trainable": 6_308_609},
    "mura_cnn2": CNN2,
    "mura_cnn2_dropout": CNN2 | {"backbone.dropout": 0.25},
    "mura_cnn2_batchnorm": CNN2 | {"backbone.batch_norm": True, "trainable": CNN2["trainable"] + 2 * (32 + 64)},
    "mura_cnn2_spatial": CNN2 | {"backbone.spatial_dropout": 0.25},
    "mura_cnn2_last": CNN2 | {"head.dropout": 0.25},
    "mura_densenet201": DENSENET201 | {"backbone.trainable_from": "head", "trainable": 1921},
    "mura_densenet201_block31": DENSENET201 | {"trainable": densenet201_from(31) + 1921},
    "mura_densenet201_block19": DENSENET201 | {"trainable": densenet201_from(19) + 1921},
    "mura_densenet201_mlp": DENSENET201
    | {"head.hidden": [512, 512], "head.dropout": 0.25, "trainable": densenet201_from(19) + mlp(1920)},
    "mura_resnet50": RESNET50 | {"backbone.trainable_from": "head", "trainable": 2049},
    "mura_resnet50_block3": RESNET50 | {"trainable": RESNET50_BLOCK3 + 2049},
    "mura_resnet50_stage4": RESNET50 | {"trainable": RESNET50_STAGE4 + 2049},
    "mura_resnet50_mlp": RESNET50 | {"head.hidden": [512, 512], "head.dropout": 0.25, "trainable": RESNET50_STAGE4 + mlp(2048)},
    "chexpert_paper": {
        "backbone.name": "densenet121",
        "pool._target_": "xraylab.models.MaxProbability",  # study = max over views
        "dataset.findings": "competition",
        "unit": "image",
        "selection": "official",
        "image.size": 320,
        "optimizer._target_": "torch.optim.Adam",
        "optimizer.lr": 1e-4,
        "batch_size": 16,
        "max_epochs": 3,
        "trainable": DENSENET121_FEATURES + 5 * 1025,
    },
    "chest_tutorial": TUTORIAL | {"dataset._target_": "xraylab.data.MimicTutorial"},
    "chest_mimic": TUTORIAL | {"dataset._target_": "xraylab.data.MIMIC"},
    # the published ResNet-18 of 28 pixels: a stem of 3x3, stride 1, no pooling
    "pneumoniamnist": {"backbone.name": "resnet18", "backbone.stem": "small", "resolution": 28, "trainable": 11_168_193},
}


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """Files of random weights in the layout of the caches of torch and of the Hugging Face hub."""
    import timm
    import torchvision
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("weights")
    (folder / "torch" / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(torchvision.models.alexnet().state_dict(), folder / "torch" / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth")
    for name in ("densenet121", "densenet169", "densenet201", "resnet50"):
        model = timm.create_model(name)
        repository = folder / "hub" / f"models--{model.pretrained_cfg['hf_hub_id'].replace('/', '--')}"
        (repository / "snapshots" / "0").mkdir(parents=True)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0")
        save_file(model.state_dict(), repository / "snapshots" / "0" / "model.safetensors")
    return folder


@pytest.fixture
def weights(monkeypatch, stand_ins):
    """Stand-ins for published weights in the local cache, so that recipes run as they ship."""
    monkeypatch.setenv("TORCH_HOME", str(stand_ins / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(stand_ins / "hub"))


@pytest.fixture
def trees(mrnet_root, pneumonia_file, mura_root, chexpert_root, mimic_root, tutorial_root):
    return {name: mura_root for name in RECIPES if name.startswith("mura")} | {
        "chexpert_paper": chexpert_root, "chest_mimic": mimic_root, "chest_tutorial": tutorial_root,
        "mrnet_blog": mrnet_root, "mrnet_paper": mrnet_root, "pneumoniamnist": pneumonia_file,
    }  # fmt: skip


# a recipe of each dataset
REPORTED = ("mrnet_blog", "mura_paper", "chexpert_paper", "chest_mimic", "chest_tutorial", "pneumoniamnist")
TINY_RESNET = ["image.size=64", "backbone=resnet18", "backbone.pretrained=false", "+backbone.kwargs.channels=[8,8,16,16]"]


def small(name: str) -> list[str]:
    """Settings of size and length that make a recipe quick."""
    if name.startswith(("mrnet", "mura_cnn")):
        return ["max_epochs=1", "bootstrap=20", "image.size=64"]
    size = ["+backbone.kwargs.channels=[8,8,16,16]"] if name == "pneumoniamnist" else ["image.size=32"]
    return ["max_epochs=1", "bootstrap=20", *size]


def small_sweep(name: str) -> list[str]:
    """The same of a sweep, with a small network where the sweep does not choose among networks."""
    size = {
        "mura_transfer": ["image.size=32"],
        "mura_cnn_ladder": ["image.size=64"],
        "mura_regularisation": ["image.size=32"],
        "mura_body_parts": ["image.size=32", "backbone.layers=2"],
        "chest_eight": [*TINY_RESNET, "findings=[pneumothorax,atelectasis,cardiomegaly,pleural_effusion]"],
    }.get(name, TINY_RESNET)
    return ["max_epochs=1", "bootstrap=20", *size]


def test_every_recipe_has_its_publication_and_its_record():
    assert set(PUBLISHED) == set(RECIPES)
    records = "".join(p.read_text() for p in (conf_dir().parent / "docs" / "recipes").glob("*.md"))
    assert not [name for name in RECIPES if f"experiment={name}" not in records]
    assert not [name for name in SWEEPS if f"sweep={name}" not in records]
    assert set(SWEEPS) == GENERAL | set(RUNS)


@pytest.mark.parametrize("name", RECIPES)
def test_settings_are_the_published_ones(name, compose, trees, weights):
    cfg = compose(f"experiment={name}", f"dataset.root={trees[name]}", "cache=off")
    check_config(cfg)
    assert cfg.name == name
    expected = dict(PUBLISHED[name])
    trainable = expected.pop("trainable")
    for key, value in expected.items():
        found = OmegaConf.select(cfg, key)
        found = OmegaConf.to_container(found) if OmegaConf.is_config(found) else found
        assert found == (pytest.approx(value) if isinstance(value, float | list) else value), key
    module = assemble(cfg, []).module
    assert sum(p.numel() for p in module.parameters() if p.requires_grad) == trainable


@pytest.mark.parametrize("name", [slow(name, name not in QUICK) for name in RECIPES])
def test_every_recipe_runs_on_its_tree(name, train_here, tmp_path, trees, weights):
    reported = name in REPORTED
    run = train_here(tmp_path / name, f"experiment={name}", f"dataset.root={trees[name]}", *small(name), report=reported)
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert evaluation["data"] == "synthetic sample"
    official = name.startswith("mrnet") or name == "chexpert_paper"
    assert set(evaluation["splits"]) == ({"valid"} if official else {"valid", "test"})
    assert evaluation["splits"]["valid"]["selected_on"]
    assert (run / "report.html").exists() == reported
    if name.startswith("mura"):
        test = evaluation["splits"]["test"]
        assert (test["unit"], test["images"]["unit"]) == ("study", "image")
        assert test["images"]["n"] > test["n"]
        assert len(test["groups"]) == (1 if name == "mura_wrist" else 7)


GENERAL = {"backbones", "learning_rate_batch_augmentation", "seeds", "uncertainty_grid"}  # run in tests/test_ready_sweeps.py
# jobs of each sweep here, and the values that are left out for the time they take
RUNS = {
    "mura_ensemble": (6, ["seed=0,1,2,3,4,5"]),
    "mura_regularisation": (5, ["seed=0"]),
    "mura_cnn_ladder": (4, ["backbone.layers=2,6", "augmentation=mura_keras"]),
    "mura_body_parts": (8, ["valid_fraction=0.4"]),  # of the fewest studies there are some of both classes
    "uncertainty_policies": (10, []),
    "chest_eight": (4, ["loss=ignore,hedged"]),
    "mura_transfer": (2, ["experiment=mura_densenet201_mlp,mura_resnet50_block3"]),
    "mrnet_planes": (3, ["task=acl"]),
    "mrnet_all": (6, ["task=acl,meniscus"]),
}
ENSEMBLES = {
    "mura_ensemble": {"mean of best 5"},
    "mura_body_parts": {"mean of body parts", "each on its own part"},
    "uncertainty_policies": {"best of each finding"},
    "mrnet_planes": {"stack of planes"},
    "mrnet_all": {"stack of acl", "stack of meniscus"},
    "chest_eight": {f"frontal and lateral {policy}" for policy in ("ignore", "hedged")},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_every_sweep_ends_with_its_comparison(name, command, tmp_path, trees, mrnet_root, chexpert_root, mimic_root, stand_ins):
    """By the command of its record, with sizes and epochs changed."""
    roots = {"uncertainty_policies": chexpert_root, "chest_eight": mimic_root}
    root = mrnet_root if name.startswith("mrnet") else roots.get(name, trees["mura_cnn"])
    if name == "mura_body_parts":  # every part needs both classes in train
        root = write_mura(tmp_path / "MURA-v1.1", train=170, valid=40)
    jobs, fewer = RUNS[name]
    environment = {"HF_HUB_CACHE": str(stand_ins / "hub"), "TORCH_HOME": str(stand_ins / "torch")}
    done = command("train", *(["-m"] if fewer else []), f"sweep={name}", f"dataset.root={root}", *small_sweep(name), *fewer,
                   cwd=tmp_path, **environment)  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    (folder,) = (tmp_path / "outputs" / name / "multirun").iterdir()
    rows = pd.read_csv(folder / "comparison.csv")
    members = {str(k) for k in range(jobs)}
    assert set(rows["job"].astype(str)) == members | ENSEMBLES.get(name, set())
    assert set(rows["unit"]) == ({"study"} if root == mrnet_root else {"study", "image"})
    assert (rows["data"] == "synthetic sample").all()
    assert rows[rows["job"].astype(str).isin(members)]["overrides"].nunique() == jobs
    page = (folder / "report.html").read_text()
    assert "Synthetic sample" in page
    if root == chexpert_root:
        assert "Irvin et al. 2019, table 3" in page
        assert {"adapted", "selftrained"} <= set(re.findall(r"\w+", page))
    elif root == mrnet_root:
        (said,) = re.findall(r"<p>([^<]*fitted on valid, and judged there out of fold, in 5 parts)", page)  # once for all
        assert all(stack in said for stack in ENSEMBLES[name])
        assert all(f"  {stack}: stack of " in done.stdout for stack in ENSEMBLES[name])
    elif root != mimic_root:
        assert "kappa by group" in page
