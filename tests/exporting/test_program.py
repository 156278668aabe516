"""A study's pictures to its probabilities as one network: losses, pools, parts and combinations, against xraylab's own tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from xraylab.data.preprocessing import prepare
from xraylab.errors import UserError
from xraylab.evaluation.ensembles.combination import CLIPPED, Combination
from xraylab.evaluation.operating_points import decided
from xraylab.exporting.program import Combined, Model, StudyProgram, require_of_pictures
from xraylab.exporting.resizing import fixed_point
from xraylab.losses import CrossEntropy, MultiClass, TwoSoftmax, WeightedBCE
from xraylab.models import CNN, Attention, MaxFeature, MaxProbability, MeanProbability, StudyNet
from xraylab.training.study_module import StudyModule

LABELS = ("acl", "meniscus", "other")
LOSSES = [WeightedBCE, TwoSoftmax, MultiClass, CrossEntropy]
POOLS = [MaxFeature, MeanProbability, MaxProbability, lambda: Attention(4)]


def model(seed: int = 0, loss=WeightedBCE, pool=MaxFeature, labels=LABELS, parts=(), far: float = 1.0, **images) -> StudyModule:
    """A small network whose logits are ``far`` times as large."""
    torch.manual_seed(seed)
    made = loss()
    net = StudyNet(
        CNN(image_size=32, layers=2, filters=4), pool(), made.outputs(len(labels)), softmax=made.softmax(len(labels)), parts=parts
    )
    with torch.no_grad():
        net.head[-1].weight *= 20 * far
    return StudyModule(net, made, labels, {"size": 32, "rescale": True}, images=images).eval()


def study(seed: int, count: int = 4, height: int = 45, width: int = 70) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width), np.uint8)


def asked(program: torch.nn.Module, *pictures: np.ndarray) -> list[np.ndarray]:
    with torch.no_grad():
        return [out.numpy() for out in program(*map(torch.from_numpy, pictures))]


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_and_pool_gives_the_probabilities_of_predict(loss, pool):
    module = model(loss=loss, pool=pool)
    program = StudyProgram(Model(module, (0,), fixed_point()), {})
    for count in (1, 5):
        wanted = module.predict(study(count, count))
        p, z = asked(program, study(count, count))
        assert p.dtype == np.float32
        assert p == pytest.approx(list(wanted.values()), abs=1e-6)
        assert 1 / (1 + np.exp(-z.astype(float))) == pytest.approx(p, abs=1e-6)
    assert max(wanted.values()) - min(wanted.values()) > 0.05, "a network that tells labels apart"


def test_parts_are_inputs_of_their_own():
    module = model(parts=("axial", "coronal"))
    program = StudyProgram(Model(module, (1, 0), fixed_point()), {})
    volumes = {"axial": study(1, 3), "coronal": study(2, 5, 60, 33)}
    (p, _) = asked(program, volumes["coronal"], volumes["axial"])
    assert p == pytest.approx(list(module.predict(volumes).values()), abs=1e-6)


@pytest.mark.parametrize(("images", "together"), [({}, True), ({"views": True}, False), ({"volumes": False}, False)])
def test_views_are_stretched_alone_as_their_files_are_read(images, together):
    module = model(**images)
    given = study(0)
    given[1:] //= 3
    (p, _) = asked(StudyProgram(Model(module, (0,), fixed_point()), {}), given)
    other = list(module.predict(list(given) if together else given).values())
    assert p == pytest.approx(list(module.predict(given if together else list(given)).values()), abs=1e-6)
    assert p != pytest.approx(other, abs=1e-4)


def test_a_temperature_divides_the_log_odds_and_leaves_logits_as_they_were():
    module = model()
    module.operating = {"labels": {label: {"temperature": {"value": 1.5 + k}} for k, label in enumerate(LABELS)}}
    temperatures = {label: 1.5 + k for k, label in enumerate(LABELS)}
    p, z = asked(StudyProgram(Model(module, (0,), fixed_point()), temperatures), study(0))
    plain, same = asked(StudyProgram(Model(module, (0,), fixed_point()), {}), study(0))
    assert p == pytest.approx(list(module.predict(study(0), calibrate=True).values()), abs=1e-6)
    assert z.tolist() == same.tolist()
    assert np.abs(p - plain).max() > 0.01


def table(module: StudyModule, images: np.ndarray) -> pd.DataFrame:
    """What a member predicts of one study."""
    p = module.predict(images)
    with torch.no_grad():
        prepared = torch.from_numpy(prepare(images, **module.preprocessing))[:, None]
        (logits,) = module.log_odds(module.net(prepared, torch.zeros(len(prepared), dtype=torch.int64), 1))
    z = {f"logit_{label}": [logit] for label, logit in zip(p, logits, strict=True)}
    return pd.DataFrame({"id": ["s"], "patient": "", "group": "g", "split": "test", **{f"p_{k}": [v] for k, v in p.items()}, **z})


FIT = {
    "acl": {"intercept": -0.3, "coefficients": {"a": 0.7, "b": 0.4}, "n": 9, "positives": 4, "reason": None},
    "meniscus": {"intercept": None, "coefficients": None, "n": 9, "positives": 0, "reason": "no positive study"},
    "other": {"intercept": 0.1, "coefficients": {"a": -0.2, "b": 1.1}, "n": 9, "positives": 4, "reason": None},
}
BEST = {"acl": {"member": "b"}, "meniscus": {"member": "a"}, "other": {"member": "b"}}


@pytest.mark.parametrize(
    "combination",
    [
        Combination("mean", ("a", "b")),
        Combination("stack", ("a", "b"), labels=FIT),
        Combination("stack", ("a", "b"), labels=FIT, inputs=CLIPPED),
        Combination("best", ("a", "b"), chosen=BEST),
        Combination("vote", ("a", "b")),
    ],
    ids=["mean", "stack", "clipped", "best", "vote"],
)
def test_a_combination_is_what_its_tables_would_be(combination):
    far = 30.0 if combination.inputs == CLIPPED else 1.0
    members = [model(1, far=far), model(2, labels=("other", "acl", "meniscus"))]  # in another order
    program = StudyProgram(Combined(combination, [Model(m, (0,), fixed_point()) for m in members]), {})
    for seed in range(3):
        wanted = combination.join([table(m, study(seed)) for m in members])
        p, *z = asked(program, study(seed))
        assert p == pytest.approx(wanted[[f"p_{label}" for label in LABELS]].to_numpy()[0], abs=1e-6)
        assert bool(z) is (combination.method != "vote")
        if z:
            assert z[0] == pytest.approx(wanted[[f"logit_{label}" for label in LABELS]].to_numpy(float)[0], abs=1e-4)


def test_a_combination_of_combinations_of_planes_is_calibrated_as_its_table():
    mean, stack = Combination("mean", ("a", "b")), Combination("stack", ("a", "b"), labels=FIT)
    a, b, c = model(1), model(2), model(3)
    inner = Combined(mean, [Model(a, (0,), fixed_point()), Model(b, (1,), fixed_point())])
    temperatures = {"acl": 2.0, "meniscus": 0.5, "other": 1.2}
    program = StudyProgram(Combined(stack, [inner, Model(c, (1,), fixed_point())]), temperatures)
    axial, coronal = study(1), study(2, 3, 30, 90)
    inner_table = mean.join([table(a, axial), table(b, coronal)])
    wanted = decided(stack.join([inner_table, table(c, coronal)]), None, temperatures)
    p, _ = asked(program, axial, coronal)
    assert p == pytest.approx(wanted[[f"p_{label}" for label in LABELS]].to_numpy(float)[0], abs=1e-6)


def test_what_looks_at_more_than_pictures_is_refused():
    for method, why in (("own", "group"), ("union", "which have it")):
        with pytest.raises(UserError, match=why):
            require_of_pictures(Combination(method, ("a", "b")), "outputs/combine/x")
    votes = Combined(Combination("vote", ("a", "b")), [Model(model(k), (0,), True) for k in (1, 2)])
    with pytest.raises(UserError, match="Leave calibrate out"):
        StudyProgram(votes, {"acl": 2.0})
    with pytest.raises(UserError, match="a stack on votes"):
        Combined(Combination("stack", ("a", "b"), labels=FIT), [votes, Model(model(3), (0,), True)])
    with pytest.raises(UserError, match="b has other labels"):
        Combined(Combination("mean", ("a", "b")), [Model(m, (0,), True) for m in (model(1), model(2, labels=("acl",)))])
