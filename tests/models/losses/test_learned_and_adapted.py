"""A learned u recovers what was planted, and an adapted w keeps what helps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_uncertain_labels import LABELS, LOGITS, NAMES, NAN, made, raw_labels, with_gradient
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from xraylab.models.losses.adaptive_weight import derivatives
from xraylab.models.losses.uncertain_labels import Uncertainty


def planted(rates, n=4000, seed=0, flip=0.1):
    """Features that show the truth but for a share of flips, labels of which 40% are uncertain, true at the given rates."""
    rng = np.random.default_rng(seed)
    shown = rng.random((n, 3)) < 0.4
    uncertain = rng.random((n, 3)) < 0.4
    truth = np.where(uncertain, rng.random((n, 3)) < rates, shown).astype(float)
    seen = np.where(rng.random((n, 3)) < flip, 1 - truth, truth)
    x = torch.from_numpy(2 * seen - 1 + rng.normal(0, 0.1, (n, 3)))
    labels = np.where(uncertain, -1.0, truth)
    return x, torch.from_numpy(labels), truth


def fitted(loss, x, labels, steps=600):
    """A logistic regression trained with the loss, its own parameters at their own rate."""
    torch.manual_seed(0)
    model = nn.Linear(3, 3).double()
    own = list(loss.parameters())
    optimizer = torch.optim.Adam([{"params": model.parameters()}, *([{"params": own, "lr": loss.lr}] if own else [])], lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model(x), labels).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("balance", ["none", "label"])
@pytest.mark.parametrize(("w", "flip"), [(0.1, 0.05), (0.1, 0.2), (1.0, 0.1), (1.0, 0.3)])
def test_a_learned_u_recovers_the_planted_rate_of_each_finding(w, flip, balance):
    """Where images show the truth of 19 to 7 in ten, and certain labels are positive at another rate, .4."""
    x, labels, truth = planted([0.2, 0.5, 0.85], n=8000, flip=flip)
    loss = made(labels=labels.numpy(), u="learned", w=w, balance=balance)
    fitted(loss, x, labels)
    u = [loss.state(NAMES)[f"u/{name}"] for name in NAMES]
    assert u == pytest.approx([truth[labels[:, k].numpy() == -1, k].mean() for k in range(3)], abs=0.05)


@pytest.mark.parametrize(("apart", "uncertain", "certain_rate", "planted_u"), [(1.5, 0.5, 0.3, 0.6), (1.5, 0.68, 0.68, 0.4)])
@pytest.mark.parametrize("w", [0.1, 1.0])
def test_the_fixed_point_of_a_learned_u_is_the_planted_rate_for_weak_images(apart, uncertain, certain_rate, planted_u, w):
    """Without sampling: two unit normals, the model that fits exactly, u moved to the mean of p' again and again."""
    grid = torch.linspace(-8, 8 + apart, 4001, dtype=torch.float64)
    positive, negative = ((-0.5 * (grid - mean) ** 2).exp() for mean in (apart, 0.0))
    loss = Uncertainty(u="learned", w=w)
    loss.build(1)
    loss.double()
    counts = torch.tensor([(1 - uncertain) * (1 - certain_rate), (1 - uncertain) * certain_rate, uncertain])
    loss.counts, loss.w = counts.double()[:, None], torch.tensor([w]).double()
    of_uncertain = planted_u * positive + (1 - planted_u) * negative
    u = 0.5
    for _ in range(600):
        on_positive = counts[1] * positive + w * uncertain * u * of_uncertain
        on_negative = counts[0] * negative + w * uncertain * (1 - u) * of_uncertain
        with torch.no_grad():
            loss.u_logit.fill_(float(np.log(u / (1 - u))))
        p = loss._positive((on_positive / (on_positive + on_negative))[:, None])[:, 0]
        u = float((p * of_uncertain).sum() / of_uncertain.sum())
    assert u == pytest.approx(planted_u, abs=2e-3)


def test_a_finding_without_a_label_leaves_the_others_of_a_learned_u_as_they_are():
    labels = raw_labels()
    labels[:, 1] = NAN
    for blank, w in (("ignore", 1.0), ("negative", 0.0)):
        loss = made(labels=labels, u="learned", blank=blank, w={"edema": w, "default": 1.0})
        value = loss(LOGITS, torch.from_numpy(labels))
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(loss.u_logit.grad).all()
        assert loss.u_logit.grad[1] == 0
        assert loss.u_logit.grad[2] != 0


def test_the_gradient_of_a_learned_u_is_that_of_the_divergence_and_it_changes_no_value():
    loss, fixed = made(u="learned", u_start=0.3, w=0.6), made(u=0.3, w=0.6)
    value, gradient = with_gradient(loss)
    torch.testing.assert_close((value, gradient), with_gradient(fixed), rtol=1e-6, atol=1e-9)
    loss.zero_grad()
    loss(LOGITS, LABELS).backward()
    uncertain = LABELS == -1
    p = loss._positive(torch.sigmoid(LOGITS))
    by_hand = ((0.3 - p) * uncertain).sum(0) / 1200  # d KL(p' || u) / da = u - p'
    torch.testing.assert_close(loss.u_logit.grad, by_hand, rtol=1e-6, atol=1e-9)
    assert loss.scored(LABELS).sum() == 1200


