"""Confidence intervals against outside references, their identities, and how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from xraylab.evaluation.delong import delong
from xraylab.evaluation.intervals import (
    LEAST,
    Clusters,
    Interval,
    average,
    binormal_variance,
    difference,
    exact,
    kappa,
    lacking,
    share,
)
from xraylab.evaluation.metrics import AUROC, METRICS, intervals_of, point

RATES = ("accuracy", "sensitivity", "specificity", "f1", "kappa")


def made(seed, m=20, n=60, shift=1.2, of=None):
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.r_[np.ones(m, int), np.zeros(n, int)])
    clusters = np.arange(m + n) if of is None else np.arange(m + n) // of
    shared = 0 if of is None else rng.normal(size=clusters.max() + 1)[clusters]
    return truth, shift * truth + rng.normal(size=m + n) * (1 if of is None else 0.7) + 0.7 * shared, clusters


def every(truth, score, clusters, cut=0.5):
    values = {name: point(m, truth, score, cut) for name, m in METRICS.items()}
    return intervals_of(values, Clusters(clusters), np.arange(len(truth)), truth, score >= cut, score)


@pytest.mark.parametrize(("k", "n"), [(81, 263), (15, 148), (0, 20), (1, 29), (29, 29)])
def test_a_share_has_the_exact_interval_of_scipy(k, n):
    published = stats.binomtest(k, n).proportion_ci(0.95, method="exact")
    assert exact(k / n, n) == pytest.approx((published.low, published.high), abs=1e-9)
    found = share(np.r_[np.ones(k), np.zeros(n - k)] == 1, np.arange(n), n)
    assert (found.low, found.high) == pytest.approx((published.low, published.high), abs=1e-9)


def test_81_of_263_is_as_newcombe_printed_it():
    """Table I of Newcombe (1998), Clopper and Pearson's method."""
    assert exact(81 / 263, 263) == pytest.approx((0.2527, 0.3676), abs=5e-5)
    assert exact(15 / 148, 148) == pytest.approx((0.0578, 0.1617), abs=5e-5)
    assert exact(0, 20) == pytest.approx((0, 0.1684), abs=5e-5)
    assert exact(1 / 29, 29) == pytest.approx((0.0009, 0.1776), abs=5e-5)


def test_the_binormal_variance_is_that_of_samples():
    rng = np.random.default_rng(0)
    positive, negative = rng.normal(1.6, size=(4000, 12)), rng.normal(size=(4000, 30))
    aurocs = (positive[:, :, None] > negative[:, None, :]).mean((1, 2))
    true = float(stats.norm.cdf(1.6 / np.sqrt(2)))
    assert binormal_variance(true, 12, 30) == pytest.approx(aurocs.var(), rel=0.06)


def test_without_clusters_the_variance_of_an_auroc_is_delongs_and_with_equal_ones_obuchowskis():
    for of in (None, 4):
        truth, score, clusters = made(1, of=of)
        if of:
            truth = np.repeat(truth[::4], 4)  # patients of one label each
        found = every(truth, score, clusters)["auroc"]
        assert found.influence @ found.influence == pytest.approx(delong(truth, score[None], clusters)[1][0, 0], rel=1e-9)


def test_many_studies_agree_with_a_bca_bootstrap_of_scipy():
    truth, score, clusters = made(2, 60, 120)
    found = every(truth, score, clusters)
    of = {
        "auroc": lambda y, s: (s[y == 1][:, None] > s[y == 0]).mean(),
        "f1": lambda y, s: 2 * (y * (s >= 0.5)).sum() / (y.sum() + (s >= 0.5).sum()),
        "sensitivity": lambda y, s: (s[y == 1] >= 0.5).mean(),
    }
    for metric, score_of in of.items():
        drawn = stats.bootstrap(
            (truth, score), score_of, paired=True, vectorized=False, n_resamples=300, method="BCa", rng=np.random.default_rng(0)
        ).confidence_interval
        width = drawn.high - drawn.low
        assert (found[metric].low, found[metric].high) == pytest.approx((drawn.low, drawn.high), abs=0.2 * width), metric


