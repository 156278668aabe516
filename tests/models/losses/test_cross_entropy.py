"""Losses by hand, by identity, and the one denominator."""

from __future__ import annotations

from decimal import Decimal, getcontext

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from xraylab.errors import UserError
from xraylab.models.losses.cross_entropy import CrossEntropy, TwoSoftmax, WeightedBCE

NAN = float("nan")


def bce(balance="label", labels=None, **options):
    loss = WeightedBCE(balance, **options)
    loss.build(2)
    loss.fit(np.array([[1, 0], [0, 0], [0, 1], [0, 1], [0, 0]]) if labels is None else labels, ["a", "b"])
    return loss.double()


def test_balance_by_label_is_negatives_over_positives():
    assert bce().balance_weights.tolist() == [[[1, 4], [1, 1.5]]]
    assert bce("none").balance_weights.tolist() == [[[1, 1], [1, 1]]]
    assert "a [1, 4]" in bce().describe(["a", "b"])


def test_uncertain_and_blank_labels_are_not_counted_in_the_balance():
    labels = np.array([[1, 0], [0, -1], [-1, 1], [NAN, 0], [0, 1]])
    assert bce(labels=labels).balance_weights.tolist() == [[[1, 2], [1, 1]]]


# MURA's training images, normal and abnormal, as published
MURA_IMAGES = {
    "elbow": (2925, 2006), "finger": (3138, 1968), "forearm": (1164, 661), "hand": (4059, 1484), "humerus": (673, 599),
    "shoulder": (4211, 4168), "wrist": (5765, 3987),
}  # fmt: skip


def test_balance_by_group_is_the_papers_on_the_published_counts():
    loss = WeightedBCE("group")
    loss.build(1, len(MURA_IMAGES))
    labels = np.concatenate([np.repeat([0.0, 1.0], pair) for pair in MURA_IMAGES.values()])[:, None]
    groups = np.concatenate([np.full(sum(pair), g) for g, pair in enumerate(MURA_IMAGES.values())])
    loss.fit(labels, ["abnormal"], groups)
    for row, (normal, abnormal) in zip(loss.balance_weights, MURA_IMAGES.values(), strict=False):
        # w_T,0 = |A_T| / (|A_T| + |N_T|) of normal images, w_T,1 = |N_T| / (|A_T| + |N_T|) of abnormal ones
        expected = [[abnormal / (abnormal + normal), normal / (abnormal + normal)]]
        torch.testing.assert_close(row, torch.tensor(expected))
    # by hand: an abnormal elbow and a normal wrist at logit 0, and a study of a part that train does not have
    w = (2925 / 4931, 3987 / 9752, 1.0)
    found = loss(torch.zeros(3, 1), torch.tensor([[1.0], [0.0], [1.0]]), group=torch.tensor([0, 6, -1]))
    assert found.item() == pytest.approx(np.log(2) * sum(w) / 3)
    assert "elbow abnormal [0.407, 0.593]" in loss.describe(["abnormal"], list(MURA_IMAGES))


def test_a_group_without_a_class_keeps_the_formula_and_is_named(caplog):
    loss = WeightedBCE("group")
    loss.build(1, 3)
    loss.fit(np.array([[1.0], [0.0], [0.0], [-1.0]]), ["a"], np.array([0, 0, 1, 2]), "images", ["elbow", "hand", "wrist"])
    assert loss.balance_weights[:, 0].tolist() == [[0.5, 0.5], [0, 1], [0, 0], [1, 1]]
    assert "images of one class weigh 0 for a: hand (1 negative, 0 positive), wrist (0 negative, 0 positive)" in caplog.text
    with pytest.raises(UserError, match="no group has both classes of a in train"):
        loss.fit(np.array([[1.0], [0.0], [0.0]]), ["a"], np.array([0, 1, 2]))


def test_keras_weights_are_sklearns_balanced_and_inverse_is_one_over_prevalence():
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.repeat([0.0, 1.0], [70, 30])[:, None]
    for balance, factor in (("keras", 1), ("inverse", 2)):
        loss = WeightedBCE(balance)
        loss.build(1)
        loss.fit(labels, ["a"])
        expected = compute_class_weight("balanced", classes=np.array([0.0, 1.0]), y=labels[:, 0]) * factor
        np.testing.assert_allclose(loss.balance_weights[0, 0], expected, rtol=1e-6)


def test_two_softmax_outputs_are_torchs_cross_entropy():
    loss = TwoSoftmax(label_smoothing=0.1)
    loss.build(2)
    logits, labels = torch.randn(5, 4, dtype=torch.double), torch.randint(0, 2, (5, 2)).double()
    expected = cross_entropy(logits.view(10, 2), labels.long().view(10), label_smoothing=0.1)
    torch.testing.assert_close(loss.double()(logits, labels), expected)
    torch.testing.assert_close(loss.probabilities(logits), logits.view(5, 2, 2).softmax(2)[..., 1])
    assert loss.outputs(2) == 4


def test_the_formula_by_hand():
    logits = torch.tensor([[0.3, -1.0], [2.0, 0.5]], dtype=torch.double)
    labels = torch.tensor([[1.0, 0.0], [NAN, -1.0]], dtype=torch.double)
    expected = (4 * np.log1p(np.exp(-0.3)) + np.log1p(np.exp(-1.0))) / 2
    assert bce()(logits, labels).item() == pytest.approx(expected)
    assert bce()(logits, labels, n=5).item() == pytest.approx(expected * 2 / 5)


