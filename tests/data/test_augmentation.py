"""What every shipped pipeline does to a picture with markers: draws that are spread as promised, and independent of each other.

Where the discs of a picture went gives the affine map, and what became of pictures of one grey level the light and the gamma.
"""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import albumentations as A
import cv2
import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from scipy.stats import binomtest, chi2_contingency, kstest

from xraylab.data.augmentation import Augmentation
from xraylab.errors import UserError
from xraylab.system.paths import conf_dir

SIZE, DRAWS = 256, 300
DISCS = {6: (100, 95), 9: (160, 110), 12: (120, 165)}  # radius: x, y
LEVELS = np.array([64, 96, 128, 160], np.uint8)
FLIPS = {name: np.diag(signs) for name, signs in {"": (1, 1), "h": (-1, 1), "v": (1, -1), "hv": (-1, -1)}.items()}
SHIPPED = sorted(path.stem for path in (conf_dir() / "augmentation").glob("*.yaml"))
#: flips, most degrees and pixels (None: none), intensities
PROMISED = {
    "mrnet": ("h", 25, 25, False),
    "mrnet_blog": ("h", 25, 28, False),
    "mura": ("h", 30, None, False),
    "mura_keras": ("hv", 30, None, False),
    "mura_post": ("h", 10, None, False),
    "none": ("", None, None, False),
    "small": ("h", 15, 25, True),
}


def picture() -> np.ndarray:
    """Discs, then pictures of one level each, uint8 (5,256,256)."""
    discs = np.zeros((SIZE, SIZE), np.uint8)
    for radius, place in DISCS.items():
        cv2.circle(discs, place, radius, 160, -1)
    return np.stack([discs, *(np.full_like(discs, level) for level in LEVELS)])


def observed(seen: np.ndarray) -> dict[str, Any]:
    """Flip, angle, shift, gamma and light (by which a grey of 110 became lighter) of an augmented :func:`picture`."""
    lighter = (seen[0] > int(seen[0, 0, 0]) + 4).astype(np.uint8)
    _, _, stats, centroids = cv2.connectedComponentsWithStats(lighter)
    three = 1 + np.argsort(stats[1:, cv2.CC_STAT_AREA])[-3:]  # smaller ones are specks at the edge of a disc
    given = np.array([(*place, 1) for place in DISCS.values()])
    whole = np.linalg.solve(given, centroids[three]).T  # (2,3)
    linear, centre = whole[:, :2], np.full(2, (SIZE - 1) / 2)
    flip = max(FLIPS, key=lambda name: np.trace(linear @ FLIPS[name]))
    turn, shift = linear @ FLIPS[flip], linear @ centre + whole[:, 2] - centre
    levels = LEVELS if len(seen) == 1 else seen[1:, 128, 128]
    gamma, gain, offset = intensity(levels)
    return {
        "flip": flip,
        "angle": float(np.degrees(np.arctan2(turn[1, 0] - turn[0, 1], turn[0, 0] + turn[1, 1]))),
        "x": float(shift[0]),
        "y": float(shift[1]),
        "still": bool(np.abs(turn - np.eye(2)).max() < 0.01 and np.abs(shift).max() < 0.5),
        "gamma": gamma,
        "light": gain * 110 + offset - 110,
        "as it was": bool(abs(gain - 1) < 0.02 and abs(offset) < 3),
    }


def intensity(levels: np.ndarray) -> tuple[float, float, float]:
    """Gamma, gain and offset, of which gain and offset came first, that made these levels of :data:`LEVELS`."""
    gammas, before = np.linspace(0.6, 1.6, 101), np.stack([LEVELS, np.ones_like(LEVELS)], axis=1).astype(float)
    straight = 255 * (levels[:, None] / 255) ** (1 / gammas)
    lines, residuals, *_ = np.linalg.lstsq(before, straight)
    best = int(np.argmin(residuals))
    return float(gammas[best]), *map(float, lines[:, best])


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[dict[str, Any]]]:
    """What was observed of every shipped pipeline in as many epochs as there are draws."""
    out = {}
    for name, (*_, intensities) in PROMISED.items():
        image = picture() if intensities else picture()[:1]
        augmentation = instantiate(OmegaConf.load(conf_dir() / "augmentation" / f"{name}.yaml"))
        out[name] = [observed(augmentation(image, 0, epoch, "a study")) for epoch in range(DRAWS)]
    return out


