"""The pictures of ROC and precision-recall curves: true to scikit-learn's, one panel a finding, empty ones say why."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from xraylab.evaluation.evaluator import evaluate_split
from xraylab.evaluation.operating_points import judge
from xraylab.evaluation.predictions import PredictionTable, Scoring
from xraylab.reporting.figures.curves import POINTS, confusion, curve, panels, side_by_side, thinned
from xraylab.reporting.figures.export import mark

FINDINGS = ("edema", "mass", "never", "empty")


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    n = 90
    frame = pd.DataFrame({"id": [f"s{i}" for i in range(n)], "patient": "", "group": "chest", "split": "test"})
    truth = {"edema": np.arange(n) % 3 == 0, "mass": np.arange(n) % 2, "never": np.zeros(n), "empty": np.full(n, np.nan)}
    for label in FINDINGS:
        frame[f"y_{label}"] = truth[label].astype(float)
        frame[f"p_{label}"] = np.clip(0.2 * np.nan_to_num(truth[label].astype(float)) + rng.random(n) * 0.8, 0, 1)
    frame.loc[:9, "y_mass"], frame.loc[10:14, "y_mass"] = np.nan, -1
    return frame


def big(seed):
    rng = np.random.default_rng(seed)
    truth = (rng.random(20_000) < 0.3).astype(int)
    return truth, 1 / (1 + np.exp(-rng.normal(truth * 1.5, 1)))


@pytest.mark.parametrize(("kind", "area"), [("roc", roc_auc_score), ("pr", average_precision_score)])
def test_a_thinned_curve_is_that_of_all_studies(kind, area):
    for seed in range(3):
        truth, p = big(seed)
        if kind == "roc":
            whole = roc_curve(truth, p)[:2]
        else:
            whole = precision_recall_curve(truth, p)[1::-1]
        x, y = curve(kind, truth, p)
        assert len(x) <= POINTS < len(whole[0])
        assert (x[0], y[0], x[-1], y[-1]) == (whole[0][0], whole[1][0], whole[0][-1], whole[1][-1])
        fine = np.linspace(0, len(x) - 1, 50 * len(x))
        line = [np.interp(fine, np.arange(len(x)), v) for v in (x, y)]
        far = [np.hypot(line[0] - a, line[1] - b).min() for a, b in zip(whole[0][::17], whole[1][::17], strict=True)]
        assert max(far) < 0.008, "nothing of the curve is further away than a line is wide"
        drawn = np.trapezoid(y, x) if kind == "roc" else -np.sum(np.diff(x) * y[:-1])
        assert drawn == pytest.approx(area(truth, p), abs=0.004)


def test_a_short_curve_is_left_as_it_is():
    x, y = np.array([0, 0, 0.5, 1.0]), np.array([0, 0.5, 0.5, 1.0])
    assert thinned(x, y)[0] is not None
    np.testing.assert_array_equal(thinned(x, y), (x, y))
    jagged = np.linspace(0, 1, 5000), np.arange(5000) % 2 * 1.0
    assert len(thinned(*jagged)[0]) <= POINTS


def test_one_panel_a_finding_with_its_numbers_or_the_reason_why_there_is_no_curve(table):
    result = evaluate_split(PredictionTable(table), False, 50)
    figure = panels("roc", PredictionTable(table), result, "test by study", Scoring())
    titles = [axes.get_title() for axes in figure.axes]
    m = result["labels"]["edema"]["auroc"]
    assert titles == [
        f"edema\nn 90, 30 positive\n{m['value']:.3f} ({m['low']:.3f}-{m['high']:.3f})",
        titles[1],
        "never\nn 90, 0 positive\n-",
        "empty\nn 0, 0 positive\n-",
    ]
    assert titles[1].startswith("mass\nn 75, ")
    x, y = figure.axes[0].lines[0].get_data()
    assert np.trapezoid(y, x) == pytest.approx(m["value"])
    assert [len(axes.lines) for axes in figure.axes] == [2, 2, 0, 0]
    said = [text.get_text().replace("\n", " ") for axes in figure.axes for text in axes.texts]
    assert said == ["no positive study", "no study has a label that is scored"]
    assert figure.get_suptitle() == "ROC, test by study; AUROC, 95% interval"
    mark(figure)
    assert figure.get_suptitle() == "synthetic sample: ROC, test by study; AUROC, 95% interval"


def test_operating_points_lie_on_the_roc(table):
    valid = table.assign(split="valid")
    splits = {"valid": evaluate_split(PredictionTable(valid), True, 0)}
    judge(splits, {"valid": PredictionTable(valid)})
    for figure in (f("valid by study") for f in (
        lambda where: panels("roc", PredictionTable(valid), splits["valid"], where, Scoring()),
        lambda where: side_by_side(PredictionTable(valid), splits["valid"], where, Scoring()),
    )):  # fmt: skip
        points = {p.get_gid(): p.get_offsets()[0] for axes in figure.axes for p in axes.collections}
        assert len(points) == 2 * 5, "of the two findings that have a curve"
        youden = splits["valid"]["operating_points"]["youden"]["labels"]["mass"]
        expected = (1 - youden["specificity"]["value"], youden["sensitivity"]["value"])
        assert tuple(points["mass: youden"]) == pytest.approx(expected)
        said = figure.get_supxlabel() or figure.axes[0].get_xlabel()
        assert said == "1 - specificity\n✕ 0.5   ○ youden   △ sensitivity_0.9   ▽ specificity_0.9   □ kappa"


def test_curves_are_of_the_labels_that_are_scored(table):
    options = Scoring("negative", "positive")
    result = evaluate_split(PredictionTable(table), False, 0, scoring=options)
    figure = panels("pr", PredictionTable(table), result, "test by study", options)
    assert figure.axes[1].get_title().startswith("mass\nn 90, 43 positive\n")
    x, y = figure.axes[1].lines[0].get_data()
    assert -np.sum(np.diff(x) * y[:-1]) == pytest.approx(result["labels"]["mass"]["average_precision"]["value"])
    overlay = side_by_side(PredictionTable(table), result, "test by study", options)
    assert [text.get_text().split(",")[1] for text in overlay.axes[0].get_legend().get_texts()] == [" n 90", " n 90"]


def test_fourteen_findings_have_fourteen_panels():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"id": [f"s{i}" for i in range(40)], "patient": "", "group": "chest", "split": "test"})
    for k in range(14):
        frame[f"y_f{k}"], frame[f"p_f{k}"] = np.arange(40.0) % 2, rng.random(40)
    figure = panels("roc", PredictionTable(frame), evaluate_split(PredictionTable(frame), False, 0), "test by study", Scoring())
    assert sum(bool(axes.get_title()) for axes in figure.axes) == 14
    assert [axes.axison for axes in figure.axes] == [True] * 14 + [False] * 2


def test_confusion_counts_are_those_of_scikit_learn_for_findings_and_for_exclusive_classes():
    from sklearn.metrics import confusion_matrix

    rng, names = np.random.default_rng(0), ["a", "b", "c"]
    p, truth = rng.dirichlet(np.ones(3), 60), rng.integers(0, 3, 60)
    keys = {"id": [f"s{i}" for i in range(60)], "patient": "", "group": "", "split": "test"}
    columns = {f"p_{n}": p[:, k] for k, n in enumerate(names)} | {f"y_{n}": (truth == k) * 1.0 for k, n in enumerate(names)}
    table = pd.DataFrame(keys | columns)
    result = evaluate_split(PredictionTable(table), False, 0, 0, exclusive=True)
    figure = confusion(PredictionTable(table), result, "test", Scoring())
    shown = {t.get_gid(): int(t.get_text()) for axes in figure.axes for t in axes.texts}
    expected = {}
    for (i, j), n in np.ndenumerate(confusion_matrix(truth, p.argmax(1), labels=range(3))):
        expected[f"likeliest: {names[i]} called {names[j]}"] = n
    for k, name in enumerate(names):
        for (i, j), n in np.ndenumerate(confusion_matrix(truth == k, p[:, k] >= 0.5)):
            words = ("negative", "positive")
            expected[f"{name}, n 60: {words[i]} called {words[j]}"] = n
    assert shown == expected
