"""The sweeps for any dataset, in small and in whole: trained, compared, stopped and resumed, given up, and written for W&B."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from conftest import REPOSITORY, end_workers
from omegaconf import OmegaConf

from xraylab import sweep_yaml
from xraylab.sweeps import median_pruning as pruning
from xraylab.sweeps.record import Journal
from xraylab.training.callbacks.interrupt import StopOnInterrupt

QUICK = ["bootstrap=0", "cases=0", "num_workers=0", "precision=32", "cache=off", "early_stopping=null"]
TINY = [*QUICK, "backbone=cnn", "backbone.layers=2", "backbone.filters=4", "image.size=16", "max_epochs=1"]
RESNET = [*QUICK, "+backbone.kwargs.channels=[8,8,16,16]", "backbone.pretrained=false", "image.size=32", "max_epochs=1"]


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.slow
def test_seeds_are_stopped_and_go_on_to_what_they_would_have_been(here, monkeypatch, mrnet_root):
    """Ctrl-C in the second job: the sweep is resumed in place, compared, and its best repeated by the command it prints."""
    after, folder = StopOnInterrupt.on_train_batch_end, Path("outputs/seeds/multirun/it")

    def stop(self, trainer, *args):
        if trainer.global_step == 5 and "multirun/it/1/" in str(self.checkpoint):
            signal.raise_signal(signal.SIGINT)
        after(self, trainer, *args)

    words = [f"dataset.root={mrnet_root}", *TINY, "augmentation=mrnet"]
    with monkeypatch.context() as patch:
        patch.setattr(StopOnInterrupt, "on_train_batch_end", stop)
        code, said = here("sweep=seeds", "seed=0,1,2", *words, f"hydra.sweep.dir={folder}")
    assert code == 75, said
    assert f"python -m xraylab.train sweep.resume={folder}" in said
    assert [job.state for job in Journal.read(folder).jobs] == ["finished", "stopped", "waiting"]
    written = (folder / "0" / "config.yaml").stat().st_mtime_ns
    code, said = here(f"sweep.resume={folder}")
    assert code == 0, said
    assert (folder / "0" / "config.yaml").stat().st_mtime_ns == written
    assert len(json.loads((folder / "1" / "environment.json").read_text())["sessions_before"]) == 1
    journal = Journal.read(folder)
    assert [job.state for job in journal.jobs] == ["finished"] * 3
    (best,) = journal.best()
    assert best.scores[0] == max(job.scores[0] for job in journal.jobs)
    evaluation = json.loads((folder / str(best.number) / "evaluation.json").read_text())
    assert best.scores[0] == evaluation["splits"]["valid"]["macro"]["auroc"]["value"]
    rows = pd.read_csv(folder / "comparison.csv")
    assert set(rows["job"]) == {0, 1, 2}
    table, _, closing = said.partition("best: job ")
    assert "auroc" in table
    assert journal.command(best) in closing
    _, _, *repeat = shlex.split(journal.command(journal.jobs[1]))
    code, said = here(*repeat[1:], "hydra.run.dir=again")
    assert code == 0, said
    assert not list(Path("outputs").glob("*/[0-9]*"))
    assert all(torch.equal(a, b) for a, b in zip(weights(folder / "1").values(), weights(Path("again")).values(), strict=True))


@pytest.mark.slow
def test_learning_rates_are_drawn_and_hopeless_ones_given_up(here, monkeypatch, mrnet_root):
    optuna = pytest.importorskip("optuna", reason="the extra sweeps is not installed")
    monkeypatch.setattr(pruning, "worse_than_median", lambda *_: True)
    name = "learning_rate_batch_augmentation"
    words = ["sweep.trials=2", "sweep.prune_jobs=1", "sweep.prune_epochs=0", f"dataset.root={mrnet_root}", *TINY, "max_epochs=2"]
    code, said = here(f"sweep={name}", *words)
    assert code == 0, said
    (folder,) = Path(f"outputs/{name}/multirun").iterdir()
    jobs = Journal.read(folder).jobs
    assert [job.state for job in jobs] == ["finished", "pruned"]
    assert re.match(r"given up after epoch 1: valid/macro/auroc \d\.\d+, and the median of 1 finished", jobs[1].reason)
    assert not (folder / "1" / "evaluation.json").exists()
    assert len(pd.read_csv(folder / "1" / "history.csv")) == 1
    found = optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder.absolute()}/study.db").get_trials()
    assert [t.state.name for t in found] == ["COMPLETE", "PRUNED"]
    assert [len(t.intermediate_values) for t in found] == [2, 1]
    assert {key for t in found for key in t.params} == {"optimizer.lr", "batch_size", "augmentation"}
    assert "given up at the median: 1" in said
    assert "best: job 0" in said
    assert "ob 1 was given up after epoch 1" in (folder / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("backbones", ["backbone=resnet18,resnet50", "seed=0", *RESNET]),
        (
            "uncertainty_grid",
            [
                "loss.u=0.0,1.0",
                "loss.w=0.5",
                "findings=[edema,pleural_effusion]",
                "valid_fraction=0.3",
                "unit=study",
                "backbone.pretrained=false",
                *TINY,
            ],
        ),
    ],
)
def test_a_grid_ends_with_its_table_and_the_best(here, name, words, mrnet_root, chexpert_root, monkeypatch):
    """One of them by joblib, as on two GPUs."""
    root = chexpert_root if name == "uncertainty_grid" else mrnet_root
    side_by_side = name == "backbones" and find_spec("hydra_plugins.hydra_joblib_launcher")
    if side_by_side:
        end_workers()
        words = [*words, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
        monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "8,9")
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    code, said = here(f"sweep={name}", f"dataset.root={root}", *words)
    assert code == 0, said
    (folder,) = Path(f"outputs/{name}/multirun").iterdir()
    assert [path.name for path in sorted(folder.glob(".gpu*"))] == [".gpu0.lock", ".gpu1.lock"] * bool(side_by_side)
    assert ("2 jobs at a time on 2 GPUs: each on its own" in said) == bool(side_by_side)
    journal = Journal.read(folder)
    assert [job.state for job in journal.jobs] == ["finished"] * 2
    rows = pd.read_csv(folder / "comparison.csv")
    assert rows["overrides"].nunique() == 2
    assert set(rows["split"]) == {"valid", "test"}
    assert said.index("everything is in") < said.index(f"best: job {journal.best()[0].number}, valid/macro/auroc")


@pytest.mark.parametrize(
    ("words", "drawn", "expected"),
    [
        (["sweep=seeds", "plane=coronal"], {"seed": 3}, {"seed": 3, "split_seed": 0, "name": "seeds", "plane": "coronal"}),
        (
            [
                "sweep.method=tpe", "sweep.prune=true", "optimizer.lr=tag(log,interval(1e-6,1e-3))",
                "batch_size=int(interval(1,8))",
            ],
            {"optimizer.lr": 3.1e-05, "batch_size": 4},
            {"optimizer.lr": 3.1e-05, "batch_size": 4},
        ),
        (
            [
                "task=[acl,meniscus],[acl]", "gradient_clip=null,0.5", "image.rescale=true,false", "fold=1/3,2/3",
                "head.dropout=0.1,0.3",
            ],
            {"task": "[acl,meniscus]", "gradient_clip": "null", "image.rescale": "True", "fold": "2/3", "head.dropout": 0.3},
            {"task": ["acl", "meniscus"], "gradient_clip": None, "image.rescale": True, "fold": "2/3", "head.dropout": 0.3},
        ),
        (["+backbone.kwargs.drop=0.1,0.2", "readers='a b.csv','c,d.csv'"], {"+backbone.kwargs.drop": 0.2, "readers": "'c,d.csv'"},
         {"backbone.kwargs.drop": 0.2, "readers": "c,d.csv"}),
    ],
)  # fmt: skip
def test_the_agent_of_wandb_runs_the_command_as_written(here, words, drawn, expected, tmp_path):
    """Filled in as W&B's own agent does it, the command composes to the point that was drawn."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    code, said = here(*words, entry=sweep_yaml.main)
    assert code == 0, said
    content = yaml.safe_load((tmp_path / "sweep.yaml").read_text())
    for key, value in drawn.items():
        range_ = content["parameters"][key]
        assert value in range_["values"] if "values" in range_ else range_["min"] <= value <= range_["max"]
    filled = create_sweep_command_args({"args": {key: {"value": value} for key, value in drawn.items()}})
    fill = {"${env}": ["/usr/bin/env"], "${interpreter}": [sys.executable], "${args_no_hyphens}": filled["args_no_hyphens"]}
    command = [part for chunk in create_sweep_command(content["command"]) for part in fill.get(chunk, [chunk])]
    done = subprocess.run([*command, "--cfg", "job"], cwd=tmp_path, env={"PYTHONPATH": str(REPOSITORY)}, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    cfg = OmegaConf.create(done.stdout)
    for key, value in {**expected, "logger.wandb.offline": False}.items():
        found = OmegaConf.select(cfg, key)
        assert (OmegaConf.to_container(found) if OmegaConf.is_config(found) else found) == value, key
    tpe = "sweep.method=tpe" in words
    assert content["method"] == ("bayes" if tpe else "grid")
    assert content["metric"] == {"name": "valid/macro/auroc", "goal": "maximize"}
    assert content.get("early_terminate") == ({"type": "hyperband", "min_iter": 1} if tpe else None)
    code, said = here(*words, entry=sweep_yaml.main)
    assert (code, "sweep.yaml is there already" in said) == (2, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["seed=1"], "nothing varies"),
        (["sed=1,2"], "Did you mean seed"),
        (["optimizer.lr=interval(0,1)"], "an interval has no grid"),
        (["seed=1,2", "sweep.objective=test/macro/auroc", "sweep.objective_on_test=true"], "it is sent one of valid"),
        (["--config-dir=x", "seed=1,2"], "--config-dir=x: it takes the words of a sweep and no flags"),
    ],
)
def test_what_wandb_cannot_do_is_refused(here, words, said):
    code, text = here(*words, entry=sweep_yaml.main)
    assert code == 2
    assert said in text