def test_names_and_order_of_patients_do_not_matter():
    truth, score, clusters = made(3, of=3)
    rng = np.random.default_rng(0)
    order, names = rng.permutation(len(truth)), rng.permutation(clusters.max() + 1)
    for metric, found in every(truth[order], score[order], names[clusters][order]).items():
        same = every(truth, score, clusters)[metric]
        assert (found.low, found.high) == pytest.approx((same.low, same.high), rel=1e-9), metric


def test_patients_whose_studies_are_not_scored_do_not_matter():
    truth, score, clusters = made(5, m=12, n=12)
    there = Clusters(np.arange(500))  # of a table, of which these are scored
    values = {name: point(m, truth, score, 0.5) for name, m in METRICS.items()}
    rows = np.arange(7, 7 + len(truth))
    for metric, found in intervals_of(values, there, rows, truth, score >= 0.5, score).items():
        same = every(truth, score, clusters)[metric]
        assert (found.low, found.high) == pytest.approx((same.low, same.high), rel=1e-12), metric


def test_swapped_classes_have_the_same_auroc_and_the_other_class_its_sensitivity():
    truth, score, clusters = made(4, of=2)
    ours, theirs = every(truth, score, clusters), every(1 - truth, 1 - score - 1e-12, clusters)
    for here, there in (("auroc", "auroc"), ("sensitivity", "specificity"), ("accuracy", "accuracy"), ("kappa", "kappa")):
        assert (ours[here].low, ours[here].high) == pytest.approx((theirs[there].low, theirs[there].high), rel=1e-6)


def test_copies_of_a_study_in_one_patient_add_nothing():
    truth, score, clusters = made(5)
    alone, copied = every(truth, score, clusters), every(*(np.tile(x, 3) for x in (truth, score, clusters)))
    for metric in ("accuracy", "sensitivity", "specificity", "kappa"):
        assert (copied[metric].low, copied[metric].high) == pytest.approx((alone[metric].low, alone[metric].high), abs=0.02)
    assert copied["auroc"].high - copied["auroc"].low > 0.9 * (alone["auroc"].high - alone["auroc"].low)


@pytest.mark.parametrize(("m", "n"), [(10, 10), (10, 200), (50, 50)])
def test_a_classifier_without_mistakes_has_an_interval_up_to_1(m, n):
    truth = np.r_[np.ones(m, int), np.zeros(n, int)]
    widths = {}
    for metric, found in every(truth, truth.astype(float), np.arange(m + n)).items():
        assert found.reason is None
        assert 0 < found.low < 1 == found.high == found.value, metric
        widths[metric] = 1 - found.low
    assert widths["sensitivity"] == pytest.approx(1 - 0.025 ** (1 / m))
    half = every(np.repeat(truth, 4), np.repeat(truth, 4).astype(float), np.arange(4 * (m + n)))
    assert all(1 - half[metric].low < width for metric, width in widths.items())


def test_bounds_lie_within_the_range_and_around_the_value():
    for seed in range(20):
        truth, score, clusters = made(seed, 10, 10 + 20 * (seed % 3), 3 * (seed % 4) / 3, 2 if seed % 2 else None)
        for metric, found in every(truth, np.round(score, 1), clusters).items():
            if found.reason is None:
                assert (-1 if metric == "kappa" else 0) <= found.low <= found.value <= found.high + 1e-15 <= 1 + 1e-15, (
                    seed,
                    metric,
                )