def choices(seen: list[dict[str, Any]], name: str) -> dict[str, list[Any]]:
    """What each transform of a pipeline did, in a few kinds; of one that does two things, each."""
    flips, degrees, pixels, intensities = PROMISED[name]
    out = {letter: [letter in s["flip"] for s in seen] for letter in flips}
    if degrees:
        out["angle"] = [s["still"] or (s["angle"] > 0, abs(s["angle"]) > degrees / 2) for s in seen]
    if pixels:
        out |= {axis: [s["still"] or int(np.sign(round(s[axis]))) for s in seen] for axis in "xy"}
    if intensities:
        out["light"] = [s["as it was"] or s["light"] > 0 for s in seen]
        out["gamma"] = [int(np.sign(round(s["gamma"] - 1, 2)) * (abs(s["gamma"] - 1) > 0.025)) for s in seen]
    return out


def test_every_shipped_pipeline_is_looked_at():
    assert set(SHIPPED) == set(PROMISED)


@pytest.mark.parametrize("name", SHIPPED)
def test_draws_of_one_pipeline_are_independent(drawn, name):
    kinds = choices(drawn[name], name)
    applied_together = {("angle", "x"), ("angle", "y"), ("x", "y")} if name == "small" else set()  # one transform, or none
    for a, b in combinations(kinds, 2):
        first, second = map(str, kinds[a]), map(str, kinds[b])
        pairs = [pair for pair in zip(first, second, strict=True) if (a, b) not in applied_together or "True" not in pair]
        rows, columns = (sorted({pair[k] for pair in pairs}) for k in (0, 1))
        counts = np.array([[pairs.count((r, c)) for c in columns] for r in rows])
        assert chi2_contingency(counts).pvalue > 1e-3, f"{name}: {a} and {b}\n{rows} {columns}\n{counts}"


@pytest.mark.parametrize("name", [n for n in SHIPPED if PROMISED[n][0]])
def test_every_combination_of_what_is_on_or_off_is_drawn(drawn, name):
    flips, _, _, intensities = PROMISED[name]
    of = [[letter in s["flip"] for letter in flips] for s in drawn[name]]
    shares = [0.5] * len(flips)
    if intensities:
        extra = [(not s["still"], not s["as it was"], abs(s["gamma"] - 1) > 0.025) for s in drawn[name]]
        of, shares = [[*a, *b] for a, b in zip(of, extra, strict=True)], [*shares, 0.5, 0.8, 0.5]
    for combination in product((False, True), repeat=len(shares)):
        expected = np.prod([share if on else 1 - share for on, share in zip(combination, shares, strict=True)])
        found = sum(tuple(o) == combination for o in of)
        # nearly nothing is seen of a gamma of .98 or a light of +1, so those shares are a little smaller
        assert binomtest(found, DRAWS, expected).pvalue > (1e-6 if intensities else 1e-3), (name, combination, found)


@pytest.mark.parametrize("name", [n for n in SHIPPED if PROMISED[n][1]])
def test_angles_and_shifts_are_spread_evenly_to_both_sides(drawn, name):
    _, degrees, pixels, _ = PROMISED[name]
    moved = [s for s in drawn[name] if not s["still"]]
    for key, most in (("angle", degrees), ("x", pixels), ("y", pixels)):
        values = np.array([s[key] for s in moved])
        if most is None:
            assert np.abs(values).max() < 0.5
            continue
        assert kstest(values, "uniform", (-most, 2 * most)).pvalue > 1e-3, (name, key)
        assert binomtest(int((values > 0.5).sum()), int((np.abs(values) > 0.5).sum())).pvalue > 1e-3, (name, key)
        assert values.min() < 3 - most, "both ends are reached"
        assert values.max() > most - 3
        assert np.abs(values).max() < most + (0.5 if key != "angle" else 0.3)


