"""The model card says what is known, marks what is not, and keeps what people wrote."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest

from xraylab.evaluation.ensembles.combination import IN_SAMPLE, Combination
from xraylab.evaluation.evaluator import evaluate_split
from xraylab.evaluation.metrics import number
from xraylab.evaluation.operating_points import judge
from xraylab.evaluation.predictions import PredictionTable
from xraylab.reporting.model_card import BLANK, OWN, limits, write_card


@pytest.fixture
def run(tmp_path):
    """A run directory of three findings and two groups, without a model."""
    tables = {}
    for seed, (split, n) in enumerate({"valid": 120, "test": 200}.items()):
        rng = np.random.default_rng(seed)
        frame = pd.DataFrame({"id": [f"{split}{i}" for i in range(n)], "patient": [f"p{i // 2}" for i in range(n)]})
        frame["group"] = np.where(np.arange(n) % 3 == 0, "hand", "wrist")
        frame["acl"] = rng.integers(0, 2, n).astype(float)
        frame["rare"] = np.where(np.arange(n) < 7, 1.0, np.where(np.arange(n) < 12, -1, 0))
        frame["never"] = 0.0
        p = 1 / (1 + np.exp(-rng.normal(frame[["acl", "rare", "never"]].to_numpy(), 1)))
        tables[split] = PredictionTable.of_studies(frame, ["acl", "rare", "never"], split, np.arange(n), p).frame
    splits = {split: evaluate_split(PredictionTable(t), split == "valid", 50) for split, t in tables.items()}
    judge(splits, {k: PredictionTable(t) for k, t in tables.items()})
    evaluation = {
        "data": "MURA-v1.1",
        "selection": "holdout",
        "checkpoint": {"file": "best.ckpt", "epoch": 3, "step": 40, "monitor": "valid/macro/auroc"},
        "skipped": {"unreadable files": ["a.png", "b.png"]},
        "trained_on": {"n": 700, "patients": 350},
        "scored": {"blank": "ignore", "uncertain": "ignore"},
        "splits": splits,
    }
    directory = tmp_path / "mura" / "one"
    directory.mkdir(parents=True)
    (directory / "evaluation.json").write_text(json.dumps(evaluation))
    (directory / "config.yaml").write_text(
        "unit: study\nimage: {size: 224, rescale: true, mean: null, std: 58.8}\n"
        "backbone: {_target_: a.b.Backbone, name: densenet169}\n"
    )
    return directory


def test_it_holds_the_numbers_with_n_and_intervals(run):
    text = write_card(run).read_text()
    splits = json.loads((run / "evaluation.json").read_text())["splits"]
    for split in ("valid", "test"):
        auroc = splits[split]["labels"]["acl"]["auroc"]
        assert f"| acl | {auroc['n']} | {number(auroc)} |" in text
    wrist = splits["test"]["groups"]["wrist"]["labels"]["acl"]["auroc"]
    assert f"| wrist | acl | {wrist['n']} | {number(wrist)} |" in text
    youden = splits["test"]["operating_points"]["youden"]["labels"]["acl"]
    assert f"| acl | youden | {youden['threshold']:.4f} | {number(youden['sensitivity'])} |" in text
    ece = splits["test"]["calibration"]["labels"]["acl"]
    assert f"| acl | {number(ece['ece'])} | {number(ece['brier'])} | {ece['temperature']['value']:.3f} |" in text
    assert "| train | 700 | 350 | trained on |" in text
    assert "| test | 200 | 100 | held out from all choices |" in text
    assert "- images are resized to 224 x 224 pixels" in text
    assert "- mean: of the backbone, on the scale 0-255\n- std: 58.8" in text
    assert "Synthetic" not in text


def test_known_limits_are_named(run):
    assert limits(json.loads((run / "evaluation.json").read_text())) == [
        "valid: choices were made on these studies, so its results are too good.",
        "All splits are of one data set: how well the model does elsewhere is not known.",
        "valid: the AUROC is undefined for never (no positive study).",
        "valid: fewer than 20 positive or negative studies, so little is known of rare (7 positive, 108 negative).",
        "valid: 5 labels are uncertain; they are scored as: ignore.",
        "test: the AUROC is undefined for never (no positive study).",
        "test: fewer than 20 positive or negative studies, so little is known of rare (7 positive, 188 negative).",
        "test: 5 labels are uncertain; they are scored as: ignore.",
        "Left out of the data: 2 unreadable files.",
    ]


def test_limits_of_synthetic_data_of_unknown_patients_selected_on(run):
    evaluation = json.loads((run / "evaluation.json").read_text())
    del evaluation["splits"]["test"]
    evaluation["data"], evaluation["splits"]["valid"]["patients"] = "synthetic sample", None
    found = limits(evaluation)
    assert "The data is a synthetic sample." in found
    assert "valid: patients are not known, so one may be in two splits; intervals are over studies." in found
    assert "No split is held out from all choices: how well the model does on new studies is not known." in found
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    text = write_card(run).read_text()
    assert "means nothing for patients" in text
    assert "On the studies that chose them, the numbers of chosen thresholds are too good." in text
    assert "temperature of valid. On the studies that it was fitted on, what is after is too good." in text


def test_a_combination_says_how_it_was_made_and_on_what_it_was_fitted(run):
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert "too good" not in write_card(run).read_text().split("## Operating points")[1].split("## Known limits")[0]
    del evaluation["checkpoint"]
    found = {"intercept": -0.25, "coefficients": {"a": 1.5, "b": 0.125}, "n": 120, "positives": 50, "reason": None}
    none = {"intercept": None, "coefficients": None, "n": 120, "positives": 0, "reason": "no positive study: the mean"}
    stack = Combination("stack", ("a", "b"), fit_on="train", folds=5, labels={"acl": found, "never": none})
    evaluation |= {"members": ["a (plane=axial)", "b"], "combination": stack.record(), "selection": "not known"}
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    text = write_card(run).read_text()
    model = text.split("## Model")[1].split("\n## ")[0]
    assert "- joined from: a (plane=axial), b\n- method stack: a logistic regression a finding" in model
    assert f"fitted on train: {IN_SAMPLE}\n- never: no positive study: the mean" in model
    assert "| coefficients | a (plane=axial) | b | intercept | n | positives |\n| --- | --- | --- | --- | --- | --- |\n" in model
    assert "| acl | 1.500 | 0.125 | -0.250 | 120 | 50 |" in model
    assert f"- The combination was {IN_SAMPLE}." in text
    assert "All splits are of one data set" not in text
    assert "- Of which data the studies are, and how well the model does elsewhere, is not known." in text
    chosen = {"acl": {"member": "b", "auroc": 0.9}}
    for made, said in (
        (Combination("own", ("a", "b"), groups=("hand", "wrist")), "- groups: hand by a, wrist by b"),
        (Combination("best", ("a", "b"), chosen=chosen), "- chosen by the AUROC of valid: acl by b"),
        (Combination("vote", ("a", "b")), "- method vote: the share of members that call a finding positive"),
    ):
        (run / "evaluation.json").write_text(json.dumps(evaluation | {"combination": made.record()}))
        text = write_card(run).read_text()
        assert said in text
        assert IN_SAMPLE not in text


def test_what_people_wrote_stays_and_the_rest_is_written_anew(run):
    first = write_card(run).read_text()
    assert first.count(BLANK) == sum(map(len, OWN.values()))
    edited = re.sub(r"- What for: .*", "- What for: triage of wrists.\n  Two lines.", first)
    edited = edited.replace("## Results", "## Results\n\nperfect")
    edited = re.sub(r"(## Licence\n\n).*?(?=\n\n## )", r"\1CC BY-NC 4.0", edited, flags=re.S)
    (run / "MODEL_CARD.md").write_text(edited)
    again = write_card(run).read_text()
    assert "- What for: triage of wrists.\n  Two lines.\n- By whom: [to be filled]" in again
    assert "## Licence\n\nCC BY-NC 4.0\n\n## " in again
    assert "perfect" not in again
    assert write_card(run).read_text() == again


def test_an_evaluation_of_before_operating_points_has_a_card_too(run):
    evaluation = json.loads((run / "evaluation.json").read_text())
    for result in evaluation["splits"].values():
        del result["operating_points"], result["calibration"]
    del evaluation["trained_on"], evaluation["checkpoint"]
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    (run / "config.yaml").unlink()
    text = write_card(run).read_text()
    for title in ("Model", "Preprocessing", "Operating points", "Calibration", "How it was made"):
        assert f"## {title}\n\nNot known." in text