def test_where_too_few_are_known_there_is_none_and_it_is_said():
    truth, score, clusters = made(6, LEAST - 1, 40)
    found = every(truth, score, clusters)
    assert {m for m, i in found.items() if i.reason is None} == {"specificity"}
    assert found["auroc"].reason == found["accuracy"].reason == "no interval: 9 positive, of 10 that it takes"
    assert not every(*made(6, LEAST, LEAST))["auroc"].reason
    one = np.where(truth == 1, 0, np.arange(len(truth)))
    assert lacking(np.r_[truth, 1], np.r_[one, 0]) == "positive of 1 patients, of 2 that it takes"
    assert every(truth, score, clusters)["specificity"].low > 0
    nobody = every(*made(6)[:1], np.zeros(80), np.arange(80))["kappa"]
    assert nobody.reason == "no interval: every study is called negative"
    assert intervals_of({"auroc": 0.5}, Clusters(clusters, asked=False), np.arange(49), truth, score > 0, score) == {}


def test_kappa_of_two_classes_and_of_its_own_table_agree():
    truth, score, clusters = made(7)
    called = (score >= 0.5).astype(int)
    value = sk.cohen_kappa_score(truth, called)
    two, relabelled = kappa(value, truth, called, clusters, 80), kappa(value, 2 * truth, 2 * called, clusters, 80)
    assert (two.low, two.high) == pytest.approx((relabelled.low, relabelled.high))


def part(value, low, high, influence):
    return Interval(value, low, high, None, np.asarray(influence, float), 1e9)


def test_differences_and_means_are_square_and_add_and_what_is_shared_cancels():
    """Newcombe (1998) adds the squares of 56/70 - 48/80 to (0.0524, 0.3339), from Wilson's intervals of both."""

    def wilson(k, n):
        ci = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
        return ci.low, ci.high

    first, second = part(56 / 70, *wilson(56, 70), [1, 0]), part(48 / 80, *wilson(48, 80), [0, 1])
    apart = difference(first, second)
    assert (apart.low, apart.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    both = difference(part(0.8, 0.7, 0.85, [1, 2]), part(0.8, 0.7, 0.85, [1, 2]))
    assert both.high - both.low < 1e-3
    opposite = difference(part(0.8, 0.7, 0.9, [1, 2]), part(0.5, 0.4, 0.6, [-1, -2]))
    assert (opposite.low, opposite.high) == pytest.approx((0.1, 0.5))
    mean = average({"a": first, "b": second})
    reach = np.hypot(first.value - first.low, second.value - second.low) / 2
    assert mean.low == pytest.approx(0.7 - reach)
    assert average({"a": first}) is first
    lacks = Interval(0.5, np.nan, np.nan, "no interval: 3 positive, of 10 that it takes", np.zeros(0))
    assert average({"a": first, "b": lacks}).reason == "no interval: b: 3 positive, of 10 that it takes"
    assert difference(first, lacks).reason == "no interval: 3 positive, of 10 that it takes"


def test_they_hold_the_truth_as_often_as_they_say():
    """A small part of what experiments/intervals simulates: few positives, and patients with several studies."""
    for m, n, auroc, of in ((10, 40, 0.95, None), (10, 110, 0.9, None), (20, 40, 0.8, 3)):
        shift = stats.norm.ppf(auroc) * np.sqrt(2)
        rate = stats.norm.cdf(shift / 2)
        true = {"auroc": auroc, "accuracy": rate, "sensitivity": rate, "specificity": rate}
        held = dict.fromkeys(true, 0)
        for seed in range(200):
            truth, score, clusters = made(seed, m, n, shift, of)
            score = score if of is None else shift * truth + (score - shift * truth) / np.sqrt(0.98)
            values = {"auroc": point(AUROC, truth, score, 0), **dict.fromkeys(list(true)[1:], 0.5)}
            for metric, i in intervals_of(values, Clusters(clusters), np.arange(m + n), truth, score >= shift / 2, score).items():
                held[metric] += i.low <= true[metric] <= i.high
        assert min(held.values()) / 200 > 0.91, (m, n, auroc, held)  # .93 less what 200 may be off
