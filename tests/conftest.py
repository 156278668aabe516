"""Small trees in the real layouts, and ways to run the commands."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # a core each: with more threads than cores torch crawls
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import hydra
import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from xraylab.data.synthetic.bone import write_mura
from xraylab.data.synthetic.chest import write_chexpert, write_mimic, write_tutorial
from xraylab.data.synthetic.knee import write_mrnet
from xraylab.data.synthetic.medmnist import write_medmnist
from xraylab.system.paths import conf_dir

REPOSITORY = Path(__file__).parents[1]
LONG = ("test_the_main_job", "test_every_recipe_runs")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, or one core works at them while the others have nothing left."""
    items.sort(key=lambda item: not (item.get_closest_marker("slow") or item.name.startswith(LONG)))


def noisy(root: Path) -> None:
    """Make every picture of a tree another one, of its size: a check looks for pictures of one value and for copies."""
    for number, path in enumerate(sorted((*root.rglob("*.jpg"), *root.rglob("*.png")))):
        shape = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).shape
        cv2.imwrite(str(path), np.random.default_rng(number).integers(0, 256, shape).astype(np.uint8))


@pytest.fixture(autouse=True)
def alone(tmp_path_factory, monkeypatch):
    """No data, cache, dashboard or network of the machine's owner."""
    monkeypatch.delenv("XRAYLAB_DATA", raising=False)
    monkeypatch.setenv("XRAYLAB_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path_factory.getbasetemp() / "torch"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def mrnet_root(tmp_path_factory) -> Path:
    """A tiny MRNet-v1.0: 40 + 30 exams of 2-4 slices. Do not change it."""
    return write_mrnet(tmp_path_factory.mktemp("mrnet") / "MRNet-v1.0", train=40, valid=30, slices=(2, 4))


@pytest.fixture(scope="session")
def mura_root(tmp_path_factory) -> Path:
    """A small MURA-v1.1: 70 + 40 studies of 1-4 views of seven body parts. Do not change it."""
    return write_mura(tmp_path_factory.mktemp("mura") / "MURA-v1.1", train=70, valid=40)


@pytest.fixture(scope="session")
def chexpert_root(tmp_path_factory) -> Path:
    """A small CheXpert-v1.0-small: 120 + 40 studies of one to three views. Do not change it."""
    return write_chexpert(tmp_path_factory.mktemp("chexpert") / "CheXpert-v1.0-small", train=120, valid=40, size=64)


@pytest.fixture(scope="session")
def mimic_root(tmp_path_factory) -> Path:
    """A small MIMIC-CXR-JPG: 120 + 40 + 40 studies. Do not change it."""
    return write_mimic(tmp_path_factory.mktemp("mimic") / "mimic-cxr-jpg", train=120, valid=40, test=40, size=64)


@pytest.fixture(scope="session")
def tutorial_root(tmp_path_factory) -> Path:
    """The tutorial's shards: 120 + 40 + 40 studies. Do not change it."""
    return write_tutorial(tmp_path_factory.mktemp("tutorial") / "mimic-tutorial", train=120, valid=40, test=40, size=64)


@pytest.fixture(scope="session")
def pneumonia_file(tmp_path_factory) -> Path:
    """A small pneumoniamnist.npz. Do not change it."""
    return write_medmnist(
        tmp_path_factory.mktemp("medmnist") / "pneumoniamnist.npz", "pneumoniamnist", train=160, val=60, test=80
    )


def compose_config(*overrides: str):
    """Overrides to a composed training configuration, as the command composes it."""
    GlobalHydra.instance().clear()
    OmegaConf.register_new_resolver("run_dir", lambda *_: "unused", replace=True)
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return hydra.compose("config", list(overrides))


def assemble(cfg, typed=(), fresh: bool = True, **more):
    """The experiment of a composed configuration."""
    from xraylab.config.dataset import resolved
    from xraylab.training.experiment import Experiment

    return Experiment.from_config(resolved(cfg, typed, fresh), fresh, **more)


@pytest.fixture
def compose():
    """See ``compose_config``."""
    return compose_config


def train_run(directory: Path, *overrides: str, report: bool = False) -> Path:
    """Train in this process; returns the directory.

    Without its report unless a test reads it: drawing that takes longer than all else of a tiny run.
    """
    from xraylab.train import train

    directory.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        if not report:
            patch.setattr("xraylab.reporting.run_report.write_report", lambda _: None)
        train(compose_config(*overrides), directory, list(overrides))
    return directory


@pytest.fixture
def train_here():
    """See ``train_run``."""
    return train_run


SERVED = (
    "max_epochs=1", "batch_size=8", "image.size=32", "backbone=resnet18_small", "+backbone.kwargs.channels=[8,8,16,16]",
    "num_workers=0", "accelerator=cpu", "cache=false",
)  # fmt: skip


@pytest.fixture(scope="session")
def knee_runs(tmp_path_factory, mrnet_root) -> dict[str, Path]:
    """Runs on two planes of knees, and on all planes at once. Do not change them."""
    folder = tmp_path_factory.mktemp("served")
    words = ("dataset=mrnet", "task=[acl,meniscus]", f"dataset.root={mrnet_root}")
    return {plane: train_run(folder / plane, *SERVED, *words, f"plane={plane}") for plane in ("axial", "coronal", "all")}


@pytest.fixture(scope="session")
def bone_run(tmp_path_factory, mura_root) -> Path:
    """A run on bone X-rays, of several views a study. Do not change it."""
    return train_run(tmp_path_factory.mktemp("served") / "bone", *SERVED, "dataset=mura", f"dataset.root={mura_root}")


@pytest.fixture(scope="session")
def knee(knee_runs):
    """The run on axial exams, loaded to be served."""
    from xraylab.serving.served_run import ServedRun

    return ServedRun(knee_runs["axial"])


@pytest.fixture(scope="module")
def url(knee):
    """Where that run is served."""
    from xraylab.serving.server import serving

    with serving(knee) as found:
        yield found


@pytest.fixture
def client(url):
    """What asks there."""
    import httpx

    with httpx.Client(base_url=url, timeout=60) as found:
        yield found


def run_job(name: str, *overrides: str) -> None:
    """A command's job in this process: composed as the command does it, errors as they are raised."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = hydra.compose(name, list(overrides))
    importlib.import_module(f"xraylab.{name}").job(cfg)


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    """A command line in this process and an empty folder: ``here(*words, entry=main)``; its exit code and what it printed."""
    from xraylab.train import main

    monkeypatch.chdir(tmp_path)

    def run(*words: str, entry: Callable[[], None] = main) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["xraylab", *words])
        code = 0
        try:
            entry()
        except SystemExit as error:
            code = error.code
        finally:
            GlobalHydra.instance().clear()
            HydraConfig.instance().cfg = None
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


@pytest.fixture
def command(tmp_path):
    """Run ``python -m xraylab.<name>`` in an empty folder; returns the finished process."""

    def run(name: str, *overrides: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        folder = cwd or tmp_path / "empty"
        folder.mkdir(exist_ok=True)
        return subprocess.run(
            [sys.executable, "-m", f"xraylab.{name}", *overrides],
            cwd=folder, env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}, capture_output=True, text=True,
            timeout=550, check=False,
        )  # fmt: skip

    return run


def leave(folder, value, epochs=(), **record):
    """What a finished run leaves, as far as a sweep looks."""
    folder.mkdir(parents=True, exist_ok=True)
    macro = {"auroc": {"value": value, "reason": None if value is not None else "no positive study"}}
    split = {"labels": {}, "macro": macro}
    content = {"checkpoint": {"epoch": 0}, "splits": {"valid": split, "test": split}}
    (folder / "evaluation.json").write_text(json.dumps(content))
    (folder / "environment.json").write_text(json.dumps({"finished": True, **record}))
    rows = "".join(f"{k},{v},{v}\n" for k, v in enumerate(epochs or (value,)))
    (folder / "history.csv").write_text("epoch,valid/macro/auroc,valid/loss\n" + rows)


def end_workers() -> None:
    """Of joblib's, which keeps them for the next test, whose environment is another."""
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor().shutdown()


# settings that make a run small without changing what it does
TINY = ["image.size=64", "backbone.pretrained=false", "bootstrap=20", "num_workers=0", "precision=32"]
