"""Policies for uncertain labels: by their formulas, by identity with plain losses, and by what they learn."""

from __future__ import annotations

import importlib

import mpmath
import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.nn.functional import cross_entropy

from xraylab.data.images.source import ArraySource
from xraylab.data.study_table import StudyTable
from xraylab.errors import UserError
from xraylab.models.losses.base import BALANCES, spec
from xraylab.models.losses.cross_entropy import WeightedBCE
from xraylab.models.losses.focal import Asymmetric, Focal
from xraylab.models.losses.multiclass import MultiClass
from xraylab.models.losses.self_trained import SelfTrained
from xraylab.models.losses.uncertain_labels import Uncertainty

NAN = float("nan")
NAMES = ["edema", "fracture", "atelectasis"]


def raw_labels(n=400, seed=0):
    """(n,3) of all four values."""
    return np.random.default_rng(seed).choice([1.0, 0.0, -1.0, NAN], p=[0.3, 0.3, 0.25, 0.15], size=(n, 3))


LABELS = torch.from_numpy(raw_labels())
LOGITS = torch.from_numpy(np.random.default_rng(1).normal(0, 2, (400, 3)))


def made(kind=Uncertainty, labels=None, **options):
    loss = kind(**options)
    loss.build(3)
    loss.fit(raw_labels() if labels is None else labels, NAMES)
    return loss.double()


def with_gradient(loss, labels=LABELS, logits=LOGITS, **more):
    x = logits.clone().requires_grad_()
    value = loss(x, labels, **more)
    return value.detach(), torch.autograd.grad(value, x)[0]