def test_without_balance_it_is_torchs():
    logits, labels = torch.randn(6, 2, dtype=torch.double), torch.randint(0, 2, (6, 2)).double()
    torch.testing.assert_close(bce("none")(logits, labels), binary_cross_entropy_with_logits(logits, labels))
    smoothed = bce("none", label_smoothing=0.2)
    torch.testing.assert_close(smoothed(logits, labels), binary_cross_entropy_with_logits(logits, labels * 0.8 + 0.1))
    torch.testing.assert_close(smoothed.certain(logits, labels) / 12, binary_cross_entropy_with_logits(logits, labels))


def test_nothing_scored_is_zero_with_zero_gradient():
    logits = torch.randn(3, 2, dtype=torch.double, requires_grad=True)
    loss = bce()(logits, torch.full((3, 2), NAN, dtype=torch.double))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().sum() == 0


def test_balance_changes_the_gradient_at_one_study_a_step():
    gradients = []
    for balance in ("label", "none"):
        logits = torch.zeros(1, 2, dtype=torch.double, requires_grad=True)
        bce(balance)(logits, torch.tensor([[1.0, 1.0]], dtype=torch.double)).backward()
        gradients.append(logits.grad)
    torch.testing.assert_close(gradients[0] / gradients[1], torch.tensor([[4.0, 1.5]], dtype=torch.double))


@pytest.mark.parametrize("pieces", [1, 2, 4, 8])
def test_a_step_does_not_depend_on_how_it_is_cut(pieces):
    torch.manual_seed(0)
    x, labels = torch.randn(8, 3, dtype=torch.double), torch.randint(0, 2, (8, 2)).double()
    labels[2, 0], labels[5, 1] = NAN, -1
    model = torch.nn.Linear(3, 2).double()
    loss = bce()
    loss(model(x), labels).backward()
    whole = model.weight.grad.clone()
    model.zero_grad()
    for part_x, part_y in zip(x.chunk(pieces), labels.chunk(pieces), strict=True):
        loss(model(part_x), part_y, n=14).backward()
    torch.testing.assert_close(model.weight.grad, whole)


@pytest.mark.parametrize("column", [0, 1])
def test_a_label_of_one_class_cannot_be_learned(column):
    labels = np.zeros((4, 2))
    labels[0, 1 - column] = 1
    with pytest.raises(UserError, match=rf"only one class of {'ab'[column]} \(0 positive, 4 negative\)"):
        bce(labels=labels)


def test_cross_entropy_is_torchs_and_sums_to_one():
    loss = CrossEntropy()
    loss.build(3)
    truth = torch.tensor([0, 2, 1, 2])
    labels, logits = torch.eye(3, dtype=torch.double)[truth], torch.randn(4, 3, dtype=torch.double)
    torch.testing.assert_close(loss.double()(logits, labels), cross_entropy(logits, truth))
    torch.testing.assert_close(loss.probabilities(logits).sum(1), torch.ones(4, dtype=torch.double))
    balanced = CrossEntropy("label")
    balanced.build(3)
    balanced.fit(labels.numpy(), ["a", "b", "c"])
    torch.testing.assert_close(balanced.balance_weights[0, :, 1], torch.tensor([4 / 3, 4 / 3, 2 / 3]))
    smoothed = CrossEntropy(label_smoothing=0.1)
    smoothed.build(3)
    torch.testing.assert_close(smoothed.double()(logits, labels), cross_entropy(logits, truth, label_smoothing=0.1))


def test_wrong_options_are_refused():
    with pytest.raises(UserError, match=r"loss.balance"):
        WeightedBCE("lable")
    with pytest.raises(UserError, match="label_smoothing"):
        WeightedBCE(label_smoothing=1.0)


@pytest.mark.parametrize("apart", [1.0, 30.0, 700.0, 3e4])
def test_log_odds_are_exact_where_probabilities_round_to_0_and_1(apart):
    """Of each output against all others, by decimals of 60 digits; the softmax itself where it can be told from 0 and 1."""
    x = torch.randn(6, 5, dtype=torch.double, generator=torch.Generator().manual_seed(0)) * apart
    x[0, 1] = x[0, 2]  # two largest
    loss = CrossEntropy()
    loss.build(5)
    found = loss.log_odds(x)
    getcontext().prec = 60
    for row, of_row in zip(x.tolist(), found.tolist(), strict=True):
        powers = [Decimal(v).exp() for v in row]
        for k, z in enumerate(of_row):
            exact = (powers[k] / (sum(powers) - powers[k])).ln() if apart < 100 else Decimal(row[k]) - _log_sum(row, k)
            assert z == pytest.approx(float(exact), rel=1e-12, abs=1e-12)
    torch.testing.assert_close(loss.probabilities(x), x.softmax(1), rtol=1e-9, atol=0)
    two = TwoSoftmax()
    two.build(2)
    assert two.log_odds(torch.tensor([[0.0, 900.0, 500.0, -400.0]])).tolist() == [[900.0, -900.0]]


def _log_sum(row, k):
    """log of the sum of exp of all but the k-th, which float64 cannot hold."""
    rest = [Decimal(v) for i, v in enumerate(row) if i != k]
    return max(rest) + sum((v - max(rest)).exp() for v in rest).ln()
