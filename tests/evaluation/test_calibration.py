"""Calibration against its definitions, and temperatures against likelihood."""

from __future__ import annotations

from decimal import Decimal, getcontext

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from sklearn.metrics import brier_score_loss, log_loss

from xraylab.evaluation.calibration import calibration, fit_temperature, scaled
from xraylab.evaluation.probabilities import logit, mean_logit


def made(seed, n=4000, sureness=1.0):
    rng = np.random.default_rng(seed)
    p = rng.beta(0.8, 1.2, n)
    return (rng.random(n) < p).astype(int), scaled(logit(p), 1 / sureness)


def test_the_errors_are_their_definitions():
    y, p = made(0, 500)
    out = calibration(y, p)
    assert out["brier"]["value"] == pytest.approx(brier_score_loss(y, p), abs=1e-15)
    expected = 0.0
    for k in range(15):
        part = (p >= k / 15) & ((p < (k + 1) / 15) | (k == 14))
        if part.any():
            expected += part.sum() / 500 * abs(p[part].mean() - y[part].mean())
    assert out["ece"]["value"] == pytest.approx(expected, abs=1e-12)
    assert sum(b["n"] for b in out["bins"]) == out["n"] == 500
    assert calibration(np.array([1, 0]), np.array([1.0, 0.0]))["ece"]["value"] == 0
    assert calibration(np.array([0, 1]), np.array([1.0, 0.0]))["ece"]["value"] == 1


def test_the_parts_of_the_brier_score_add_up_and_mean_what_they_say():
    for seed, sureness in ((0, 1.0), (1, 3.0)):
        y, p = made(seed, sureness=sureness)
        out = calibration(y, p)
        parts = out["parts"]
        total = parts["miscalibration"] - parts["discrimination"] + parts["uncertainty"]
        assert out["brier"]["value"] == pytest.approx(total, abs=1e-12)
        assert min(parts.values()) >= 0
        assert (parts["miscalibration"] < 0.005) == (sureness == 1.0)
    constant = calibration(y, np.full(len(y), y.mean()))["parts"]
    assert constant["miscalibration"] == pytest.approx(0, abs=1e-12)
    assert constant["discrimination"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("sureness", [0.5, 1.0, 4.0])
def test_the_temperature_is_that_of_least_log_loss_and_undoes_what_was_done(sureness):
    y, p = made(2, 20000, sureness)
    z = logit(p)
    t = fit_temperature(y, z)["value"]
    reference = minimize_scalar(lambda x: log_loss(y, scaled(z, x)), bounds=(0.05, 20), method="bounded", options={"xatol": 1e-9})
    assert t == pytest.approx(reference.x, rel=1e-5)
    assert t == pytest.approx(sureness, rel=0.05)
    after = scaled(z, t)
    assert (np.diff(after[np.argsort(p)]) >= 0).all(), "the ranking stays"
    assert calibration(y, after)["ece"]["value"] < 0.02


def test_a_temperature_that_does_not_exist_says_why():
    y = np.array([0, 0, 1, 1])
    assert "wrong side of 0.5" in fit_temperature(y, logit(np.array([0.1, 0.2, 0.7, 0.9])))["reason"]
    assert "0.5 for every study" in fit_temperature(y, logit(np.array([0.9, 0.8, 0.2, 0.3])))["reason"]
    assert "one class" in fit_temperature(np.zeros(3, int), logit(np.array([0.1, 0.2, 0.7])))["reason"]


def test_certain_probabilities_stay_finite():
    assert np.isfinite(logit(np.array([0.0, 1.0]))).all()
    y, p = np.array([0, 1, 1, 0, 1]), np.array([0.0, 1.0, 0.0, 0.3, 0.8])
    assert fit_temperature(y, logit(p))["value"] > 1, "one certain mistake makes a model less sure"


def test_probabilities_that_are_all_but_equal_are_told_apart_in_the_parts():
    """All are in order, so nothing but their size is wrong."""
    p, truth = np.array([1e-310, 2e-310, 3e-310, 1 - 1e-16]), np.array([0, 1, 1, 1])
    parts = calibration(truth, p)["parts"]
    assert parts["discrimination"] == pytest.approx(parts["uncertainty"])
    assert parts["miscalibration"] == pytest.approx(np.mean((p - truth) ** 2))


def test_logits_of_probabilities_and_of_their_means_keep_their_order_near_0_and_1():
    """Against decimals of 400 digits; exact 0 and 1 count as the farthest that is known."""
    getcontext().prec = 400
    p = np.array([0.0, 1e-300, 2e-10, 0.3, 1 - 2**-40, 1.0])
    z = logit(p)
    assert z[1:5].tolist() == pytest.approx([float((Decimal(v) / (1 - Decimal(v))).ln()) for v in p[1:5].tolist()], rel=1e-14)
    assert (z[0], z[5]) == (z[1], z[4])
    assert logit(np.array([0.0, 0.4, 1.0])).tolist() == pytest.approx([-25 * np.log(2), np.log(2 / 3), 25 * np.log(2)])
    members = np.array([[-120.0, 40.0, 700.0, -3.0, 0.0], [-100.0, 45.0, -700.0, 2.0, 0.0], [-90.0, 60.0, 500.0, 1.0, -800.0]])
    found = mean_logit(members.ravel(), np.tile(np.arange(5), 3))
    for column, value in zip(members.T.tolist(), found.tolist(), strict=True):
        mean = sum(1 / (1 + Decimal(-v).exp()) for v in column) / 3
        other = sum(1 / (1 + Decimal(v).exp()) for v in column) / 3  # 1 - mean, which 400 digits could lose
        assert value == pytest.approx(float((mean / other).ln()), rel=1e-12, abs=1e-12)


def test_a_temperature_above_what_is_looked_for_is_not_called_worthless():
    rng = np.random.default_rng(0)
    z = rng.normal(0, 1, 400)
    y = (rng.random(400) < 1 / (1 + np.exp(-z))).astype(int)
    assert fit_temperature(y, 60 * z)["value"] == pytest.approx(60 * fit_temperature(y, z)["value"], rel=1e-9)
    assert "above 100" in fit_temperature(y, 3000 * z)["reason"]