def same(a, b):
    for found, expected in zip(a, b, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_the_tutorials_loss_by_its_formula():
    """Sum of w * l(y, u) for uncertain and l(y, t) for certain labels, unmentioned ones negative, over batch x findings."""
    x, y = LOGITS, LABELS
    total = 0.0
    for i in range(len(x)):
        for k in range(3):
            p = 1 / (1 + np.exp(-x[i, k].item()))
            t = y[i, k].item()
            u, w = (0.4, 0.75) if t == -1 else (0.0 if np.isnan(t) else t, 1.0)
            total += w * -(u * np.log(p) + (1 - u) * np.log(1 - p))
    loss = made(u=0.4, w=0.75, reduction="all")
    assert loss(x, y).item() == pytest.approx(total / (400 * 3), rel=1e-6)  # w=.75 is exact, u=.4 is float32
    assert loss.scored(y).sum() == 1200


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("blank", ["negative", "ignore"])
@pytest.mark.parametrize(("u", "w", "as_label"), [(0.0, 1.0, 0.0), (1.0, 1.0, 1.0), (0.3, 0.0, NAN)])
def test_zeros_ones_and_ignore_are_the_plain_loss_on_relabelled_data(u, w, as_label, blank, balance, smoothing):
    relabelled = raw_labels()
    relabelled[relabelled == -1] = as_label
    if blank == "negative":
        relabelled[np.isnan(raw_labels())] = 0.0
        if np.isnan(as_label):
            relabelled[raw_labels() == -1] = NAN
    groups = np.arange(400) % 2
    losses = []
    for kind, labels, options in (
        (Uncertainty, raw_labels(), {"u": u, "w": w, "blank": blank}), (WeightedBCE, relabelled, {})
    ):  # fmt: skip
        loss = kind(balance=balance, label_smoothing=smoothing, **options)
        loss.build(3, 2)
        loss.fit(labels, NAMES, groups)
        losses.append((loss.double(), torch.from_numpy(labels)))
    group = torch.from_numpy(groups)
    same(*(with_gradient(loss, labels, group=group) for loss, labels in losses))


def test_gradients_of_each_kind_of_label_are_their_formulas():
    """dl/dx = p - t; an uncertain label w * (p - u), a blank one its weight * p; over the labels that weigh anything."""
    loss = made(u={"edema": 0.2, "default": 0.9}, w={"fracture": 0.0, "default": 0.5}, blank=0.25)
    p = torch.sigmoid(LOGITS)
    u = torch.tensor([0.2, 0.9, 0.9]).double()
    w = torch.tensor([0.5, 0.0, 0.5]).double()
    uncertain, blank = LABELS == -1, torch.isnan(LABELS)
    gradient = torch.where(uncertain, w * (p - u), torch.where(blank, 0.25 * p, p - LABELS.nan_to_num()))
    n = 1200 - (uncertain[:, 1]).sum()
    assert loss.scored(LABELS).sum() == n
    _, found = with_gradient(loss)
    torch.testing.assert_close(found, gradient / n, rtol=1e-6, atol=1e-9)  # u and w are float32


def test_class_balance_counts_targets_and_weights():
    labels = np.array([[1, 1, 1], [0, 0, 0], [-1, 0, 0], [-1, 1, 1], [NAN, NAN, 0]])
    loss = made(labels=labels, u=0.25, w=0.5, blank=0.5, balance="label")
    # edema: positives 1 + 2 * .5 * .25 = 1.25, negatives 1 + 2 * .5 * .75 + .5 = 2.25
    assert loss.balance_weights[0].tolist() == pytest.approx(np.array([[1, 2.25 / 1.25], [1, 1.25], [1, 1.5]]))
    x = torch.tensor([[0.3, 0, 0]]).double()
    found = loss(x, torch.tensor([[-1.0, NAN, NAN]]).double(), n=1)
    by_hand = 0.5 * (1.8 * 0.25 * np.log1p(np.exp(-0.3)) + 0.75 * np.log1p(np.exp(0.3))) + 2 * 0.5 * np.log(2)
    assert found.item() == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("kind", [Uncertainty, Focal, Asymmetric, MultiClass])
def test_a_batch_without_a_scored_label_has_loss_0_and_gradient_0(kind):
    loss = made(kind, w=0.0, blank="ignore")
    logits = torch.randn(4, loss.outputs(3), dtype=torch.float64)
    labels = torch.tensor([[-1.0, NAN, -1.0]]).double().expand(4, 3)
    value, gradient = with_gradient(loss, labels, logits)
    assert value == 0
    assert not gradient.any()


def test_a_step_does_not_depend_on_how_it_is_cut():
    for loss in (made(u=0.4, w=0.75), made(MultiClass), made(Focal, u=0.3), made(u="learned")):
        logits = torch.from_numpy(np.random.default_rng(2).normal(size=(400, loss.outputs(3))))
        n = loss.scored(LABELS).sum()
        parts = [with_gradient(loss, LABELS[i : i + 50], logits[i : i + 50], n=n) for i in range(0, 400, 50)]
        same((sum(p[0] for p in parts), torch.cat([p[1] for p in parts])), with_gradient(loss, LABELS, logits))


# ---- ranges, and values by finding ----------------------------------------------------------------------------------


def table_of(labels, images=None):
    n = len(labels)
    frame = pd.DataFrame({"id": [f"s{i}" for i in range(n)], "patient": "", "group": "ap", "split": "train"})
    frame["images"] = [tuple(f"{i}:{k}" for k in range(1 if images is None else images[i])) for i in range(n)]
    frame[NAMES] = labels.astype(np.float32)
    return StudyTable(frame, tuple(NAMES), ArraySource({}, False), "chest", views=True)


def test_a_range_is_drawn_once_a_label_and_shared_by_the_images_of_a_study():
    labels = np.full((3000, 3), -1.0)
    labels[:2] = [[1, 1, 1], [0, 0, 0]]
    loss = made(labels=labels, u={"edema": [0.55, 0.85], "fracture": [0.0, 0.3], "default": 0.5}, seed=3)
    table = table_of(labels, images=np.tile([1, 2, 3], 1000))
    loss.attach(table)
    raw, rows = torch.from_numpy(labels), torch.arange(3000)
    target, weight = loss.targets(raw, rows)
    assert (target[0] == 1).all()
    assert (target[1] == 0).all()
    assert (weight == 1).all()
    drawn = target[2:].numpy()
    for k, (low, high) in enumerate([(0.55, 0.85), (0.0, 0.3)]):
        assert low <= drawn[:, k].min() < low + 0.01
        assert high - 0.01 < drawn[:, k].max() <= high
        assert drawn[:, k].mean() == pytest.approx((low + high) / 2, abs=0.01)
        assert len(np.unique(drawn[:, k])) > 2900
    assert (drawn[:, 2] == 0.5).all()
    again = loss.targets(raw[100:105], rows[100:105])[0]
    assert torch.equal(again, target[100:105])  # whatever the batch, epoch or resumption
    images = made(labels=labels, u={"edema": [0.55, 0.85], "fracture": [0.0, 0.3], "default": 0.5}, seed=3)
    images.attach(table.by_image())
    by_image = images.targets(raw.repeat_interleave(torch.arange(3000) % 3 + 1, 0), torch.arange(6000))[0]
    assert torch.equal(by_image, target.repeat_interleave(torch.arange(3000) % 3 + 1, 0))
    with pytest.raises(UserError, match=r"call attach\(table\), and pass rows"):
        loss(torch.zeros(5, 3).double(), raw[:5])


def test_findings_are_named_in_any_spelling_and_mistakes_are_said():
    loss = made(u={"Atelectasis": 1.0, "default": 0.0}, w={"edema": 0.5, "fracture": 0, "atelectasis": 2, "hernia": 9})
    assert loss.low.tolist() == [0, 0, 1]
    assert loss.w.tolist() == [0.5, 0, 2]  # hernia is a finding, but not one that was chosen
    assert "u=edema 0, fracture 0, atelectasis 1, w=edema 0.5, fracture 0, atelectasis 2" in loss.describe(NAMES)
    for options, message in (
        ({"u": {"edemma": 1.0, "default": 0}}, "loss.u.edemma: there is no such label. Did you mean edema?"),
        ({"w": {"edema": 1.0}}, "loss.w: no value for fracture, atelectasis. Give them, or one for all others"),
        ({"u": 1.2}, "loss.u=1.2: targets are 0 to 1"),
        ({"u": [0.8, 0.2]}, "targets are 0 to 1, the lower first"),
        ({"u": "learnt"}, "loss.u=learnt: it is a number, .low, high. or learned"),
        ({"w": "learned"}, "loss.w=learned: it is a number, a number by finding, or adapted"),
        ({"w": -1}, "a weight is at least 0"),
        ({"w": True}, "loss.w=True: it is a number"),
        ({"blank": "positive"}, "loss.blank=positive: it is negative, ignore or a weight"),
        ({"reduction": "mean"}, "loss.reduction=mean: it is scored or all"),
        ({"u_start": 0.0}, "loss.u_start=0.0: it is above 0"),
        ({"held_back": 1.0}, "loss.held_back=1.0"),
        ({"u": "learned", "balance": "group"}, "loss.u=learned goes with loss.balance=none"),
        ({"u": "learned", "label_smoothing": 0.1}, "without label_smoothing"),
        ({"kind": Focal, "u": "learned"}, "loss=focal: its outputs are no probabilities to learn u from"),
        ({"kind": Asymmetric, "u": "learned"}, "loss=asymmetric"),
        ({"kind": SelfTrained, "w": "adapted"}, "loss=selftrained: the first model gives the targets u"),
    ):
        with pytest.raises(UserError, match=message):
            made(**options)


def test_a_finding_of_one_class_is_named_and_refused_where_it_is_all_or_must_be_balanced(caplog):
    labels = np.array([[1, 1, 0], [NAN, 0, 1]])
    made(labels=labels, blank="ignore")
    assert "of studies in train, there is only one class of edema (1 positive, 0 negative)" in caplog.text
    with pytest.raises(UserError, match=r"only one class of edema .* \(loss.blank=negative\), or choose another split"):
        made(labels=labels, blank="ignore", balance="label")
    with pytest.raises(UserError, match="there is nothing to learn"):
        made(labels=np.ones((5, 3)))
    made(labels=labels, balance="label")


# ---- other curves and outputs ---------------------------------------------------------------------------------------


def test_focal_loss_is_its_formula_and_at_gamma_0_cross_entropy():
    same(with_gradient(made(Focal, gamma=0.0, u=0.4, w=0.75)), with_gradient(made(u=0.4, w=0.75)))
    labels = torch.from_numpy(np.random.default_rng(4).integers(0, 2, (400, 3)).astype(float))
    loss = made(Focal, labels=labels.numpy(), gamma=2.0, alpha=0.25)
    p = torch.sigmoid(LOGITS)
    pt, at = torch.where(labels == 1, p, 1 - p), torch.where(labels == 1, 0.25, 0.75)
    assert loss(LOGITS, labels).item() == pytest.approx((-at * (1 - pt) ** 2 * pt.log()).mean().item(), rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), LOGITS.clone().requires_grad_())


