"""Measures of maps: their values by hand, their intervals, and what they say of maps that are known to be good or bad."""

from __future__ import annotations

import numpy as np
import pytest
from explanation.test_maps import model, study

from xraylab.data.boxes import Box
from xraylab.explanation.maps import StudyMaps, explain
from xraylab.explanation.measures import LEAST, Estimate, alike, curves, interval_of, located, mask_of, randomised, recommended

EVEN = (0.125, 0.25)


def heat(*places, side=32):
    values = np.zeros((side, side))
    for y, x, value in places:
        values[y, x] = value
    return values


def test_pointing_and_energy_of_a_volume_are_over_all_its_slices():
    volume = {("v.npy", k + 1): heat((4, 4, 1.0), (20, 20, 3.0 if k == 2 else 0.5)) for k in range(5)}
    boxes = {("v.npy", 3): [Box(0.5, 0.5, 0.75, 0.75)]}
    found = located(volume, boxes)
    assert found["pointing"] == 1
    assert found["energy"] == pytest.approx(3 / (5 * 1 + 4 * 0.5 + 3))
    assert found["chance"] == pytest.approx(1 / 16 / 5)
    assert found["centre"] == 1, "the middle of the middle slice"
    assert located(volume, {("v.npy", 2): boxes["v.npy", 3]})["pointing"] == 0
    assert located({key: -values for key, values in volume.items()}, boxes)["pointing"] == 0, "nothing speaks for it"


def test_a_map_that_is_the_same_everywhere_has_the_energy_of_chance_and_a_bell_that_of_the_centre():
    boxes = {("a.png", None): [Box(0.2, 0.3, 0.6, 0.9)]}
    flat = located({("a.png", None): np.ones((40, 60))}, boxes)
    assert flat["energy"] == pytest.approx(flat["chance"]) == pytest.approx(0.4 * 0.6, abs=0.02)
    y, x = ((np.arange(side) + 0.5) / side - 0.5 for side in (40, 60))
    bell = np.exp(-8 * np.add.outer(y**2, x**2))
    assert located({("a.png", None): bell}, boxes)["energy"] == pytest.approx(flat["bell"], rel=1e-6)


def test_a_box_holds_the_pixels_whose_middles_lie_in_it():
    mask = mask_of((10, 10), [Box(0.1, 0.2, 0.3, 0.5), Box(0.25, 0.4, 0.45, 0.6)])
    expected = np.zeros((10, 10), bool)
    expected[2:5, 1:3] = expected[4:6, 2:4] = True
    assert np.array_equal(mask, expected)


def test_intervals_are_of_patients_and_need_enough_of_them():
    rng = np.random.default_rng(0)
    values = {"pointing": (rng.random(60) < 0.6).astype(float), "chance": rng.beta(2, 20, 60)}
    each = interval_of("pointing_chance", values, [str(k) for k in range(60)])
    pairs = interval_of("pointing_chance", {k: np.repeat(v[:30], 2) for k, v in values.items()}, [str(k // 2) for k in range(60)])
    assert each.value == pytest.approx((values["pointing"] - values["chance"]).mean())
    assert each.low < each.value < each.high
    assert pairs.high - pairs.low > 1.25 * (each.high - each.low), "copies add nothing"
    few = interval_of("pointing", values, [str(k % (LEAST - 1)) for k in range(60)])
    assert few.reason == f"no interval: {LEAST - 1} patients, of {LEAST} that it takes"


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_intervals_hold_the_truth_as_often_as_they_say(share):
    rng, names, held = np.random.default_rng(1), [str(k) for k in range(40)], {}
    true = {"pointing_chance": share - 1 / 11, "energy_centre": share - 3 / 23, "deletion": 0.05}
    for _ in range(300):
        values = {
            "pointing": (rng.random(40) < share).astype(float), "chance": rng.beta(2, 20, 40),
            "energy": rng.beta(4 * share, 4 * (1 - share), 40), "bell": rng.beta(3, 20, 40),
            "deletion": rng.normal(0.1, 0.2, 40) * (rng.random(40) < 0.5),
        }  # fmt: skip
        for name, value in true.items():
            found = interval_of(name, values, names)
            held[name] = held.get(name, 0) + (found.low <= value <= found.high) / 300
    assert min(held.values()) > 0.92, held


def test_what_decides_is_deleted_sooner_and_inserted_sooner_than_pixels_at_random():
    """Of a network that looks at one corner, a map of the corner is good, and one of the opposite corner bad."""
    module, images = model(), study(1, seed=1)
    whole = explain(module, images, ["a"], "occlusion")[0]
    good, bad = np.maximum(whole.maps, 0), np.maximum(-whole.maps, 0)
    areas = {}
    for name, maps in (("good", good), ("bad", bad)):
        areas[name] = curves(module, [images], StudyMaps("a", "", 0, maps, whole.shares, 0, "logit", whole.places), seed=0)
    assert areas["good"]["deletion"] > areas["bad"]["deletion"]
    assert areas["good"]["insertion"] > areas["bad"]["insertion"]


def test_random_weights_are_other_weights_and_leave_the_model_alone():
    module = model()
    before = [p.clone() for p in module.parameters()]
    other = randomised(module, seed=1)
    assert all((a == b).all() for a, b in zip(before, module.parameters(), strict=True))
    moved = [not (a == b).all() for a, b in zip(before, other.parameters(), strict=True) if a.ndim > 1]
    assert all(moved)
    again = randomised(module, seed=1)
    assert all((a == b).all() for a, b in zip(other.parameters(), again.parameters(), strict=True))


def test_alike_is_a_rank_correlation():
    first = {("a", None): np.random.default_rng(0).random((32, 32)).astype(np.float32)}
    assert alike(first, {("a", None): first["a", None] ** 3}) == pytest.approx(1)
    assert alike(first, {("a", None): -first["a", None]}) == pytest.approx(-1)
    assert alike(first, {("a", None): np.zeros((32, 32), np.float32)}) == 0


def test_a_method_is_recommended_only_where_it_beats_the_centre_and_forgets_random_weights():
    def of(pointing, low, weights):
        made = {"pointing": (pointing, 0.0), "pointing_centre": (pointing - 0.3, low), "random_weights": (weights, -0.1)}
        return {name: Estimate(40, 40, value, least, 1.0, None) for name, (value, least) in made.items()}

    found = {"a": of(0.6, 0.1, 0.0), "b": of(0.9, 0.4, 0.8), "c": of(0.7, 0.2, 0.1), "d": of(0.8, -0.1, 0.0)}
    assert recommended(found)[0] == "c"
    assert recommended({"d": found["d"], "b": found["b"]}) == (
        None, "no method beats a guess at the centre by an interval that excludes 0, and forgets random weights",
    )  # fmt: skip
    assert recommended({"a": {"deletion": found["a"]["pointing"]}})[0] is None