def test_nested_transforms_draw_on_their_own():
    pipeline = Augmentation([A.OneOf([A.HorizontalFlip(p=1), A.NoOp(p=1)], p=1), A.Sequential([A.VerticalFlip(p=0.5)], p=1)])
    found = [observed(pipeline(picture()[:1], 0, epoch, "s"))["flip"] for epoch in range(200)]
    assert min(found.count(flip) for flip in FLIPS) > 25


@pytest.mark.parametrize("name", SHIPPED)
def test_a_picture_is_drawn_alike_however_many_are_beside_it(name):
    augment = instantiate(OmegaConf.load(conf_dir() / "augmentation" / f"{name}.yaml"))
    pictures = np.random.default_rng(0).integers(0, 256, (5, 64, 64), dtype=np.uint8)
    for study in "ab":
        whole = augment(pictures, 0, 0, study)
        for count in range(1, 5):
            assert np.array_equal(augment(pictures[:count], 0, 0, study), whole[:count]), count


def test_a_transform_that_is_added_changes_nothing_before_it():
    one, two = (Augmentation([A.Affine(rotate=(-25, 25), p=1.0), *more]) for more in ([], [A.RandomGamma(p=1.0)]))
    for epoch in range(5):
        before, after = (observed(a(picture()[:1], 3, epoch, "s")) for a in (one, two))
        assert before["angle"] == pytest.approx(after["angle"], abs=0.3)


def test_studies_images_epochs_and_seeds_draw_independently():
    pipeline = Augmentation([A.HorizontalFlip(p=0.5)], per="image")
    left = np.zeros((1, 4, 4), np.uint8)
    left[..., 0] = 9
    flipped = lambda seed, epoch, study, image: int(pipeline(left, seed, epoch, study, image)[0, 0, 0] == 0)  # noqa: E731
    of = np.array([[[[flipped(s, e, str(n), i) for i in range(6)] for n in range(6)] for e in range(6)] for s in range(6)])
    assert binomtest(int(of.sum()), of.size).pvalue > 1e-3
    for axis in range(4):
        agree = of == np.roll(of, 1, axis)
        assert binomtest(int(agree.sum()), agree.size).pvalue > 1e-3


def test_a_shift_reaches_25_pixels_of_256_and_no_further(drawn):
    for axis in "xy":
        whole = np.round([s[axis] for s in drawn["mrnet"]])
        assert {-25, 25} <= set(whole.tolist())
        assert np.abs(whole).max() == 25


@pytest.mark.parametrize("per", ["study", "image"])
def test_transforms_that_give_no_pictures_of_the_same_size_are_named(per):
    for transform, words in (
        (A.Normalize(p=0.5), r"Normalize makes float\d+ \("),
        (A.ToFloat(), r"ToFloat makes float32"),
        (A.CenterCrop(16, 16), r"CenterCrop makes uint8 \(.*16, 16\) of uint8 \(.*32, 32\)"),
        (A.PadIfNeeded(40, 40), r"PadIfNeeded makes uint8 \(.*40, 40\)"),
        (A.RandomFog(p=1), r"RandomFog fails .*ValueError: .*3-channel"),
        (A.SelectiveChannelTransform([A.HorizontalFlip()], [0], p=1), r"SelectiveChannelTransform fails .*Error"),
    ):
        pipeline = Augmentation([A.HorizontalFlip(), transform, A.VerticalFlip()], per)
        with pytest.raises(UserError, match=rf"augmentation: {words}.*augmentation\.per={per}.*leave it out"):
            pipeline.require_fit(32, 32, 1)
    cropped = Augmentation([A.CenterCrop(16, 16), A.Resize(32, 32), A.RandomFog(p=1)], per)
    cropped.require_fit(32, 32, 3)  # only what comes out counts
    with pytest.raises(UserError, match="CenterCrop makes uint8"):
        cropped(np.zeros((1, 48, 32, 3), np.uint8), 0, 0, "a")
    Augmentation([], per).require_fit(32, 32, 1)