def test_asymmetric_loss_is_its_formula_and_without_asymmetry_cross_entropy():
    plain = made(Asymmetric, gamma_pos=0.0, gamma_neg=0.0, margin=0.0, u=0.4)
    same(with_gradient(plain), with_gradient(made(u=0.4)))
    labels = torch.from_numpy(np.random.default_rng(4).integers(0, 2, (400, 3)).astype(float))
    loss = made(Asymmetric, labels=labels.numpy(), gamma_pos=1.0, gamma_neg=4.0, margin=0.05)
    p = torch.sigmoid(LOGITS)
    m = (p - 0.05).clamp(min=0)
    by_hand = torch.where(labels == 1, -(1 - p) * p.log(), -(m**4) * (1 - m).log())
    assert loss(LOGITS, labels).item() == pytest.approx(by_hand.mean().item(), rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), LOGITS.clone().requires_grad_())
    _, gradient = with_gradient(made(Asymmetric, gamma_neg=0.5), torch.zeros(2, 3).double(), torch.full((2, 3), -9.0).double())
    assert not gradient.any()  # below the margin, and not NaN


EXPONENTS = (0.0, 0.25, 0.5, 1.0, 2.0)
EXTREME = [s * x for s in (-1, 1) for x in (0.1, 1, 5, 10, 16, 17, 20, 50, 88, 90, 103, 104, 120, 300, 1e3, 1e4)]


