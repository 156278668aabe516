"""Dashboards: what they get, read back from what they wrote, and that they never stop a run."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import compose_config, run_job
from matplotlib.image import imread
from omegaconf import OmegaConf

from xraylab.config.resume import resumed_config
from xraylab.errors import UserError
from xraylab.sweeps.comparison import Comparison
from xraylab.train import train
from xraylab.training.loggers.record import group_of
from xraylab.training.loggers.wandb import Wandb, finish

QUICK = [
    "backbone=resnet18", "backbone.pretrained=false", "+backbone.kwargs.channels=[8,8,16,16]", "image.size=32", "bootstrap=0",
    "num_workers=0", "precision=32", "max_epochs=2", "batch_size=4", "log_every=2", "optimizer.lr=1e-3", "early_stopping=null",
]  # fmt: skip


def records(folder: Path, kind: str = "offline") -> list[list[dict]]:
    """The records of every W&B run under a folder, oldest first, as W&B's own reader gives them."""
    out = []
    for path in sorted(folder.glob(f"wandb/{kind}-run-*/run-*.wandb")):
        words = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
        lines = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120).stdout.splitlines()
        out.append([json.loads(line) for line in lines])
    return out


def of(record: list[dict], kind: str) -> list[dict]:
    return [r[kind] for r in record if r["type"] == kind]


def history(record: list[dict]) -> list[dict]:
    return [h["item"] for h in of(record, "history")]


def summary(record: list[dict]) -> dict:
    """The last value of every key."""
    out: dict = {}
    for s in of(record, "summary"):
        out |= s["update"]
    return out


def contents(artifact: dict) -> dict[str, str]:
    """Path in an artifact -> MD5, in W&B's base 64."""
    return {c["path"]: c["digest"] for c in artifact["manifest"]["contents"]}


def md5(path: Path) -> str:
    return base64.b64encode(hashlib.md5(path.read_bytes()).digest()).decode()


