"""Maps of a study's own logit: which places of which images it comes from, through the pool, one finding at a time.

Shapes: I images of the study, L findings, K channels of the map's layer, h x w its places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
import torch
from torch import Tensor

from xraylab.data.preprocessing import pack
from xraylab.errors import UserError, did_you_mean
from xraylab.models.backbones.feature_map import FeatureMap, feature_map, tapped
from xraylab.models.pools import Attention, MaxProbability, MeanProbability, segment_sum
from xraylab.training.study_module import StudyModule

METHODS = ("layers", "stem", "hirescam", "gradcam", "cam", "occlusion")  # the first is the default
SMOOTH = 0.06  # deviation, as a share of the longer side, of the bell that maps of the stem are smoothed by
WINDOW = 7  # windows of occlusion along a side of the image, which overlap by half
CHUNK = 32  # images in a forward pass
TAPPED = {"layers": (True, False), "stem": (True,)}  # whether a map is made of the first layer, of the last, or of both
Places = tuple[tuple[float, float], tuple[float, float]]
EXACT = 1e-3  # relative, of the sum of a cam and the logit that it is of


@dataclass(frozen=True)
class StudyMaps:
    """Maps and shares of one study and finding.

    Attributes:
        finding: its name.
        method: as of :func:`explain`.
        logit: of the study, natural log-odds before calibration.
        maps: float32 (I,h,w), positive where a place speaks for the finding; of images that were not asked for, 0. In logits,
            or in probability where shares are, but for cam and occlusion, which are always in logits. A hirescam sums over
            places to the image's share, of a pool of probabilities less that of an image without features, where what
            follows the layer is a mean, a maximum or a ReLU and the head is linear.
        shares: float64 (I,), what each image adds to the study's logit (``of`` is ``logit``) or to its probability.
        rest: the logit, or the probability, less the shares: biases.
        of: ``logit`` of a pool of features; ``probability`` of one of the images' probabilities.
        places: of rows and of columns, where the middle of the first place lies and how far it is to the next, as fractions of
            the image's height and width.
        attention: float64 (I,), weights of an attention pool; None: of another pool.
    """

    finding: str
    method: str
    logit: float
    maps: np.ndarray
    shares: np.ndarray
    rest: float
    of: str
    places: Places
    attention: np.ndarray | None = None

    @property
    def probability(self) -> float:
        """Of the study, before calibration."""
        return float(torch.tensor(self.logit, dtype=torch.float64).sigmoid())

    def pixels(self, image: int, height: int, width: int) -> np.ndarray:
        """The map of an image as float32 (height,width), linearly between the middles of its places; sums stay what they are."""
        cells = self.maps[image]
        rows, columns = ((np.arange(side) + 0.5) / side for side in (height, width))
        return resampled(cells, self.places, rows, columns)

    def peak(self, image: int) -> tuple[float, float]:
        """The middle of an image's largest place, as fractions (x,y) of its width and height, within the image."""
        y, x = np.unravel_index(int(np.argmax(self.maps[image])), self.maps[image].shape)
        (top, down), (left, right) = self.places
        return min(max(left + x * right, 0.0), 1.0), min(max(top + y * down, 0.0), 1.0)