def exact(x, exponent, margin, positive):
    """The loss of a label and its derivative by the logit, from their formulas with 80 digits."""
    with mpmath.workdps(80):
        x = mpmath.mpf(x)
        p, q = 1 / (1 + mpmath.exp(-x)), 1 / (1 + mpmath.exp(x))
        base, rest, rising = (q, p, -1) if positive else (p - margin, q + margin, 1)
        if base <= 0:
            return 0.0, 0.0
        log = mpmath.log(rest) if rest < 0.5 else mpmath.log1p(-base)
        slope = exponent * base ** (exponent - 1) * -log + base**exponent / rest
        return float(base**exponent * -log), float(rising * slope * p * q)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("margin", [None, 0.0, 1e-9, 1e-3, 0.05])
def test_focal_and_asymmetric_losses_have_right_gradients_at_any_logit_and_exponent(dtype, margin):
    near = 1e-9 if dtype == torch.float64 else 1e-4 if dtype == torch.float32 else 1e-2
    for exponent in EXPONENTS:
        loss = Focal(gamma=exponent) if margin is None else Asymmetric(gamma_pos=exponent, gamma_neg=exponent, margin=margin)
        x = torch.tensor([0.0, *EXTREME], dtype=dtype, requires_grad=True)
        for values, positive in zip(loss.curves(x), (True, False), strict=True):
            (slopes,) = torch.autograd.grad(values.sum(), x)
            assert torch.isfinite(torch.cat([values, slopes.to(values.dtype)])).all(), (exponent, positive)
            expected = np.array([exact(v, exponent, margin or 0.0, positive) for v in x.tolist()]).T
            for found, right in zip((values, slopes), expected, strict=True):
                np.testing.assert_allclose(found.detach().double(), right, rtol=near, atol=near / 10)


def test_valid_loss_is_cross_entropy_of_certain_labels_under_every_policy():
    certain = (LABELS == 0) | (LABELS == 1)
    expected = bce(LOGITS, LABELS.nan_to_num(), reduction="none")[certain].sum()
    for loss in (made(u=0.4, label_smoothing=0.2), made(Focal), made(Asymmetric), made(u="learned", w="adapted")):
        torch.testing.assert_close(loss.certain(LOGITS, LABELS), expected)


def test_multiclass_is_the_cross_entropy_of_three_classes_and_drops_the_uncertain_one():
    loss = made(MultiClass, w=1.0)
    x = torch.from_numpy(np.random.default_rng(5).normal(size=(400, 9)))
    classes = torch.where(LABELS == -1, 2, LABELS.nan_to_num()).long()
    same([loss(x, LABELS)], [cross_entropy(x.reshape(1200, 3), classes.reshape(1200))])
    triple = x.reshape(400, 3, 3)
    expected = triple[..., 1].exp() / (triple[..., 0].exp() + triple[..., 1].exp())
    torch.testing.assert_close(loss.probabilities(x), expected)
    weighted = made(MultiClass, w=0.5, blank="ignore", balance="label")
    n = (~torch.isnan(LABELS)).sum()
    by_hand = cross_entropy(x.reshape(1200, 3), classes.reshape(1200), reduction="none").reshape(400, 3)
    p, q = (LABELS == 1).sum(0), (LABELS == 0).sum(0)
    b = torch.where(LABELS == -1, 0.5, torch.where(LABELS == 1, (q / p).double(), 1.0)) * ~torch.isnan(LABELS)
    torch.testing.assert_close(weighted(x, LABELS), (b * by_hand).sum() / n, rtol=1e-6, atol=0)
    with pytest.raises(UserError, match="no target u"):
        MultiClass(u=0.5)


def test_every_loss_is_rebuilt_from_its_checkpoint():
    options = {"blank": 0.5, "balance": "label", "reduction": "all"}
    for loss in (
        Uncertainty(u={"edema": [0, 0.3], "default": 1.0}, w="adapted", **options), Focal(gamma=1.0, u=0.3, **options),
        Asymmetric(margin=0.1, w=0.2, **options), MultiClass(w=0.3, **options), SelfTrained(first="somewhere", **options),
    ):  # fmt: skip
        saved = spec(loss)
        module, _, name = saved["class"].rpartition(".")
        again = getattr(importlib.import_module(module), name)(**saved["arguments"])
        assert spec(again) == saved
        for key, value in options.items():
            assert saved["arguments"][key] == value
        again.build(3)
        loss.build(3)
        again.load_state_dict(loss.state_dict())


# ---- what moves: u by gradient, w every epoch -----------------------------------------------------------------------
