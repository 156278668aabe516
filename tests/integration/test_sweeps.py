"""Sweeps: grid, random, TPE, resuming, pruning, launchers, and what is said at the end."""

from __future__ import annotations

import gc
import json
import math
import os
import pickle
import re
import subprocess
import sys
import weakref
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY, end_workers, leave
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from xraylab.config.launch import launch
from xraylab.data.datamodule import reading_context
from xraylab.errors import Pruned, Stopped, UserError
from xraylab.sweeps.record import Journal, resumed_words
from xraylab.sweeps.search_space import search_space
from xraylab.system.processes import SINGLE_PROCESS
from xraylab.train import USAGE, pickled_for_child

LOCAL = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
SPACE = ["optimizer.lr=tag(log,interval(1e-5,1e-1))", "batch_size=1,4"]


def skill(cfg):
    """Best at lr=1e-3 and a batch of 4."""
    return 1 - abs(math.log10(cfg.optimizer.lr) + 3) / 4 - 0.1 * (cfg.batch_size == 1)


@pytest.fixture
def drawn(here, monkeypatch):
    """A sweep whose jobs only leave files: ``drawn(job, *words)``; ``job(cfg, directory)`` gives the value, or raises.

    It gives the exit code, what was printed, and the last sweep's folder.
    """
    monkeypatch.setattr("xraylab.training.experiment.Experiment.from_config", lambda *_, **__: None)  # no job has data

    def run(job, *words):
        def entry():
            def do(cfg):
                directory = Path(HydraConfig.get().runtime.output_dir)
                leave(directory, job(cfg, directory))

            launch("config", do, USAGE, resumed_words)

        alone = ["~hydra.callbacks.comparison"] if "-m" in words else []
        code, said = here(*words, *alone, entry=entry)
        folders = sorted(Path("outputs").glob("*/multirun/*"), key=lambda p: p.stat().st_mtime)
        return code, said, folders[-1] if folders else None

    return run


def states(folder):
    return [job.state for job in Journal.read(folder).jobs]


def trials(folder, **attributes):
    optuna = pytest.importorskip("optuna")
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{(folder / 'study.db').absolute()}")
    return [t for t in study.get_trials() if all(getattr(t, k) == v for k, v in attributes.items())]


@pytest.mark.slow
def test_points_are_drawn_from_the_space_and_tpe_learns_from_what_it_is_told(tmp_path):
    optuna = pytest.importorskip("optuna", reason="the extra sweeps is not installed")
    from xraylab.sweeps.optuna_study import Study

    words = [*SPACE, "head.hidden=[],[8]", "accumulate=range(1,9,2)", "max_epochs=tag(int,log,interval(1,64))", "seed=7"]
    space = search_space(OverridesParser.create().parse_overrides(words))
    worth = {}
    for method in ("tpe", "random"):
        study = Study(tmp_path / method, method, space, ["valid/macro/auroc"], 0, False)
        jobs = []
        for _ in range(26):
            job = study.ask(jobs)
            words = dict(word.split("=") for word in job.overrides)
            cfg = OmegaConf.from_dotlist([f"optimizer.lr={words['optimizer.lr']}", f"batch_size={words['batch_size']}"])
            job.state, job.scores = "finished", [skill(cfg)]
            jobs.append(job)
            study.tell(job, tmp_path)
        assert [t.user_attrs["job"] for t in trials(tmp_path / method)] == list(range(26))
        assert [[t.value] for t in trials(tmp_path / method)] == [job.scores for job in jobs]
        worth[method] = np.mean([job.scores[0] for job in jobs[12:]])
    assert worth["tpe"] > worth["random"] + 0.05
    drawn = pd.DataFrame([dict(word.split("=") for word in job.overrides) for job in jobs])  # random
    lr, epochs = np.log10(drawn["optimizer.lr"].astype(float)), np.log2(drawn["max_epochs"].astype(int))
    assert -5 <= lr.min() < -4 < -2 < lr.max() <= -1
    assert 0.3 < (lr < -3).mean() < 0.7, "evenly in the logarithm"
    assert 0.3 < (epochs < 3).mean() < 0.7
    assert {k: set(drawn[k]) for k in ("batch_size", "head.hidden", "accumulate", "seed")} == {
        "batch_size": {"1", "4"}, "head.hidden": {"[]", "[8]"}, "accumulate": {"1", "3", "5", "7"}, "seed": {"7"},
    }  # fmt: skip
    again = Study(tmp_path / "again", "random", space, ["valid/macro/auroc"], 0, True)
    first = [again.ask([]) for _ in range(1)]
    assert first[0].overrides == jobs[0].overrides, "by the seed"
    few = Study(tmp_path / "few", "random", {"seed": space["batch_size"]}, ["valid/loss"], 0, True)
    found = []
    while (job := few.ask(found)) is not None:
        found.append(job)
    assert {job.params["seed"] for job in found} == {"1", "4"}
    assert len(found) == 2, "no point twice"
    assert optuna.logging.get_verbosity() == optuna.logging.WARNING


