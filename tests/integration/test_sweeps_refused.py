"""What a sweep refuses, and what it says of jobs that fail."""

from __future__ import annotations

import logging
import shlex
import sqlite3
from pathlib import Path

import pytest
from test_sweeps import SPACE, skill, states
from test_sweeps import drawn as drawn

from xraylab.errors import Stopped
from xraylab.sweeps.record import Journal
from xraylab.system.command_line import word


def test_a_mistake_of_some_jobs_is_theirs_and_an_objective_that_is_not_there_a_failure(drawn):
    code, _, folder = drawn(lambda *_: 0.5, "batch_size=0,1", "-m", "seed=1")  # flags may stand anywhere
    assert (code, states(folder)) == (0, ["finished"] * 2), "the jobs here look at nothing"
    words = ["-m", "seed=0,1", "sweep.objective=valid/nonsense/auroc"]
    code, _, folder = drawn(lambda *_: 0.5, *words, "hydra.sweep.dir=outputs/x/multirun/wrong")
    assert (code, states(folder)) == (2, ["failed"] * 2)
    assert "there is no label nonsense. There are: macro." in Journal.read(folder).jobs[1].reason
    assert drawn(lambda *_: 0.5, f"sweep.resume={folder}")[0] == 2, "it can be resumed"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sweep=mrnet_planes", "task=acll"], "Did you mean acl?"),
        (["-m", "seed=0,1", "sweep.objective=valid/nonsense/auroc"], "Did you mean valid/"),
        (["-m", "seed=0,1", "sweep.objective=test/acl/auroc", "sweep.objective_on_test=true", "selection=official"],
         "there is no test (selection=official)"),
        (["sweep.method=tpe"], "sweep.method=tpe is of a sweep, and this is one run: add -m and values"),
        (["seed=1", "hydra/launcher=basic"], "hydra/launcher=basic is of a sweep"),
    ],
)  # fmt: skip
def test_a_mistake_of_all_jobs_is_said_once(here, words, said, mrnet_root):
    code, text = here(*words, f"dataset.root={mrnet_root}", "backbone=cnn", "image.size=64", "cache=off")
    assert (code, text.count(said)) == (2, 1), text
    assert not Path("outputs").exists()


def test_packing_before_the_first_job_is_seen_and_can_be_stopped(drawn, monkeypatch):
    def packs(*_, **__):
        logging.getLogger("xraylab.training.experiment").warning("what the job says itself")
        logging.getLogger("xraylab.data.cache.build").info("packing: 10 of 99 images")
        raise Stopped("stopped; what is packed so far is kept")

    monkeypatch.setattr("xraylab.training.experiment.Experiment.from_config", packs)
    code, said, folder = drawn(lambda *_: 0.5, "-m", "seed=0,1")
    assert (code, folder) == (75, None), said
    assert "packing: 10 of 99" in said
    assert "what is packed so far is kept" in said
    assert "what the job says itself" not in said


@pytest.mark.slow
def test_a_locked_or_damaged_study_is_said_and_loses_no_job(drawn, monkeypatch):
    optuna = pytest.importorskip("optuna")
    monkeypatch.setattr("xraylab.sweeps.optuna_study.PATIENCE", 0.1)
    words = ["-m", *SPACE, "sweep.method=random", "sweep.trials=4", word("hydra.sweep.dir", "a? (1)")]
    folder = Path("a? (1)")
    held = []

    def job(cfg, directory):
        if directory.name == "1" and not held:
            held.append(sqlite3.connect(folder / "study.db", isolation_level=None))
            held[0].execute("BEGIN EXCLUSIVE")
        return skill(cfg)

    code, said, _ = drawn(job, *words)
    assert code == 2
    assert "study.db: database is locked. another process holds it".lower() in said.lower()
    assert "No job is lost" in said
    assert states(folder) == ["finished", "finished"], "the job that ran meanwhile is not lost"
    held[0].execute("ROLLBACK")
    held[0].close()
    go_on = shlex.split(said.rstrip().splitlines()[-1])[3:]
    assert go_on == [word("sweep.resume", folder)]
    (folder / "study.db").write_bytes(b"no database" * 1000)
    code, said, _ = drawn(job, *go_on)
    assert code == 2
    assert "It is damaged. Delete it" in said
    (folder / "study.db").unlink()
    code, said, _ = drawn(job, *go_on)
    assert code == 0, said
    assert states(folder) == ["finished"] * 4
    known = optuna.load_study(study_name="sweep", storage=optuna.storages.RDBStorage(
        "sqlite:///study.db", {"creator": lambda: sqlite3.connect(folder / "study.db")}
    )).get_trials(states=(optuna.trial.TrialState.COMPLETE,))  # fmt: skip
    assert sorted(t.user_attrs["job"] for t in known) == [0, 1, 2, 3]
