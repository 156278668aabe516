"""DeLong's and McNemar's statistics against published numbers, their definitions, and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from xraylab.evaluation.delong import delong, delong_p, mcnemar

# Albumin, total protein, K-G score and outcome of 43 patients: DeLong et al. (1988), as printed in the SAS/STAT User's
# Guide, LOGISTIC Procedure, "Comparing Receiver Operating Characteristic Curves". Low albumin, low protein and a high
# score speak for outcome 0, which is the event there.
OVARIAN = """
3.0 5.8 10 0 3.2 6.3 5 1 3.9 6.8 3 1 2.8 4.8 6 0 3.2 5.8 3 1 0.9 4.0 5 0 2.5 5.7 8 0 1.6 5.6 5 1 3.8 5.7 5 1 3.7 6.7 6 1
3.2 5.4 4 1 3.8 6.6 6 1 4.1 6.6 5 1 3.6 5.7 5 1 4.3 7.0 4 1 3.6 6.7 4 0 2.3 4.4 6 1 4.2 7.6 4 0 4.0 6.6 6 0 3.5 5.8 6 1
3.8 6.8 7 1 3.0 4.7 8 0 4.5 7.4 5 1 3.7 7.4 5 1 3.1 6.6 6 1 4.1 8.2 6 1 4.3 7.0 5 1 4.3 6.5 4 1 3.2 5.1 5 1 2.6 4.7 6 1
3.3 6.8 6 0 1.7 4.0 7 0 3.7 6.1 5 1 3.3 6.3 7 1 4.2 7.7 6 1 3.5 6.2 5 1 2.9 5.7 9 0 2.1 4.8 7 1 2.8 6.2 8 0 4.0 7.0 7 1
3.3 5.7 6 1 3.7 6.9 5 1 3.6 6.6 5 1
"""


@pytest.fixture
def ovarian():
    albumin, protein, score, outcome = np.array(OVARIAN.split(), float).reshape(-1, 4).T
    return (outcome == 0).astype(int), {"albumin": -albumin, "protein": -protein, "score": score}


@pytest.mark.parametrize(
    ("test", "auroc", "error", "low", "high"),
    [
        ("albumin", 0.7366, 0.0927, 0.5549, 0.9182),
        ("score", 0.7258, 0.1028, 0.5243, 0.9273),
        ("protein", 0.6478, 0.1000, 0.4518, 0.8439),
    ],
)
def test_an_auroc_has_the_published_interval(ovarian, test, auroc, error, low, high):
    truth, scores = ovarian
    value, covariance = delong(truth, scores[test][None])
    assert value[0] == pytest.approx(auroc, abs=5e-5)
    assert np.sqrt(covariance[0, 0]) == pytest.approx(error, abs=5e-5)
    half = norm.ppf(0.975) * np.sqrt(covariance[0, 0])  # the published interval is symmetric
    assert (value[0] - half, value[0] + half) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@pytest.mark.parametrize(
    ("test", "value", "low", "high", "p"),
    [("albumin", 0.0108, -0.1761, 0.1976, 0.9102), ("protein", -0.0780, -0.2830, 0.1271, 0.4561)],
)
def test_a_difference_has_the_published_interval_and_p(ovarian, test, value, low, high, p):
    truth, scores = ovarian
    auroc, covariance = delong(truth, np.stack([scores[test], scores["score"]]))
    difference, half = auroc[0] - auroc[1], norm.ppf(0.975) * np.sqrt([1, -1] @ covariance @ [1, -1])
    found = [difference, difference - half, difference + half, delong_p(truth, scores[test], scores["score"])]
    assert found == pytest.approx([value, low, high, p], abs=6e-5)


def test_grades_of_haemorrhage_have_the_published_variance():
    """WFNS grades 1-5 of 72 good and 41 poor outcomes (Turck et al. 2010), as counted from the ROC curve that pROC prints."""
    good, poor = (37, 20, 3, 8, 4), (2, 12, 1, 8, 18)
    truth = np.repeat([0, 1], [72, 41])
    grade = np.r_[np.repeat(range(5), good), np.repeat(range(5), poor)].astype(float)
    value, covariance = delong(truth, grade[None])
    assert value[0] == pytest.approx(0.823678861788618, abs=1e-14)
    assert covariance[0, 0] == pytest.approx(0.00146991470882363, abs=1e-16)


def naive(truth, scores):
    """The definition: means and covariances of the kernel over all pairs."""
    x, y = scores[:, truth == 1], scores[:, truth == 0]
    kernel = (x[:, :, None] > y[:, None, :]) + 0.5 * (x[:, :, None] == y[:, None, :])
    covariance = np.cov(kernel.mean(2)) / x.shape[1] + np.cov(kernel.mean(1)) / y.shape[1]
    return kernel.mean((1, 2)), covariance


def test_midranks_are_the_definition_over_all_pairs_ties_included():
    rng = np.random.default_rng(0)
    for _ in range(5):
        truth = rng.permutation(np.r_[np.ones(17, int), np.zeros(30, int)])
        scores = np.round(rng.normal(truth, 1, (3, 47)), 1)
        for ours, theirs in zip(delong(truth, scores), naive(truth, scores), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-14)


def test_clusters_of_one_are_independent_rows_and_copies_add_nothing():
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2, 60)
    scores = rng.normal(truth, 1, (2, 60))
    alone = delong(truth, scores)[1]
    np.testing.assert_allclose(delong(truth, scores, rng.permutation(60))[1], alone, rtol=1e-12)
    copies = delong(np.tile(truth, 3), np.tile(scores, 3), np.tile(np.arange(60), 3))[1]
    np.testing.assert_allclose(copies, alone, rtol=1e-12)
    assert (np.diag(delong(np.tile(truth, 3), np.tile(scores, 3))[1]) < 0.4 * np.diag(alone)).all()


@pytest.mark.parametrize("per_patient", [1, 4])
def test_equal_aurocs_are_called_different_as_often_as_p_says(per_patient):
    """Two correlated scores of AUROC 0.76, with several dependent studies a patient."""
    rng = np.random.default_rng(2)
    patients = 60
    clusters = np.repeat(np.arange(patients), per_patient)
    truth = np.r_[np.ones(patients // 2, int), np.zeros(patients // 2, int)][clusters]
    called = 0
    for _ in range(400):
        noise = rng.normal(size=(2, patients))[:, clusters] * 0.8 + rng.normal(size=(2, len(truth))) * 0.6
        p = delong_p(truth, truth + noise[0], truth + (noise[0] + noise[1]) / np.sqrt(2), clusters)
        called += p < 0.05
    assert 0.015 < called / 400 < 0.085


def test_where_a_variance_is_not_known_there_is_no_p():
    truth, score = np.array([0, 0, 1, 1]), np.array([0.1, 0.9, 0.2, 0.8])
    assert delong_p(truth, score, score) is None
    assert delong_p(np.array([0, 0, 1]), np.arange(3.0), np.array([0.2, 0.9, 0.3])) is None
    assert delong_p(np.ones(3, int), np.arange(3.0), np.arange(3.0)) is None


def test_mcnemar():
    """b = 5 and c = 15 of 40: exact p by the binomial, corrected chi-squared 4.05."""
    truth = np.ones(40, int)
    first = np.r_[np.ones(5, bool), np.zeros(15, bool), np.ones(20, bool)]
    second = np.r_[np.zeros(5, bool), np.ones(15, bool), np.ones(20, bool)]
    found = mcnemar(truth, first, second)
    assert (found["first_only"], found["second_only"], found["n"]) == (5, 15, 40)
    assert found["exact"] == pytest.approx(binomtest(5, 20).pvalue, abs=1e-15) == pytest.approx(0.04138947)
    assert found["corrected"] == pytest.approx(0.0441710, abs=1e-6)
    assert mcnemar(1 - truth, ~first, ~second) == found, "right is right for negatives too"
    alike = mcnemar(truth, first, first)
    assert (alike["exact"], alike["corrected"]) == (1.0, 1.0)