def named(record: list[dict], name: str) -> dict:
    (found,) = [a for a in of(record, "artifact") if a["name"] == name]
    return found


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, mrnet_root):
    """A multirun of two jobs that were logged, the second of them stopped after an epoch and resumed."""
    folder = tmp_path_factory.mktemp("logged") / "outputs" / "mrnet" / "multirun" / "2026-01-31_12-00-00"
    outside = {"XRAYLAB_CACHE": str(tmp_path_factory.getbasetemp() / "cache"), "WANDB_MODE": "offline"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in outside.items():
            patch.setenv(name, value)
        _train_two(folder, mrnet_root)
    return folder


def _train_two(folder, mrnet_root):
    for seed in ("0", "1"):
        run = folder / seed
        run.mkdir(parents=True)
        words = [*QUICK, f"dataset.root={mrnet_root}", f"seed={seed}", "logger=wandb", "logger.wandb.tags=[mine]"]
        if seed == "1":
            train(compose_config(*words, "max_epochs=1"), run, words)
            words = [f"resume={run}", "max_epochs=2"]
            train(resumed_config(str(run), words), run, words)
        else:
            train(compose_config(*words), run, words)


def test_tensorboard_gets_losses_metrics_rates_curves_and_cases(train_here, tmp_path, mrnet_root):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train_here(tmp_path / "run", *QUICK, f"dataset.root={mrnet_root}", "logger=tensorboard", report=True)
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train/loss", "valid/loss", "valid/acl/auroc", "lr", "train/running_loss", "studies_per_s"} <= tags
    assert [e.step for e in events.Scalars("train/running_loss")] == [2, 4, 6, 8, 10, 12, 14, 16]
    written = pd.read_csv(run / "history.csv")
    for key in ("train/loss", "valid/loss", "valid/acl/auroc", "studies_per_s"):
        found = [e for e in events.Scalars(key) if e.step in set(written["step"])]
        np.testing.assert_allclose([e.value for e in found], written[key], rtol=1e-6, err_msg=key)
        assert [e.step for e in found] == written["step"].tolist(), key
    assert len(events.Scalars("valid/loss")) == 2, "at no other step"
    # after the evaluation
    kinds = ("roc", "pr", "confusion", "calibration")
    assert set(events.Tags()["images"]) == {f"{s}/{k}" for s in ("valid", "test") for k in kinds} | {"test/cases"}
    height, width, _ = imread(run / "figures" / "test_roc.png").shape
    (picture,) = events.Images("test/roc")
    assert (picture.height, picture.width) == (height, width)
    evaluation = json.loads((run / "evaluation.json").read_text())
    (sent,) = events.Scalars("test/macro/auroc")
    assert sent.value == pytest.approx(evaluation["splits"]["test"]["macro"]["auroc"]["value"])
    assert sent.step == picture.step == evaluation["checkpoint"]["step"]


def test_wandb_records_a_run_whole_without_a_network(sweep):
    run = sweep / "0"
    (record,) = records(run)
    (about,) = of(record, "run")
    assert (about["project"], about["run_group"], about["job_type"]) == ("xraylab", sweep.name, "train")
    assert about["display_name"] == f"{sweep.name}/0"
    assert about["run_id"] == json.loads((run / "wandb.json").read_text())["id"]
    assert set(about["tags"]) == {"mine", "synthetic", "MRNet-v1.0", "resnet18"}
    assert of(record, "exit")[0]["exit_code"] == 0
    config: dict = {}
    for update in of(record, "config"):
        config |= update["update"]
    assert (config["data"], config["batch_size"], config["optimizer"]["lr"]) == ("synthetic sample", 4, 0.001)

    rows, written = history(record), pd.read_csv(run / "history.csv")
    assert [r["_step"] for r in rows] == sorted({r["_step"] for r in rows}), "a row a step"
    assert all(r["_step"] == r["trainer/global_step"] for r in rows)
    assert [r["trainer/global_step"] for r in rows if "train/running_loss" in r] == [2, 4, 6, 8, 10, 12, 14, 16]
    assert all("lr" in r for r in rows)
    for key in ("train/loss", "valid/loss", "valid/acl/auroc", "valid/macro/kappa", "lr", "studies_per_s", "images_per_s"):
        at_ends = [r[key] for r in rows if "train/loss" in r]
        np.testing.assert_allclose(at_ends, written[key], rtol=1e-6, err_msg=key)
    assert [r["trainer/global_step"] for r in rows if "train/loss" in r] == written["step"].tolist()

    evaluation, found = json.loads((run / "evaluation.json").read_text()), summary(record)
    assert found["valid/loss"]["min"] == pytest.approx(written["valid/loss"].min())
    assert found["valid/acl/auroc"]["max"] == pytest.approx(written["valid/acl/auroc"].max())
    for sent in ("test/acl/auroc", "test/macro/kappa", "best/valid/macro/auroc"):
        split, name, metric = sent.removeprefix("best/").split("/")
        result = evaluation["splits"][split]
        assert found[sent] == {**result["labels"], "macro": result["macro"]}[name][metric]["value"]
    assert found["best/step"] == evaluation["checkpoint"]["step"]
    about = {"test/n": evaluation["splits"]["test"]["n"], "test/selected_on": 0, "best/valid/selected_on": 1}
    about |= {"best/valid/n": evaluation["splits"]["valid"]["n"], "in_sample": 0, "synthetic": 1}
    assert {key: found[key] for key in about} == about

    media = next(run.glob("wandb/offline-run-*/files/media"))
    for key in (f"{split}/{kind}" for split in ("valid", "test") for kind in ("roc", "pr", "confusion", "calibration")):
        (file,) = media.glob(f"images/{key}_*.png")
        np.testing.assert_array_equal(imread(file), imread(run / "figures" / f"{key.replace('/', '_')}.png"))
        assert f"media/images/{key}_" in json.dumps(rows)


def test_wandb_gets_cases_by_confidence_and_artifacts(sweep):
    run = sweep / "0"
    (record,) = records(run)
    (file,) = run.glob("wandb/offline-run-*/files/media/table/test/cases_*.table.json")
    table = json.loads(file.read_text())
    cases = pd.DataFrame(table["data"], columns=table["columns"])
    predictions = pd.read_csv(run / "predictions" / "test.csv", dtype={"id": str}).set_index("id")
    probability, truth = predictions.loc[cases["id"], "p_acl"].to_numpy(), predictions.loc[cases["id"], "y_acl"].to_numpy()
    np.testing.assert_allclose(cases["probability"], probability)
    assert cases["truth"].tolist() == np.where(truth == 1, "positive", "negative").tolist()
    assert cases["prediction"].tolist() == np.where(probability >= 0.5, "positive", "negative").tolist()
    right = (probability >= 0.5) == (truth == 1)
    assert cases["right"].tolist() == sorted(right), "mistakes first"
    assert 0 < right.sum() < len(right)
    for part in (True, False):
        assert cases.loc[right == part, "confidence"].is_monotonic_decreasing
    np.testing.assert_allclose(cases["confidence"], np.maximum(probability, 1 - probability))

    run_id = json.loads((run / "wandb.json").read_text())["id"]
    model, tables = named(record, f"model-{run_id}"), named(record, f"predictions-{run_id}")
    assert contents(model) == {"best.ckpt": md5(run / "checkpoints" / "best.ckpt"), "config.yaml": md5(run / "config.yaml")}
    assert json.loads(model["metadata"])["step"] == json.loads((run / "evaluation.json").read_text())["checkpoint"]["step"]
    assert contents(tables)["predictions/test.csv"] == md5(run / "predictions" / "test.csv")
    for artifact in (model, tables):  # copies, which stay as they are when the run goes on
        assert all(Path(c["local_path"]).is_relative_to(run / "wandb") for c in artifact["manifest"]["contents"])
        assert all(md5(Path(c["local_path"])) == c["digest"] for c in artifact["manifest"]["contents"])


def test_a_run_directory_directly_below_the_root_belongs_to_no_multirun():
    assert [group_of(Path(p)) for p in ("/run", "/", "/multirun/10-00/3", "/outputs/a/run")] == [None, None, "10-00", None]


def test_a_resumed_run_goes_on_in_the_same_wandb_run(sweep):
    run = sweep / "1"
    first, second = records(run)
    assert [r["run_id"] for part in (first, second) for r in of(part, "run")] == [
        json.loads((run / "wandb.json").read_text())["id"]
    ] * 2
    assert of(second, "run")[0]["run_group"] == sweep.name
    before, after = ([r["_step"] for r in history(part)] for part in (first, second))
    assert max(before) == 8 < min(after), "steps go on, so that wandb sync can append"
    written = pd.read_csv(run / "history.csv")
    assert summary(second)["valid/loss"]["min"] == pytest.approx(written["valid/loss"].min()), "of both sessions"


@pytest.mark.slow
def test_a_run_that_goes_on_from_an_earlier_epoch_has_no_step_twice_in_tensorboard(tmp_path, mrnet_root, train_here):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = [*QUICK, f"dataset.root={mrnet_root}", "max_epochs=3", "save_top_k=3", "cases=0", "logger=tensorboard"]
    run = train_here(tmp_path / "run", *words)
    second = f"resume={run / 'checkpoints' / 'epoch001.ckpt'}"
    train(resumed_config(second.removeprefix("resume="), [second]), run, [second])
    now = pd.read_csv(run / "history.csv")
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    for key in ("train/running_loss", "train/loss", "valid/loss", "valid/acl/auroc"):
        steps = [e.step for e in events.Scalars(key)]
        assert steps == sorted(set(steps)), key
    assert [e.step for e in events.Scalars("train/running_loss")] == list(range(2, 25, 2))
    np.testing.assert_allclose([e.value for e in events.Scalars("train/loss")], now["train/loss"], rtol=1e-6)


@pytest.mark.slow
def test_a_run_of_an_agent_is_the_agents_and_goes_on_without_it(tmp_path, mrnet_root, monkeypatch):
    """W&B drops the id, project and team that are asked for in a sweep; what an agent sets is in wandb/wandb_agent.py."""
    import wandb

    run = tmp_path / "run"
    run.mkdir()
    point = tmp_path / "config.yaml"
    point.write_text("wandb_version: 1\nseed: {value: 3}\noptimizer.lr: {value: 0.001}\nbackbone: {value: resnet18}\n")
    agent = {"SWEEP_ID": "swept", "RUN_ID": "agents", "PROJECT": "theirs", "ENTITY": "team", "SWEEP_PARAM_PATH": str(point)}
    words = [*QUICK, f"dataset.root={mrnet_root}", "seed=3", "logger=wandb"]
    wandb.teardown()  # which reads the environment once
    try:
        with monkeypatch.context() as patch:
            for name, value in agent.items():
                patch.setenv(f"WANDB_{name}", value)
            train(compose_config(*words, "max_epochs=1"), run, words)
    finally:
        wandb.teardown()
    kept = {"id": "agents", "project": "theirs", "entity": "team", "group": None, "offline": True}
    assert json.loads((run / "wandb.json").read_text()) == kept
    train(resumed_config(str(run), ["max_epochs=2"]), run, ["max_epochs=2"])
    assert json.loads((run / "wandb.json").read_text()) == kept
    first, second = records(run)
    for record in (first, second):
        (about,) = of(record, "run")
        assert (about["run_id"], about["project"], about["entity"]) == ("agents", "theirs", "team")
        assert {"best.ckpt"} <= contents(named(record, "model-agents")).keys()
        assert named(record, "predictions-agents")
    assert (of(first, "run")[0]["sweep_id"], of(second, "run")[0].get("sweep_id")) == ("swept", None)


@pytest.mark.slow
def test_what_is_made_of_runs_is_a_run_that_uses_theirs(sweep, tmp_path, command):
    ids = [json.loads((sweep / seed / "wandb.json").read_text())["id"] for seed in "01"]
    used = [contents(named(records(sweep / seed)[-1], f"predictions-{i}")) for seed, i in zip("01", ids, strict=True)]

    folder = OmegaConf.create({"hydra": {"sweep": {"dir": str(sweep)}}})
    Comparison({"mean_of_two": {"members": 2}}).on_multirun_end(folder)
    (record,) = records(sweep / "ensembles" / "mean_of_two")
    (about,) = of(record, "run")
    assert (about["run_group"], about["job_type"], about["project"]) == (sweep.name, "ensemble", "xraylab")
    inputs = [a for a in of(record, "artifact") if a.get("use_after_commit")]
    assert [a["name"] for a in inputs] == [f"predictions-{i}" for i in ids]
    assert [contents(a) for a in inputs] == used, "W&B knows an artifact by its content"
    made = json.loads((sweep / "ensembles" / "mean_of_two" / "evaluation.json").read_text())
    assert summary(record)["test/acl/auroc"] == made["splits"]["test"]["labels"]["acl"]["auroc"]["value"]
    assert contents(named(record, f"predictions-{about['run_id']}")).keys() >= {"predictions/test.csv", "evaluation.json"}

    members = f"runs=[{sweep / '0'},{sweep / '1'}]"
    done = command("combine", "method=vote", members, "splits=[test]", f"hydra.run.dir={tmp_path / 'vote'}")
    assert done.returncode == 0, done.stderr[-2000:]
    (record,) = records(tmp_path / "vote")
    assert (of(record, "run")[0]["run_group"], of(record, "run")[0]["job_type"]) == (sweep.name, "combine")
    assert [contents(a) for a in of(record, "artifact") if a.get("use_after_commit")] == used
    assert of(record, "config")[-1]["update"]["method"] == "vote"

    run = shutil.copytree(sweep / "0", tmp_path / "again", ignore=shutil.ignore_patterns("wandb"))
    run_job("evaluate", f"run={run}", "num_workers=0")
    (record,) = records(run)
    (about,) = of(record, "run")
    assert (about["job_type"], about["run_group"]) == ("evaluate", sweep.name)
    assert about["run_id"] not in ids
    (model,) = [a for a in of(record, "artifact") if a.get("use_after_commit")]
    assert model["name"] == f"model-{ids[0]}"
    assert contents(model) == contents(named(records(sweep / "0")[0], f"model-{ids[0]}"))
    assert named(record, f"predictions-{ids[0]}"), "a further version of the run's tables"
    assert json.loads((run / "wandb.json").read_text())["id"] == ids[0]


def test_what_was_not_logged_is_not_logged_when_combined(sweep, tmp_path):
    from xraylab.reporting.log_results import record_made

    other = shutil.copytree(sweep / "1", tmp_path / "other", ignore=shutil.ignore_patterns("wandb*"))
    record_made(tmp_path / "made", {"data": "x", "splits": {}}, {}, [sweep / "0", other], "combine")
    assert not (tmp_path / "made").exists()


def refuse(*_, **__):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("broken", ["init", "log", "log_artifact"])
def test_a_failing_wandb_does_not_stop_a_run(broken, train_here, tmp_path, mrnet_root, monkeypatch, caplog):
    import wandb

    monkeypatch.setattr(*((wandb, "init") if broken == "init" else (wandb.Run, broken)), refuse)
    run = train_here(tmp_path / "run", *QUICK, "max_epochs=1", f"dataset.root={mrnet_root}", "logger=wandb")
    assert len(pd.read_csv(run / "history.csv")) == 1
    assert json.loads((run / "environment.json").read_text())["finished"]
    said = "W&B is off for the rest of this run: [Errno 28] No space left on device."
    assert caplog.text.count(said) == caplog.text.count("W&B is off") == 1
    assert wandb.run is None


def test_a_failing_tensorboard_does_not_stop_a_run(train_here, tmp_path, mrnet_root, monkeypatch, caplog):
    from torch.utils.tensorboard import SummaryWriter

    monkeypatch.setattr(SummaryWriter, "add_scalar", refuse)
    run = train_here(tmp_path / "run", *QUICK, "max_epochs=1", f"dataset.root={mrnet_root}", "logger=tensorboard")
    assert json.loads((run / "environment.json").read_text())["finished"]
    assert caplog.text.count("TensorBoard is off for the rest of this run: [Errno 28] No space left on device.") == 1


def test_a_run_that_fails_is_finished_as_failed(train_here, tmp_path, mrnet_root, monkeypatch):
    import wandb

    def fail(*_, **__):
        raise RuntimeError("no more")

    monkeypatch.setattr("xraylab.inference.evaluate.evaluate_run", fail)
    with pytest.raises(RuntimeError, match="no more"):
        train_here(tmp_path / "run", *QUICK, "max_epochs=1", f"dataset.root={mrnet_root}", "logger=wandb")
    (record,) = records(tmp_path / "run")
    assert of(record, "exit")[0]["exit_code"] == 1
    assert wandb.run is None


@pytest.mark.parametrize(("lacking", "swept"), [("key", True), ("network", False)])
def test_what_cannot_be_sent_is_recorded_on_disk(lacking, swept, tmp_path, monkeypatch, caplog):
    import wandb

    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    if lacking == "network":
        init = wandb.init
        monkeypatch.setattr(wandb, "login", lambda **_: True)
        monkeypatch.setattr(wandb, "init", lambda **k: init(**k) if k["mode"] == "offline" else refuse())
    logger = Wandb(str(tmp_path), offline=False, project="xraylab")
    logger.of_run(tmp_path, "train")
    logger.log_metrics({"valid/loss": 0.5}, 3)
    if swept:
        monkeypatch.setenv("WANDB_SWEEP_ID", "swept")
    finish([logger], stopped=signal.SIGTERM)
    reason = {"key": "there is no key: set WANDB_API_KEY, or wandb login", "network": "[Errno 28] No space left on device"}
    assert caplog.text.count(f"W&B: {reason[lacking]}. Recorded on disk; to send it later: wandb sync {tmp_path}/wandb/") == 1
    assert "off for the rest" not in caplog.text
    (record,) = records(tmp_path)
    assert [r["valid/loss"] for r in history(record)] == [0.5]
    assert of(record, "exit")[0]["exit_code"] == 75, "stopped, and can be resumed"
    assert [r["type"] for r in record].count("preempting") == (not swept), "an agent ends so what its sweep gives up"
    assert "WANDB_DATA_DIR" not in os.environ
    assert "WANDB_MODE" not in os.environ


@pytest.mark.parametrize(
    ("typed", "said"),
    [("offline=maybe", "offline=maybe: it is true or false"), ("artifacts=1", "artifacts=1: it is true or false"),
     ("tags=mine", r"tags=mine: it is a list: logger.wandb.tags=\[mine\]")],
)  # fmt: skip
def test_a_wrong_setting_is_refused_before_data_is_read(typed, said, train_here, tmp_path, mrnet_root):
    with pytest.raises(UserError, match=f"logger.wandb.{said}"):
        train_here(tmp_path / "run", *QUICK, f"dataset.root={mrnet_root}", "logger=wandb", f"logger.wandb.{typed}")
    assert not list((tmp_path / "run").glob("[!.]*"))


@pytest.mark.slow
def test_wandb_is_not_imported_where_it_is_not_asked_for(command, tmp_path, mrnet_root):
    words = [*QUICK, "max_epochs=1", f"dataset.root={mrnet_root}", f"hydra.run.dir={tmp_path / 'run'}"]
    done = command("train", *words, PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0, done.stderr[-2000:]
    imported = {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert {"torch", "timm", "pytorch_lightning"} <= imported
    assert not [name for name in imported if name.startswith(("wandb.", "tensorboard."))]  # timm tries to, in vain