def resampled(cells: np.ndarray, places: Places, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """A map (h,w) at other places, linearly between its own, as float32 (rows,columns); its sum stays about what it is.

    Args:
        rows, columns: fractions of the image's height and width.
    """
    (top, down), (left, right) = places
    x, y = np.meshgrid((columns - left) / right, (rows - top) / down)
    values = cv2.remap(
        np.ascontiguousarray(cells, np.float32), x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip
    return np.asarray(values * (cells.size / values.size))


def explain(
    module: StudyModule, images: np.ndarray | Sequence[np.ndarray], findings: Sequence[str] | None = None,
    method: str = METHODS[0], most: int | None = None,
) -> list[StudyMaps]:  # fmt: skip
    """Explain the logit of one study by maps over its images and each image's share.

    Args:
        module: a trained model; it is not changed.
        images: the study as the network gets it, uint8 (N,H,W[,3]), see :func:`xraylab.data.preprocessing.prepare`; of a model of
            several parts one array a part, in their order. Images follow each other in this order.
        findings: names; None: all of the model.
        method: of the study's logit through a pool of features; through a pool of probabilities of each image's own logit, times
            what that adds to the study's probability. ``layers``: the mean of the next two, the first of them scaled to the
            root mean square of the second: what is small is seen by the one and what is large by the other. ``stem``: gradient
            times value of the first activation, whose places are fine and look at little of the image, smoothed. ``hirescam``
            (Draelos and Carin 2020): the same of the last layer with places, each of which sees much of the image.
            ``gradcam`` (Selvaraju et al. 2017): that layer's values weighted by the mean gradient of their channel, and no
            negative ones. ``cam`` (Zhou et al. 2016): of each image's own logit, refused where it is not exact. ``occlusion``
            (Zeiler and Fergus 2014): how much the study's logit falls when a window of an image is filled with the image's
            mean, without gradients.
        most: occlude only that many images, those of the largest shares; None: all.

    Returns:
        One a finding.

    Raises:
        UserError: there is no such method or finding; no layer has places; a cam would not be exact.

    >>> from xraylab.losses import WeightedBCE
    >>> from xraylab.models import CNN, MaxFeature, StudyNet
    >>> net = StudyNet(CNN(image_size=32, layers=2, filters=4), MaxFeature(), num_outputs=1)
    >>> model = StudyModule(net, WeightedBCE(), labels=["acl"])
    >>> (acl,) = explain(model, np.random.default_rng(0).integers(0, 255, (5, 32, 32)).astype(np.uint8))
    >>> acl.maps.shape, bool(np.isclose(acl.shares.sum() + acl.rest, acl.logit))
    ((5, 32, 32), True)
    """
    require_known(method, findings or [], module.labels)
    bags = [images] if isinstance(images, np.ndarray) else list(images)
    modes = [(part, part.training) for part in module.net.modules()]
    kept = [(p, p.requires_grad) for p in module.parameters()]
    try:
        module.eval().requires_grad_(False)
        return _Study(module, bags).explained(list(findings or module.labels), method, most)
    finally:
        for part, training in modes:
            part.training = training
        for parameter, wanted in kept:
            parameter.requires_grad_(wanted)


def smoothed(maps: Tensor, deviation: float) -> Tensor:
    """Maps (I,h,w) smoothed by a bell; their sums stay, but for what would lie outside, which is mirrored at the border."""
    if deviation < 0.25:
        return maps
    made = [cv2.GaussianBlur(one, (0, 0), deviation, borderType=cv2.BORDER_REFLECT) for one in maps.float().cpu().numpy()]
    return torch.from_numpy(np.stack(made))


def require_known(method: str, findings: Sequence[str], labels: Sequence[str]) -> None:
    """Check names before a model is made.

    Raises:
        UserError: there is no such method, or none of these labels is called so.
    """
    if method not in METHODS:
        raise UserError(f"method={method}: it is one of {', '.join(METHODS)}.{did_you_mean(method, METHODS)}")
    for name in findings:
        if name not in labels:
            raise UserError(
                f"finding={name}: the model has no such finding.{did_you_mean(name, labels)} It has {', '.join(labels)}."
            )


class _Study:
    """The images of one study on the network's device."""

    def __init__(self, module: StudyModule, bags: Sequence[np.ndarray]) -> None:
        self.module, self.net = module, module.net
        self.images = pack(bags).to(module.device)
        self.row = torch.repeat_interleave(torch.arange(len(bags)), torch.tensor([len(bag) for bag in bags])).to(module.device)

    def explained(self, findings: Sequence[str], method: str, most: int | None) -> list[StudyMaps]:
        if method == "occlusion":
            with torch.no_grad():
                features = torch.cat([self.net.features(part) for part in self.images.split(CHUNK)])
            even = (0.25 / WINDOW, 0.5 / WINDOW)
            return [self._of(n, method, features, (even, even), partial(self._occluded, features, most)) for n in findings]
        backbone, device = self.net.backbone, self.module.device
        blank = torch.zeros(1, backbone.in_chans, *self.images.shape[-2:], device=device)
        layers = [feature_map(backbone, blank, first) for first in TAPPED.get(method, (False,))]
        outputs: list[list[Tensor]] = [[] for _ in layers]
        parts = []
        for part in self.images.split(CHUNK):
            with ExitStack() as taps, torch.enable_grad():
                kept = [taps.enter_context(tapped(backbone, layer)) for layer in layers]
                parts.append(self.net.features(part))
            for of, tap in zip(outputs, kept, strict=True):
                assert tap.output is not None
                of.append(tap.output)
        features, places = torch.cat(parts), [self._places(layer) for layer in layers]
        return [
            self._of(name, method, features, places[0], partial(self._cam, method, layers, outputs, features))
            for name in findings
        ]

    def _places(self, layer: FeatureMap) -> Places:
        sides = self.images.shape[-2:]
        down, right = (((first + 0.5) / side, step / side) for (first, step), side in zip(layer.centres, sides, strict=True))
        return down, right

    def _of(
        self, finding: str, method: str, features: Tensor, places: Places, maps: Callable[[int, np.ndarray], Tensor]
    ) -> StudyMaps:
        k, fixed = self.module.labels.index(finding), features.detach()
        shares, rest, of = self._shares(k, fixed)
        attention = self._attention(fixed)
        weights = None if attention is None else attention[:, 0].double().cpu().numpy()
        found = maps(k, shares).detach().float().cpu().numpy()
        return StudyMaps(finding, method, float(self._logits(fixed, k)), found, shares, rest, of, places, weights)

    def _logits(self, features: Tensor, k: int) -> Tensor:
        """(copies,) of the study, finding k, of features (copies*I,D) of one or several copies of it."""
        copies, parts = len(features) // len(self.row), int(self.row.max()) + 1
        row = (self.row + parts * torch.arange(copies, device=self.row.device)[:, None]).flatten()
        return self.module.loss.log_odds(self.net.pooled(features, row, copies).double())[:, k]

    def _own_logits(self, features: Tensor, k: int) -> Tensor:
        """(I,) of each image as a study of its own."""
        alone = torch.arange(len(features), device=features.device)
        return self.module.loss.log_odds(self.net.pooled(features, alone, len(features)).double())[:, k]

    def _attention(self, features: Tensor) -> Tensor | None:
        """(I,1) weights of an attention pool."""
        pool = self.net.pool
        return pool.weights(features, self.row, int(self.row.max()) + 1) if isinstance(pool, Attention) else None

    def _shares(self, k: int, features: Tensor) -> tuple[np.ndarray, float, str]:
        """(I,) what each image adds, what is left, and what they add up to."""
        weights = self._image_weights(features, k)
        if weights is not None:
            shares = (self._own_logits(features, k).sigmoid() * weights).cpu().numpy()
            return shares, float(self._logits(features, k).sigmoid()) - float(shares.sum()), "probability"
        attention = self._attention(features)
        with torch.enable_grad():
            leaf = features.clone().requires_grad_()
            logit = self._logits(leaf, k) if attention is None else self._weighed(leaf * attention, k)
            (slope,) = torch.autograd.grad(logit.sum(), leaf)
        shares = (leaf.detach().double() * slope.double()).sum(1).cpu().numpy()
        return shares, float(logit.detach()) - float(shares.sum()), "logit"

    def _weighed(self, weighed: Tensor, k: int) -> Tensor:
        """(1,) of the study, of features that its attention's weights are in already."""
        parts = int(self.row.max()) + 1
        pooled = segment_sum(weighed, self.row, parts)
        return self.module.loss.log_odds(self.net.head(pooled.reshape(1, -1)).double())[:, k]

    def _cam(
        self, method: str, layers: Sequence[FeatureMap], outputs: Sequence[Sequence[Tensor]], features: Tensor, k: int,
        shares: np.ndarray,
    ) -> Tensor:  # fmt: skip
        """(I,h,w) of values and gradients of layers, on the grid of the first of them."""
        if method == "cam" and self.net.parts:
            raise UserError("method=cam is of each image's own logit, which an image of a part does not have: method=hirescam.")
        weights = None if method == "cam" else self._of_probability(features.detach(), k)
        with torch.enable_grad():
            of = self._logits(features, k) if weights is None and method != "cam" else self._own_logits(features, k)
            slopes = iter(torch.autograd.grad(of.sum(), [output for each in outputs for output in each], retain_graph=True))
        made = []
        for layer, each in zip(layers, outputs, strict=True):
            values, slope = (layer.as_map(torch.cat(x)) for x in (list(each), [next(slopes) for _ in each]))
            values = values.detach()
            if method == "gradcam":
                made.append((values * slope.mean((2, 3), keepdim=True)).sum(1).relu())
            else:
                made.append((values * slope).sum(1))
        if method == "cam":
            wanted = of.detach() - self._own_logits(torch.zeros_like(features), k)
            if not torch.allclose(made[0].double().sum((1, 2)), wanted, rtol=EXACT, atol=EXACT):
                raise UserError(
                    "method=cam is exact only where the head is one linear layer and the features are means over the map, which "
                    "this model's are not: method=hirescam is its like."
                )
        made = [maps if weights is None else maps * weights[:, None, None] for maps in made]
        if method in TAPPED:
            made[0] = smoothed(made[0], SMOOTH * max(layers[0].grid))
        return made[0] if len(made) == 1 else self._joined(layers, made)

    def _joined(self, layers: Sequence[FeatureMap], made: Sequence[Tensor]) -> Tensor:
        """The mean of maps of a fine and of a coarse layer, on the grid of the fine one and in the units of the coarse one."""
        fine, coarse = made[0].cpu(), made[1].float().cpu().numpy()
        own, others = (self._places(layer) for layer in layers)
        at = [first + step * np.arange(side) for (first, step), side in zip(own, layers[0].grid, strict=True)]
        spread = torch.from_numpy(np.stack([resampled(one, others, *at) for one in coarse]))
        sizes = [float(of.double().square().mean().sqrt()) for of in (fine, spread)]  # not deviations: a coarse map may be level
        return (fine * (sizes[1] / sizes[0] if sizes[0] else 0.0) + spread) / 2

    def _of_probability(self, features: Tensor, k: int) -> Tensor | None:
        """(I,) of a pool of probabilities, how much the study's probability grows by an image's logit, from that of an image
        without features to its own. The slope at its own would be 0 where a probability is near 1, and so the image's map.
        None: of another pool.
        """
        weights = self._image_weights(features, k)
        if weights is None:
            return None
        own, without = self._own_logits(features, k), self._own_logits(torch.zeros_like(features), k)
        gap = own - without
        slope = torch.where(gap.abs() > 1e-6, (own.sigmoid() - without.sigmoid()) / gap, own.sigmoid() * (-own).sigmoid())
        return weights * slope

    def _image_weights(self, features: Tensor, k: int) -> Tensor | None:
        """(I,) what a pool of probabilities weighs each image's by; None: it is another pool."""
        own = self._own_logits(features, k) if isinstance(self.net.pool, MeanProbability | MaxProbability) else None
        if isinstance(self.net.pool, MaxProbability) and own is not None:
            return torch.zeros_like(own).index_fill(0, own.argmax(), 1.0)
        return None if own is None else torch.full_like(own, 1 / len(own))

    def _occluded(self, features: Tensor, most: int | None, k: int, shares: np.ndarray) -> Tensor:
        """(I,2*WINDOW,2*WINDOW) how much the study's logit falls without a place: the mean of the windows that cover it."""
        cells, whole = 2 * WINDOW, self._logits(features, k)
        maps = torch.zeros(len(self.images), cells, cells, dtype=torch.float64, device=features.device)
        height, width = self.images.shape[-2:]
        rows, columns = (torch.linspace(0, side, cells + 1).round().long().tolist() for side in (height, width))
        places = [(y, x) for y in range(cells - 1) for x in range(cells - 1)]
        for image in np.argsort(-np.abs(shares), kind="stable")[:most].tolist():
            picture, covered = self.images[image], torch.zeros(cells, cells, device=maps.device)
            mean = picture.double().mean((1, 2), keepdim=True).round().to(picture.dtype)
            for start in range(0, len(places), CHUNK):
                some = places[start : start + CHUNK]
                changed = picture.repeat(len(some), 1, 1, 1)
                for copy, (y, x) in zip(changed, some, strict=True):
                    copy[:, rows[y] : rows[y + 2], columns[x] : columns[x + 2]] = mean
                with torch.no_grad():
                    copies = features.repeat(len(some), 1, 1)
                    copies[:, image] = self.net.features(changed)
                    falls = whole - self._logits(copies.flatten(0, 1), k)
                for (y, x), fall in zip(some, falls, strict=True):
                    maps[image, y : y + 2, x : x + 2] += fall
                    covered[y : y + 2, x : x + 2] += 1
            maps[image] /= covered
        return maps
