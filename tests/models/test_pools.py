"""One contract for all pools, and the mathematics of each."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from xraylab.models.pools import Attention, MaxFeature, MaxProbability, MeanProbability, segment_logmeanexp

POOLS = [MaxFeature, MeanProbability, MaxProbability, Attention]
STUDY = torch.tensor([0, 0, 0, 1, 2, 2])


def made(kind):
    torch.manual_seed(0)
    pool, head = kind().double(), nn.Linear(5, 2).double()
    pool.build(5)
    return pool.double(), head, torch.randn(6, 5, dtype=torch.double)


@pytest.mark.parametrize("kind", POOLS)
def test_order_of_images_does_not_matter(kind):
    pool, head, x = made(kind)
    shuffled = torch.tensor([2, 0, 1, 3, 5, 4])
    torch.testing.assert_close(pool(x, STUDY, 3, head), pool(x[shuffled], STUDY[shuffled], 3, head))


@pytest.mark.parametrize("kind", POOLS)
def test_a_bag_of_one_is_the_plain_classifier(kind):
    pool, head, x = made(kind)
    torch.testing.assert_close(pool(x, torch.arange(6), 6, head), head(x))


@pytest.mark.parametrize("kind", POOLS)
def test_studies_do_not_see_each_other(kind):
    pool, head, x = made(kind)
    alone = torch.cat([pool(x[s == STUDY], torch.zeros(int((s == STUDY).sum()), dtype=torch.long), 1, head) for s in range(3)])
    torch.testing.assert_close(pool(x, STUDY, 3, head), alone)


@pytest.mark.parametrize("kind", POOLS)
def test_gradients_are_right(kind):
    pool, head, x = made(kind)
    assert torch.autograd.gradcheck(lambda x: pool(x, STUDY, 3, head), x.requires_grad_())
    pool(x, STUDY, 3, head).sum().backward()
    assert all(p.grad is not None for p in pool.parameters())


def test_mean_probability_is_the_logit_of_the_mean():
    pool, head, x = made(MeanProbability)
    mean = torch.stack([torch.sigmoid(head(x[s == STUDY])).mean(0) for s in range(3)])
    torch.testing.assert_close(pool(x, STUDY, 3, head), torch.logit(mean))


@pytest.mark.parametrize("softmax", [2, 4])
def test_mean_probability_of_outputs_that_share_a_softmax(softmax):
    pool, x = MeanProbability(), 30 * torch.randn(6, 4, dtype=torch.double)
    pool.build(4, softmax)
    each = x.view(6, -1, softmax).softmax(2)
    mean = torch.stack([each[s == STUDY].mean(0) for s in range(3)])
    torch.testing.assert_close(pool(x, STUDY, 3, nn.Identity()).view(3, -1, softmax).softmax(2), mean)
    alone = pool(x, torch.arange(6), 6, nn.Identity()).view(6, -1, softmax).softmax(2)
    torch.testing.assert_close(alone, each, msg="a bag of one is the plain classifier")


@pytest.mark.parametrize("softmax", [2, 3])
def test_max_probability_of_outputs_that_share_a_softmax_takes_those_of_the_likeliest_image(softmax):
    pool, x = MaxProbability(), torch.randn(6, 4 * softmax, dtype=torch.double)
    x[1, :softmax] = x[0, :softmax] = 9 * torch.eye(softmax, dtype=torch.double)[1]  # a tie
    pool.build(5, softmax)
    out = pool(x, STUDY, 3, nn.Identity()).view(3, 4, softmax)
    each = x.view(6, 4, softmax)
    positive = (each[..., 1] - each[..., 0]).sigmoid()
    torch.testing.assert_close(
        (out[..., 1] - out[..., 0]).sigmoid(), torch.stack([positive[s == STUDY].amax(0) for s in range(3)])
    )
    for study in range(3):
        rows = each[study == STUDY]
        for label in range(4):
            assert any(torch.equal(out[study, label], row[label]) for row in rows)
    torch.testing.assert_close(pool(x, torch.arange(6), 6, nn.Identity()), x, msg="a bag of one is the plain classifier")
    assert torch.autograd.gradcheck(lambda x: pool(x, STUDY, 3, nn.Identity()), torch.randn_like(x).requires_grad_())
    diverged = pool(torch.full_like(x, float("nan")), STUDY, 3, nn.Identity())
    assert diverged.isnan().all()


def test_mean_probability_is_finite_where_the_naive_form_overflows():
    x = torch.tensor([[1000.0], [-1000.0], [1000.0], [-1000.0]], requires_grad=True)
    logits = MeanProbability()(x, torch.tensor([0, 0, 1, 2]), 3, nn.Identity())
    torch.testing.assert_close(logits.flatten(), torch.tensor([0.0, 1000.0, -1000.0]), atol=1e-3, rtol=0)
    logits.sum().backward()
    assert torch.isfinite(x.grad).all()


def test_max_pools_take_the_largest():
    pool, head, x = made(MaxFeature)
    torch.testing.assert_close(pool(x, STUDY, 3, head)[0], head(x[:3].amax(0)))
    torch.testing.assert_close(MaxProbability()(x, STUDY, 3, head)[2], head(x[4:]).amax(0))


def test_logmeanexp_against_torch():
    x = torch.randn(6, 3, dtype=torch.double)
    expected = torch.stack([x[s == STUDY].logsumexp(0) - (s == STUDY).sum().double().log() for s in range(3)])
    torch.testing.assert_close(segment_logmeanexp(x, STUDY, 3), expected)


def test_attention_weights_sum_to_one():
    pool, _, x = made(Attention)
    weights = pool.weights(x * 100, STUDY, 3)
    torch.testing.assert_close(
        torch.zeros(3, 1, dtype=torch.double).index_add(0, STUDY, weights), torch.ones(3, 1, dtype=torch.double)
    )


@pytest.mark.parametrize("softmax", [1, 2])
@pytest.mark.parametrize("kind", POOLS)
def test_blank_images_change_nothing(kind, softmax):
    """They have the row behind the last study's; their features may be anything, also larger than all others."""
    torch.manual_seed(0)
    pool, head = kind().double(), nn.Linear(5, 4).double()
    pool.build(5, softmax)
    pool.double()

    def of(blank):
        x = torch.cat([X, 100 + torch.randn(blank, 5, dtype=torch.double)]).requires_grad_()
        out = pool(x, torch.cat([STUDY, torch.full((blank,), 3)]), 3, head)
        parameters = [*pool.parameters(), *head.parameters()]
        return out, *torch.autograd.grad((out * torch.arange(12).view(3, 4)).sum(), [*parameters, x])

    X = torch.randn(6, 5, dtype=torch.double)
    *without, gradient = of(0)
    assert all(value.isfinite().all() for value in without), "the row of blank images is empty here"
    for blank in (1, 4):
        *filled, of_x = of(blank)
        torch.testing.assert_close(filled, without, rtol=0, atol=1e-12)
        torch.testing.assert_close(of_x[:6], gradient, rtol=0, atol=1e-12)
        assert (of_x[6:] == 0).all()
