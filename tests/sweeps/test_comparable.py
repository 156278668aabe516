"""Jobs are compared by an objective only where it is measured on the same."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml

from xraylab import sweep_yaml
from xraylab.config.dataset import resolved
from xraylab.config.settings import sweep_of
from xraylab.data.study_table import StudyTable
from xraylab.errors import Pruned, UserError
from xraylab.evaluation.ensembles.ensemble import Ensemble
from xraylab.evaluation.objective import of_objective, said_of
from xraylab.evaluation.predictions import Scoring
from xraylab.models.losses.cross_entropy import CrossEntropy, TwoSoftmax, WeightedBCE
from xraylab.models.losses.focal import Focal
from xraylab.sweeps.comparable import deciding_keys
from xraylab.sweeps.median_pruning import MedianPruning
from xraylab.sweeps.record import Journal, SweepJob
from xraylab.system.paths import conf_dir
from xraylab.training.experiment import to_be_measured
from xraylab.training.measured import measured

MACRO, LOSS = "valid/macro/auroc", "valid/loss"


def studies(n=40, swap=(), without=(), labels=("a", "b")):
    """Half in train, half in valid."""
    frame = pd.DataFrame({"id": [f"s{i}" for i in range(n)], "patient": "", "group": [f"g{i % 2}" for i in range(n)]})
    frame["split"] = np.where(np.arange(n) < n // 2, "train", "valid")
    frame["images"] = [(f"{i}.png",) for i in range(n)]
    frame["a"], frame["b"] = (np.arange(n) % 3 == 0) * 1.0, np.where(np.arange(n) % 7 == 0, -1.0, np.arange(n) // 2 % 2)
    for i in swap:
        frame.loc[i, "a"] = 1 - frame.loc[i, "a"]
    frame = frame.drop(index=list(without)).reset_index(drop=True)
    return StudyTable(frame=frame, labels=tuple(labels), source=None, name="x", synthetic=True, views=True, parts=())


def record(table, loss=None, blank="ignore", uncertain="ignore", unit="study"):
    loss = WeightedBCE("label") if loss is None else loss
    loss.build(len(table.labels), len(table.train_groups))
    rows = table.part("train").index
    loss.fit(table.label_values(rows), table.labels, table.group_numbers()[rows], "studies", table.train_groups)
    return {"measured": measured(table, loss, Scoring(blank, uncertain), unit)}


def on(objective, *arguments, **options):
    return of_objective(record(*arguments, **options), objective)


def test_what_an_objective_is_measured_on_is_its_studies_their_labels_and_their_weights():
    plain = studies()
    shuffled = replace(plain, frame=plain.frame.sample(frac=1, random_state=0).reset_index(drop=True))
    assert record(shuffled) == record(plain), "whatever the order of rows"
    for objective in (MACRO, LOSS, "valid/a/auroc", "valid/b/kappa"):
        assert on(objective, plain) is not None
    assert on(MACRO, studies(swap=[30])) != on(MACRO, plain), "another truth"
    assert on("valid/b/auroc", studies(swap=[30])) == on("valid/b/auroc", plain), "of another finding"
    assert on("valid/a/auroc", studies(without=[30])) != on("valid/a/auroc", plain), "a study less"
    assert on(MACRO, plain, uncertain="positive") != on(MACRO, plain)
    assert on(MACRO, studies(labels=["a"])) != on(MACRO, plain), "a finding less"
    assert on("valid/a/auroc", studies(labels=["a"])) == on("valid/a/auroc", plain)
    assert on(MACRO, studies(swap=[3])) == on(MACRO, plain), "train is not what it is measured on"
    assert on(LOSS, studies(swap=[3])) != on(LOSS, plain), "but what the loss is weighed by"


def test_losses_are_alike_where_they_score_and_weigh_alike():
    plain = studies()
    alike = [TwoSoftmax("none"), Focal(balance="none", u=1.0), WeightedBCE("none", label_smoothing=0.1), WeightedBCE("none")]
    assert len({on(LOSS, plain, loss) for loss in alike}) == 1
    kinds = [WeightedBCE(b) for b in ("none", "label", "keras", "inverse", "group")]
    assert len({on(LOSS, plain, loss) for loss in kinds}) == len(kinds)
    assert len({on(MACRO, plain, loss) for loss in kinds}) == 1
    assert on(LOSS, plain, unit="image") != on(LOSS, plain)
    exclusive = replace(plain, frame=plain.frame.assign(b=1 - plain.frame["a"]))
    assert on(LOSS, exclusive, CrossEntropy("none")) != on(LOSS, exclusive, WeightedBCE("none"))


def test_the_keys_that_jobs_differ_in_are_named():
    grid = [{"lr": lr, "loss.balance": b, "seed": s} for lr, b, s in itertools.product("12", ["none", "label"], "01")]
    assert deciding_keys(grid, [job["loss.balance"] for job in grid]) == ["loss.balance"]
    assert deciding_keys(grid, [job["loss.balance"] + job["seed"] for job in grid]) == ["lr", "loss.balance", "seed"]
    assert deciding_keys([{"seed": "0", "x": "1"}, {"seed": "1", "x": "1"}], [0, 1]) == ["seed"]
    assert deciding_keys([{"x": "1"}, {"x": "1"}], [0, 1]) == []


def journal(folder, objective, balances, scores, of=None):
    jobs = [
        SweepJob(k, ["x=1", f"loss.balance={b}", f"seed={k}"], state="finished", scores=[s], measured=[(of or {}).get(b, b)])
        for k, (b, s) in enumerate(zip(balances, scores, strict=True))
    ]
    return Journal(folder, [], "grid", [objective], jobs)


def test_a_sweep_names_no_best_job_by_what_is_not_measured_alike(tmp_path):
    same = {"none": "m/1", "label": "m/1"}
    found = journal(tmp_path, LOSS, ["none", "label"], [0.6, 0.5], same)
    assert [job.number for job in found.best()] == [1]
    assert found.closing().startswith("best: job 1, valid/loss 0.5000")
    assert found.incomparable() is None
    weighed = {"none": "m/1", "label": "m/2", "keras": "m/3"}
    found = journal(tmp_path, LOSS, ["none", "label", "none", "keras"], [0.6, 0.5, 0.4, 0.1], weighed)
    assert found.best() == []
    first, second, repeat = found.closing().splitlines()
    assert first.startswith(
        "no job is the best of all: valid/loss is not comparable: jobs differ in loss.balance, so its labels weigh"
    )
    assert "sweep.objective=" in first
    assert second.startswith("best of jobs 0, 2, which can be compared: job 2, valid/loss 0.4000. Repeat it with:")
    assert "loss.balance=none seed=2" in repeat
    found.write()
    assert not any(job["best"] for job in json.loads((tmp_path / "sweep.json").read_text(encoding="utf-8"))["jobs"])
    assert Journal.read(tmp_path).incomparable() == found.incomparable()
    other = journal(tmp_path, MACRO, ["none", "label"], [0.6, 0.5])
    assert "jobs differ in loss.balance, seed, so it is of other studies or labels" in other.incomparable()
    of_before = journal(tmp_path, MACRO, ["none", "label"], [0.6, 0.5], {"none": None})
    assert "was not recorded in a run of before" in of_before.incomparable()


def leave(folder, name, macro, loss, values, finished=True):
    (folder / name).mkdir(parents=True)
    content = {"finished": finished, "measured": {"valid": {"a": macro}, "loss": loss}}
    (folder / name / "environment.json").write_text(json.dumps(content))
    rows = "".join(f"{k},{v}\n" for k, v in enumerate(values))
    (folder / name / "history.csv").write_text("epoch,valid/loss\n" + rows)
    (folder / name / "config.yaml").write_text("x: 1\n")
    return folder / name


def test_jobs_are_given_up_and_ensembles_chosen_only_among_those_measured_alike(tmp_path):
    class Trainer:
        current_epoch, max_epochs, should_stop, is_global_zero = 1, 9, False, True

    runs = [leave(tmp_path, str(k), "m", "other" if k < 5 else "mine", [0.1, 0.1]) for k in range(7)]
    mine = leave(tmp_path, "7", "m", "mine", [0.9, 0.9], finished=False)
    MedianPruning(mine, LOSS, 3, 1).on_train_epoch_end(Trainer(), None)
    with pytest.raises(Pruned, match="median of 2 finished jobs"):
        MedianPruning(mine, LOSS, 2, 1).on_train_epoch_end(Trainer(), None)
    assert len(Ensemble(2, best=2).choose(runs[:5])) == 2
    with pytest.raises(UserError, match="valid/loss of 0 and 5 is not comparable: its labels weigh otherwise"):
        Ensemble(2, best=2).choose(runs)
    assert said_of(mine) is None, "in no sweep"
    (tmp_path / "sweep.json").write_text(json.dumps({"objectives": [LOSS]}))
    assert said_of(mine).startswith("valid/loss is not comparable with that of jobs 0, 1, 2, 3, 4: its labels weigh otherwise")


@pytest.mark.parametrize("words", [["loss.balance=none,label"], ["seed=0,1", "sweep.objective=valid/macro/auroc"]])
def test_what_is_drawn_follows_no_objective_that_is_not_measured_alike(here, mrnet_root, words):
    pytest.importorskip("optuna", reason="the extra sweeps is not installed")
    key = words[0].partition("=")[0]
    data = [f"dataset.root={mrnet_root}", "monitor=valid/loss", "optimizer.lr=interval(1e-5,1e-3)", "sweep.trials=4"]
    code, said = here("-m", "sweep.method=tpe", *words, *data, "backbone.pretrained=false")
    assert code == 2
    assert "sweep.method=tpe: valid/" in said
    assert f"is not comparable over {key}: " in said
    assert "epoch 1/" not in said
    told = here("sweep.method=tpe", *words, *data, "backbone.pretrained=false", entry=sweep_yaml.main)
    assert (told[0], f"is not comparable over {key}: " in told[1]) == (2, True)


SHIPPED = {  # what its data is; which of its jobs can be compared by its objective, by a key; None: all
    "mura_cnn_ladder": ("mura", None),
    "mura_regularisation": ("mura", None),
    "mura_transfer": ("mura", None),
    "mura_ensemble": ("mura", None),
    "mura_body_parts": ("mura", "body_part"),
    "mrnet_all": ("mrnet", "task"),
    "mrnet_planes": ("mrnet", None),
    "chest_eight": ("mimic", "view"),
    "uncertainty_grid": ("chexpert", None),
    "uncertainty_policies": ("chexpert", None),
    "seeds": ("mrnet", None),
    "backbones": ("mrnet", None),
    "learning_rate_batch_augmentation": ("mrnet", None),
}


def test_every_sweep_is_among_those_below():
    assert set(SHIPPED) == {p.stem for p in (conf_dir() / "sweep").glob("*.yaml")} - {"none"}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_jobs_of_every_sweep_can_be_compared_by_its_objective(name, compose, request, mrnet_root):
    """All, or those of one value of the key that says so; of each key that may matter, the first value and the last."""
    data, key = SHIPPED[name]
    root = request.getfixturevalue(f"{data}_root")
    given = yaml.safe_load((conf_dir() / "sweep" / f"{name}.yaml").read_text(encoding="utf-8"))["hydra"]["sweeper"]["params"]
    values = {k: str(v).split(",") for k, v in given.items() if k.split(".")[0] not in ("backbone", "augmentation", "optimizer")}
    first = {k: of[0] for k, of in values.items()}
    points = [first, *({**first, k: of[-1]} for k, of in values.items() if len(of) > 1)]
    found = {}
    for words in ([f"{k}={v}" for k, v in point.items()] for point in points):
        cfg = compose(f"sweep={name}", f"dataset.root={root}", *words)
        objective = sweep_of(dict(cfg.sweep)).objective or cfg.monitor
        value = next((w for w in words if w.startswith(f"{key}=")), "")
        found.setdefault(value, set()).add(of_objective({"measured": to_be_measured(resolved(cfg, words))}, objective))
    assert all(len(of) == 1 for of in found.values()), found
    assert len(set.union(*found.values())) == len(found)
    if name == "mura_cnn_ladder":
        assert objective == MACRO