def batches(model, x, labels, cuts=1):
    """What ``derivatives`` takes: logits and labels of batches."""
    return lambda: ((model(a), b) for a, b in zip(x.chunk(cuts), labels.chunk(cuts), strict=True))


def test_derivatives_are_those_of_autograd_at_the_best_offset_and_the_weights_stay():
    x, labels, _ = planted([0.5] * 3, n=200)
    labels[:, 1] = labels[:, 1].abs()  # a finding without uncertain labels
    loss = made(labels=labels.numpy(), u=0.7, w="adapted")
    model = fitted(loss, x, labels, steps=20)
    before = [p.detach().clone() for p in model.parameters()]
    held, train = (x[:100], labels[:100]), (x[100:], labels[100:])
    found = derivatives(loss, list(model.parameters()), batches(model, *held, cuts=3), batches(model, *train, cuts=2))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert found.shape == (100, 3)
    assert not found[:, 1].any()
    certain = held[1] >= 0
    truth = held[1].clamp(min=0)
    offset = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([offset], max_iter=200, tolerance_grad=1e-10)

    def closure():
        optimizer.zero_grad()
        value = (bce(model(held[0]).detach() + offset, truth, reduction="none") * certain).sum()
        value.backward()
        return value

    optimizer.step(closure)
    parameters = list(model.parameters())
    step = torch.autograd.grad(loss.each(model(train[0]), train[1])[:, 2].sum(), parameters)
    length = torch.cat([g.flatten() for g in step]).norm()
    losses = (bce(model(held[0]) + offset.detach(), truth, reduction="none") * certain).sum(1)
    for i in (0, 7, 50):
        gradient = torch.autograd.grad(losses[i], parameters, retain_graph=True)
        by_hand = -sum((a * b).sum() for a, b in zip(step, gradient, strict=True)) / length
        assert found[i, 2].item() == pytest.approx(by_hand.item(), rel=1e-4, abs=1e-6)


def many_features(rates, certain, seed):
    """Forty features, of which a direction for each finding tells; the certain labels are few."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(99).normal(size=(3, 40))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    n = certain + 1000
    uncertain = np.stack([rng.permutation(n) < 1000 for _ in range(3)], axis=1)
    truth = np.where(uncertain, rng.random((n, 3)) < rates, rng.random((n, 3)) < 0.4).astype(float)
    x = rng.normal(size=(n, 40)) + (2 * truth - 1) @ directions
    return torch.from_numpy(x), torch.from_numpy(np.where(uncertain, -1.0, truth))


@pytest.mark.parametrize("certain", [200, 4000])
def test_an_adapted_w_keeps_uncertain_labels_that_help_and_drops_those_that_mislead(certain):
    """u=1 for findings whose uncertain labels are nearly always, half the time, and nearly never positive.

    The first kind helps where certain labels are few; where they are many, anything may become of it.
    """
    rates = [0.97, 0.5, 0.03]
    x, labels = many_features(rates, certain, 0)
    held_x, held_labels = many_features(rates, 400, 1)
    loss = made(labels=labels.numpy(), u=1.0, w="adapted")
    assert loss.w.tolist() == [0.5] * 3
    torch.manual_seed(0)
    model = nn.Linear(40, 3).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(12):
        for _ in range(60):
            optimizer.zero_grad()
            loss(model(x), labels).backward()
            optimizer.step()
        parameters = list(model.parameters())
        loss.adapt(derivatives(loss, parameters, batches(model, held_x, held_labels), batches(model, x, labels)))
    w = loss.state(NAMES)
    assert w["w/fracture"] < 0.2
    assert w["w/atelectasis"] < 0.2
    assert certain > 200 or w["w/edema"] > 0.8


def test_w_moves_by_the_t_statistic_within_0_and_1():
    loss = made(w="adapted", w_start=0.5, w_rate=0.25)
    d = torch.tensor([[1.0, -1.0, 0.0], [3.0, -1.1, 0.0], [2.0, -0.9, 0.0]]).double()
    loss.adapt(d)
    # edema: mean 2, standard error 1 / sqrt(3); fracture: mean -1, .1 / sqrt(3); atelectasis says nothing
    t = 2 * np.sqrt(3)
    assert loss.w.tolist() == pytest.approx([0.5 - 0.25 * np.tanh(t / 2), 0.5 + 0.25 * np.tanh(5 * np.sqrt(3)), 0.5])
    for _ in range(9):
        loss.adapt(d)
    assert loss.w.tolist() == [0, 1, 0.5]
    loss.adapt(d[:0])
    assert loss.w.tolist() == [0, 1, 0.5]