@pytest.mark.parametrize("method", [pytest.param("grid", marks=pytest.mark.slow), "tpe"])
def test_a_sweep_that_was_cut_off_goes_on_as_one_that_was_not(drawn, method):
    """Ctrl-C, a crash, a failure: what is finished is kept, the rest is done, and no point twice."""
    if method != "grid":
        pytest.importorskip("optuna", reason="the extra sweeps is not installed")
    space = ["optimizer.lr=1e-5,1e-4,1e-3,1e-2,1e-1,1,2"] if method == "grid" else SPACE
    words = ["-m", f"sweep.method={method}", "sweep.trials=7", *space]
    _, _, whole = drawn(lambda cfg, _: skill(cfg), *words, "hydra.sweep.dir=outputs/x/multirun/whole")
    ran = []

    def breaks(cfg, directory):
        number = int(directory.name)
        ran.append(number)
        if number == 2:
            raise UserError("it does not fit")
        if number == 3:
            raise RuntimeError("it broke")
        if number == 5:
            (directory / "checkpoints").mkdir()
            (directory / "checkpoints" / "last.ckpt").touch()
            raise Stopped("stopped before the end")
        return skill(cfg)

    code, said, folder = drawn(breaks, *words, "hydra.sweep.dir=outputs/x/multirun/cut")
    assert code == 75
    assert f"Go on with:\n  python -m xraylab.train sweep.resume={folder}" in said
    assert ran == [0, 1, 2, 3, 4, 5]
    assert "Error executing job" not in said, "of a job that was stopped"
    assert states(folder)[:6] == ["finished", "finished", "failed", "failed", "finished", "stopped"]
    assert [Journal.read(folder).jobs[k].reason for k in (2, 3)] == ["it does not fit", "RuntimeError: it broke"]
    assert "RuntimeError: it broke" in (folder / "3" / "xraylab.log").read_text()
    journal = Journal.read(folder)
    journal.jobs[4].state = "running"  # as a process leaves it that was killed before it could say that job 4 was done
    journal.write()
    (folder / "2" / "left.txt").touch()
    ran.clear()
    kept = []

    def goes_on(cfg, directory):
        ran.append(int(directory.name))
        kept.append((directory / "checkpoints" / "last.ckpt").exists())
        return skill(cfg)

    if method == "grid":
        holds = "import sys\nfrom xraylab.run import Path, claimed\nwith claimed(Path(sys.argv[1])): print(flush=True), input()"
        other = subprocess.Popen([sys.executable, "-c", holds, folder / "5"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                 env={**os.environ, "PYTHONPATH": str(REPOSITORY)})  # fmt: skip
        other.stdout.readline()
        code, said, _ = drawn(goes_on, f"sweep.resume={folder}")
        other.communicate(b"\n")
        assert code == 2
        assert f"{folder / '5'}: process {other.pid} on" in said
    code, said, folder = drawn(goes_on, f"sweep.resume={folder}")
    assert code == 0, said
    assert ran == [2, 3, 5, 6]
    assert kept == [False, False, True, False], "where it was cut off it goes on; what failed begins anew"
    assert not (folder / "2" / "left.txt").exists()
    a, b = Journal.read(whole), Journal.read(folder)
    assert [job.scores for job in a.jobs] == [job.scores for job in b.jobs]
    if method != "grid":
        complete = trials(folder, state=trials(folder)[0].state)
        assert sorted(t.user_attrs["job"] for t in complete) == list(range(7))
        assert {t.state.name for t in trials(folder)} == {"COMPLETE", "FAIL"}
    journal = Journal.read(folder)
    for job in journal.jobs:  # as after a launcher was left whose jobs went on to their ends
        job.state, job.scores = "stopped", []
    journal.write()
    code, said, _ = drawn(goes_on, f"sweep.resume={folder}")
    assert code == 0, said
    assert Journal.read(folder).jobs == b.jobs

    assert len(ran) == 4, "nothing is left to do"
    if method != "grid":
        drawn(goes_on, f"sweep.resume={folder}", "sweep.trials=8")
        assert ran[4:] == [7]
    code, said, _ = drawn(goes_on, f"sweep.resume={folder}", "optimizer.weight_decay=1")
    assert code == 2
    assert "optimizer.weight_decay cannot change in a sweep that goes on. What can: sweep.trials, fail_fast" in said
    code, said, _ = drawn(goes_on, *words, f"hydra.sweep.dir={folder}")
    assert code == 2
    assert f"{folder} holds a sweep already. Go on with it by sweep.resume={folder}" in said
    assert "it is not the directory of a sweep" in drawn(goes_on, "sweep.resume=nowhere")[1]
    (folder / "sweep.json").write_text("{")
    code, said, _ = drawn(goes_on, f"sweep.resume={folder}")
    assert code == 2
    assert "no sweep.json that can be read" in said


def test_a_job_that_failed_leaves_the_next_all_memory(drawn):
    class Weights:
        pass

    left = []

    def job(cfg, directory):
        if not left:
            held = Weights()
            left.append(weakref.ref(held))
            raise UserError("the GPU's memory is too small")
        gc.collect()
        assert left[0]() is None
        return 0.5

    code, said, folder = drawn(job, "-m", "seed=0,1")
    assert (code, states(folder)) == (2, ["failed", "finished"]), said


@pytest.mark.slow
def test_an_undefined_objective_is_recorded_and_fail_fast_stops_at_once(drawn):
    def job(cfg, directory):
        if cfg.seed == 1:
            raise RuntimeError("out of memory")
        return None if cfg.seed == 0 else 0.1 * cfg.seed

    code, _, folder = drawn(job, "-m", "seed=0,1,2,3")
    assert code == 1
    assert states(folder) == ["finished", "failed", "finished", "finished"]
    journal = Journal.read(folder)
    assert journal.jobs[0].scores == [None]
    assert [j.number for j in journal.best()] == [3]
    text = journal.closing()
    assert "best: job 3, valid/macro/auroc 0.3000. Repeat it with:\n  python -m xraylab.train seed=3" in text
    assert "job 0: valid/macro/auroc is undefined: no positive study" in text
    assert f"job 1 failed: RuntimeError: out of memory\nRepeat what failed with:\n  {journal.go_on}" in text
    code, _, folder = drawn(job, "-m", "seed=0,1,2,3", "fail_fast=true", "hydra.sweep.dir=outputs/x/multirun/fast")
    assert code == 1
    assert states(folder) == ["finished", "failed", "waiting", "waiting"]
    assert "not begun: 2, 3" in Journal.read(folder).closing()
    code, _, folder = drawn(lambda *_: 0.5, f"sweep.resume={folder}")
    assert (code, states(folder)) == (0, ["finished"] * 4)


def test_several_objectives_end_with_all_that_none_beats(drawn):
    """Loss is the AUROC here, and minimised: no job beats another. Beside seed, which is worth nothing, some are beaten."""
    pytest.importorskip("optuna", reason="the extra sweeps is not installed")
    both = ["sweep.objective=[valid/macro/auroc,valid/loss]", "sweep.method=tpe", "sweep.trials=5"]
    _, said, folder = drawn(lambda cfg, _: skill(cfg), "-m", *both, *SPACE)
    assert len(Journal.read(folder).best()) == 5
    assert all(len(t.values) == 2 for t in trials(folder))
    journal = Journal.read(folder)
    for job, values in zip(journal.jobs, [(0.5, 1.0), (0.6, 1.0), (0.6, 0.9), (0.9, 2.0), (0.1, 0.95)], strict=True):
        job.scores = list(values)
    assert [job.number for job in journal.best()] == [2, 3]
    code, said, _ = drawn(lambda cfg, _: 0.0, "-m", *both, *SPACE, "sweep.prune=true")
    assert code == 2
    assert "jobs are given up by one objective of valid" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sweep.objective=test/macro/auroc"], "Choose on valid (valid/macro/auroc), or say sweep.objective_on_test=true."),
        (["sweep.objective=valid/macro/auc"], "there is no such metric. Did you mean valid/macro/auroc"),
        (["sweep.method=bayes"], "sweep.method=bayes: it should be 'grid', 'random' or 'tpe'"),
        (["sweep.trails=3"], "Did you mean sweep.trials"),
        (["optimizer.lrr=interval(1,2)", "sweep.method=random"], "Did you mean optimizer.lr"),
        (["sweep.method=tpe"], "hydra.sweeper.max_batch_size=4"),
        (["optimizer.lr=interval(1,2)"], "an interval has no grid"),
        (["optimizer.lr=tag(log,interval(0,2))", "sweep.method=random"], "low > 0 for log"),
        (["resume=auto"], "resume: a run goes on by a command of its own, without -m; a sweep by sweep.resume="),
        (["resume=a,b"], "resume: a run goes on by a command of its own"),
        (["batch_size=0"], "batch_size=0: it should be greater than or equal to 1"),
        (["batch_size=0", "seed=0", "max_epochs=1"], "batch_size=0"),
        (["seed=0", "sweep.prune=true"], "sweep.prune=true: nothing varies. Give values, as seed=0,1,2"),
        (["sweep.prune=true", "accelerator.devices=2"], "a job of several processes cannot be given up"),
        ([*LOCAL, "task=acll"], "Did you mean acl?"),
        ([*LOCAL[:1], "hydra.launcher.n_jobs=0"], "n_jobs=0: it is how many jobs run at a time"),
        ([*LOCAL[:1], "hydra.launcher.n_job=2"], "there is no key hydra.launcher.n_job. Those of Hydra: python -m xraylab.train "
         "hydra/launcher=joblib --cfg hydra"),
        ([*LOCAL, "dataset.root=/nowhere"], "found at /nowhere"),
        ([*LOCAL, "accelerator=gpu"], "there is no GPU that torch"),
        (["hydra/launcher=submitit_local", "accelerator=gpu"], "there is no GPU that torch"),
        (["hydra/launcher=submitit_slurm"], "there is no SLURM on this machine"),
    ],
)  # fmt: skip
def test_what_a_sweep_cannot_do_is_refused_before_it_begins(drawn, words, said, monkeypatch):
    """Once, whatever the launcher."""
    if words == ["sweep.method=tpe"]:
        words = [*words, *LOCAL]
    if any("launcher" in word for word in words):
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the extra sweeps is not installed")
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra sweeps is not installed")
    monkeypatch.setattr("shutil.which", lambda *_: None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, text, folder = drawn(lambda *_: pytest.fail("a job ran"), "-m", "seed=0,1", *words)
    assert (code, folder) == (2, None)
    assert text.count(said) == 1


def test_a_test_objective_is_taken_where_it_is_forced_and_says_so(drawn):
    words = ["sweep.objective=test/macro/auroc", "sweep.objective_on_test=true"]
    code, _, folder = drawn(lambda cfg, _: 0.1 * cfg.seed, "-m", "seed=1,2", *words)
    assert code == 0
    said = Journal.read(folder).closing()
    assert "best: job 1, test/macro/auroc 0.2000 (chosen on test: its results there are too good)" in said


def test_a_job_is_given_up_as_optunas_median_pruner_would(tmp_path):
    """Random courses of nine jobs, some short, some with NaN: the same jobs end at the same epochs."""
    optuna = pytest.importorskip("optuna", reason="the extra sweeps is not installed")
    from types import SimpleNamespace

    from xraylab.sweeps.median_pruning import MedianPruning

    rng = np.random.default_rng(0)
    for direction, objective in (("maximize", "valid/macro/auroc"), ("minimize", "valid/loss")):
        study = optuna.create_study(direction=direction, pruner=optuna.pruners.MedianPruner(3, 2))
        ended = []
        for number in range(9):
            folder = tmp_path / direction / str(number)
            leave(folder, 0.5)
            (folder / "environment.json").write_text(json.dumps({"finished": False}))
            callback = MedianPruning(folder, objective, jobs=3, epochs=2)
            trial, course = study.ask(), []
            level = rng.random()
            for epoch in range(rng.integers(3, 7)):
                course.append(float(np.nan if rng.random() < 0.1 else level + 0.3 * rng.random()))
                leave(folder, 0.5, course, finished=False)
                trial.report(course[-1], epoch)
                expected = trial.should_prune()
                now = SimpleNamespace(current_epoch=epoch, is_global_zero=True, max_epochs=9, should_stop=False)
                said = f"given up after epoch {epoch + 1}: {objective}"
                with pytest.raises(Pruned, match=said) if expected else nullcontext():
                    callback.on_train_epoch_end(now, None)
                if expected:
                    for end in ({"max_epochs": epoch + 1}, {"should_stop": True}):
                        callback.on_train_epoch_end(SimpleNamespace(**{**vars(now), **end}), None)  # it is finished
                    break
            ended.append(expected)
            study.tell(trial, None if expected else 0.5, state=optuna.trial.TrialState.PRUNED if expected else None)
            if not expected:
                (folder / "environment.json").write_text(json.dumps({"finished": True}))
        assert 1 <= sum(ended) <= 7


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "ray"])
def test_jobs_run_through_launchers(drawn, launcher, monkeypatch):
    """Two at a time in processes of their own; a failure there is recorded here."""
    package = f"hydra_{launcher.partition('_')[0]}_launcher"
    extra = "ray" if launcher == "ray" else "sweeps"
    pytest.importorskip(f"hydra_plugins.{package}", reason=f"the extra {extra} is not installed")
    if launcher == "joblib":
        end_workers()
    options = {"joblib": ["hydra.launcher.n_jobs=2"], "submitit_local": ["hydra.launcher.timeout_min=5"], "ray": []}[launcher]

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, [Path(__file__).parent, REPOSITORY / "tests", REPOSITORY])))

    def job(cfg, directory):
        if cfg.optimizer.lr > 1e-2:
            raise UserError(f"too much, in process {os.getpid()}")
        loader = DataLoader([1, 2], num_workers=1, multiprocessing_context=reading_context(1))
        assert [int(x) for x in loader] == [1, 2], "with readers of its own"
        assert pickle.loads(pickled_for_child(cfg, directory, [], SINGLE_PROCESS))[1][2:] == (directory, [], SINGLE_PROCESS), (
            "and processes"
        )
        return os.getpid()

    words = ["optimizer.lr=1e-4,1e-1"]
    code, said, folder = drawn(job, "-m", f"hydra/launcher={launcher}", *options, *words)
    assert code == 2, said
    assert states(folder) == ["finished", "failed"]
    journal = Journal.read(folder)
    assert re.search(r"^too much, in process \d+$", journal.jobs[1].reason)
    assert os.getpid() not in [job.scores for job in journal.jobs if job.scores]
