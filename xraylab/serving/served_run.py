"""A run that answers: one study at a time, decoded before, as probabilities, calls, shares and maps."""

from __future__ import annotations

import base64
import functools
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf

from xraylab.data.datasets.mrnet import PLANES
from xraylab.data.study_table import SYNTHETIC
from xraylab.errors import UserError
from xraylab.evaluation.ensembles.combination import read_combination
from xraylab.evaluation.predictions import PredictionTable
from xraylab.explanation.explanations import Explainer, Explanation, Key, Read
from xraylab.explanation.maps import METHODS
from xraylab.inference.inputs import COLUMNS, Files
from xraylab.inference.predictor import member_run, run_labels
from xraylab.inference.studies import Options
from xraylab.run import home_of, read_config
from xraylab.serving.decisions import Decisions
from xraylab.serving.uploads import PROJECTIONS, Decoded, Refusal, Study, Unread
from xraylab.training.study_module import load_module

log = logging.getLogger(__name__)

NOTICE = "Research only. This is no medical device, and nothing here is a diagnosis."
SECTIONAL = ("MR", "CT", "PT", "NM", "US")  # DICOM's modalities that no X-ray picture has
FRONTAL, LATERAL = ("AP", "PA"), ("LL", "RL", "LATERAL")  # DICOM's views of a chest
XRAYS = ("MURA", "CheXpert", "MIMIC", "MimicTutorial", "NIH")  # readers of X-rays
ID = "study"  # what a study is called inside: the visitor's name for it stays in the answer


@dataclass(frozen=True)
class Wanted:
    """What a run was trained on, as far as a file may say that it is something else.

    Attributes:
        planes: of a knee, that it needs; empty: any images.
        view: frontal or lateral; empty: any.
        xray: True of X-rays, False of MRI; None: not known.
    """

    planes: tuple[str, ...] = ()
    view: str = ""
    xray: bool | None = None


class ServedRun:
    """A run, or a combination of runs, whose models are loaded once.

    Args:
        run: its directory, or a checkpoint.
        bits: of 16-bit PNG and TIFF files; None: as in training.
        point: the operating point that calls are made at, as ``youden``.
        method: of maps; None: the default.
        refuse: what is unlike the training data, as far as the checkpoint knows that; False: the distance is answered alone.

    Attributes:
        labels: its findings.
        colour: whether it sees three channels.
        rule: how its volumes were chosen and scaled; None: it was trained on none.
        decisions: its operating points, temperatures and what they are worth.

    Raises:
        UserError: it cannot be loaded, or has no such operating point.
    """

    def __init__(
        self, run: Path, bits: int | None = None, point: str = "youden", method: str | None = None, refuse: bool = True
    ) -> None:  # fmt: skip
        self.run, self.method, self.refuse = run, method or METHODS[0], refuse
        self.options = Options(precision="32", workers=0, bits=bits, load=functools.cache(load_module), accelerator={
            "accelerator": "auto", "devices": 1})  # fmt: skip
        self.labels = run_labels(run)
        self.decisions = Decisions(run, self.labels, point)
        leaves = list(_leaves(run))
        modules = [self.options.load(_checkpoint(leaf)) for leaf in leaves]
        self.wanted = _wanted([_config(leaf) for leaf in leaves], [module.net.parts for module in modules])
        self.colour = any(module.images["channels"] == 3 for module in modules)
        self.bits = bits if bits is not None else modules[0].images["bits"]
        self.rule = next((module.images["rule"] for module in modules if "rule" in module.images), None)
        self.synthetic = any(module.data == SYNTHETIC for module in modules)

    @property
    def name(self) -> str:
        """What it is called: the last two parts of its path."""
        return "/".join((home_of(self.run) or self.run).absolute().parts[-2:])

    def answer(self, study: Study, findings: Sequence[str] = (), pictures: int = 0) -> dict[str, Any]:
        """Predict and explain a study.

        Args:
            study: as decoded.
            findings: whose maps are wanted; none: those that are called, or else the most probable one, three at most.
            pictures: pixels of a side at most that pictures and maps of the answer have; 0: there are none.

        Returns:
            What ``/openapi.json`` describes.

        Raises:
            Refusal: with the reason.
            UserError: a finding is not this run's.
        """
        if unknown := [name for name in findings if name not in self.labels]:
            raise Refusal(
                "no_such_finding", f"{unknown[0]}: the model has no such finding; it has {', '.join(self.labels)}.", 400
            )
        files, kept, unread, warnings = self._arranged(study)
        try:
            explainer = Explainer(self.run, files, self.options)
        except UserError as error:
            raise Refusal("unreadable", _without_paths(str(error), kept)) from None
        if explainer.ids != [ID]:
            raise Refusal("unreadable", f"the images do not make one study ({len(explainer.ids)} were found).")
        table = PredictionTable(explainer.predicted.table)
        found = {label: self.decisions.of(label, float(table.log_odds(label)[0])) for label in table.predicted}
        called = [label for label, of in found.items() if of["call"]]
        likely = max(found, key=lambda label: found[label]["logit"])
        explained = list(findings) or called[:3] or [likely]
        read = explainer.read(ID)
        unlike = self._require_like(explainer, read)
        explanations = explainer.explained(ID, read, explained, self.method)
        synthetic = self.synthetic or explainer.predicted.synthetic
        return {
            "id": study.id,
            "findings": found,
            "images": _images(explanations, {str(of.path): of.name for of in kept}, pictures),
            "maps": {e.finding: _about(e) for e in explanations},
            "distribution": unlike,
            "skipped": [of._asdict() for of in unread],
            "warnings": warnings,
            "model": {"name": self.name, "data": SYNTHETIC if self.synthetic else "as trained", "labels": self.labels},
            "synthetic": synthetic,
            "notice": NOTICE,
        }

    def _arranged(self, study: Study) -> tuple[Files, list[Decoded], list[Unread], list[str]]:
        """A study as predicting takes it: the files that the model wants, those that it does not, and what to say of them.

        Raises:
            Refusal: it is of another kind, view or plane than the model was trained on.
        """
        self._require_kind(study)
        unread = list(study.unread)
        warnings: list[str] = []
        if not self.wanted.planes:
            return _files([("", study.files)]), study.files, unread, warnings
        planes = [of.facts.plane or plane_named(of.name) for of in study.files]
        if len(self.wanted.planes) == 1 and not any(planes):
            (plane,) = self.wanted.planes
            warnings.append(f"no file says its plane; the model was trained on {plane}, and takes it for that.")
            return _files([(plane, study.files)]), study.files, unread, warnings
        by_plane = {p: [of for of, q in zip(study.files, planes, strict=True) if q == p] for p in self.wanted.planes}
        if missing := [p for p, of in by_plane.items() if not of]:
            there = sorted({p or "no plane that is said" for p in planes})
            how = "" if all(planes) else " Name the files, or their folders, after their planes, as axial.npy."
            raise Refusal(
                "other_view",
                f"the model was trained on {' and '.join(self.wanted.planes)}, and these are images of {', '.join(there)}: there "
                f"is nothing of {' and '.join(missing)}.{how}",
            )
        unread += [
            Unread(of.name, f"of {p or 'no plane that is said'}, which the model does not see")
            for of, p in zip(study.files, planes, strict=True)
            if p not in by_plane
        ]
        kept = [of for part in by_plane.values() for of in part]
        return _files(list(by_plane.items())), kept, unread, warnings

    def _require_like(self, explainer: Explainer, read: Sequence[Read | None]) -> dict[str, float] | None:
        """How far a study is from those of training, of the model to which it is the farthest; None: not known.

        Raises:
            Refusal: it is unlike them.
        """
        asked = (module.unlike(of.bags) for module, of in zip(explainer.modules, read, strict=True) if of is not None)
        found = max((of for of in asked if of is not None), key=lambda of: of[0] / of[1], default=None)
        if found is None:
            return None
        distance = {"distance": found[0], "threshold": found[1]}
        if self.refuse and not found[0] <= found[1]:
            words = "the images are not like those that the model was trained on, so what it would say means nothing"
            numbers = f"distance {found[0]:.1f}; up to {found[1]:.1f} is like them"
            raise Refusal("unlike_training", f"{words} ({numbers}).", more=distance)
        return distance

    def _require_kind(self, study: Study) -> None:
        for of in study.files:
            facts = of.facts
            if self.wanted.xray is True and facts.modality in SECTIONAL:
                raise Refusal("other_view", f"{of.name}: its modality is {facts.modality}; the model was trained on X-rays.")
            if self.wanted.xray is False and facts.modality in PROJECTIONS:
                raise Refusal("other_view", f"{of.name}: its modality is {facts.modality}; the model was trained on MRI.")
            view = "frontal" if facts.view in FRONTAL else "lateral" if facts.view in LATERAL else ""
            if self.wanted.view and view and view != self.wanted.view:
                raise Refusal(
                    "other_view", f"{of.name}: its view is {facts.view}; the model was trained on {self.wanted.view} views."
                )


def plane_named(name: str) -> str:
    """The plane that a file's name, or that of a folder, says last; empty: none.

    >>> plane_named("knee/coronal/1130.npy"), plane_named("1130_Axial.npy"), plane_named("biaxially.npy")
    ('coronal', 'axial', '')
    """
    found = re.findall(rf"(?<![a-z])({'|'.join(PLANES)})(?![a-z])", name.lower())
    return found[-1] if found else ""


def _files(by_plane: Sequence[tuple[str, Sequence[Decoded]]]) -> Files:
    rows = []
    for plane, of in by_plane:
        name = f"{plane}/{ID}" if plane else ID
        rows.append({"id": name, "patient": "", "group": plane, "images": tuple(str(d.path) for d in of), "path": name})
    return Files(pd.DataFrame(rows, columns=COLUMNS), ID)


def _leaves(run: Path) -> Iterator[Path]:
    """The runs with a model of their own that a combination is of; of a run itself."""
    found = read_combination(run) if run.is_dir() else None
    if found is None:
        yield run
        return
    for path in found[1]:
        yield from _leaves(member_run(run, path))


def _checkpoint(run: Path) -> Path:
    from xraylab.training.checkpoints import checkpoint_named

    return checkpoint_named(run, "best")


def _config(run: Path) -> DictConfig | None:
    home = home_of(run)
    return None if home is None else read_config(home)


def _wanted(configs: Sequence[DictConfig | None], parts: Sequence[Sequence[str]]) -> Wanted:
    planes: list[str] = []
    views, kinds = set(), set()
    for config, own in zip(configs, parts, strict=True):
        plane = None if config is None else OmegaConf.select(config, "plane")
        planes += [*own] if own else [plane] if plane in PLANES else []
        view = "" if config is None else str(OmegaConf.select(config, "view", default=""))
        views.add({"pa": "frontal", "ap": "frontal"}.get(view, view if view in ("frontal", "lateral") else ""))
        reader = "" if config is None else str(config.dataset.get("_target_", "")).rsplit(".", 1)[-1]
        kinds.add(True if reader in XRAYS else False if reader == "MRNet" else None)
    return Wanted(tuple(dict.fromkeys(planes)), views.pop() if len(views) == 1 else "", kinds.pop() if len(kinds) == 1 else None)


def _images(explanations: Sequence[Explanation], names: dict[str, str], side: int) -> list[dict[str, Any]]:
    """Every image that a model saw, in the order of the files, with its shares."""
    rows: dict[Key, dict[str, Any]] = {}
    heats = [e.heat() for e in explanations] if side else []
    largest = [max(float(h.max()) for h in heat.values()) for heat in heats]
    for number, e in enumerate(explanations):
        table = e.table()
        pixels = {(p.image, p.slice): p.pixels for of in e.pictures for p in of}
        for key, image in pixels.items():
            own = (table["image"] == key[0]) & (table["slice"].isna() if key[1] is None else table["slice"] == key[1])
            row = rows.setdefault(key, {
                "name": names.get(key[0], key[0]), "slice": key[1], "width": image.shape[1], "height": image.shape[0],
                "shares": {}, "peaks": {},
            })  # fmt: skip
            row["shares"][e.finding] = float(table.loc[own, "share"].sum())
            peak = table.loc[own, ["peak_x", "peak_y"]].iloc[0].tolist()
            row["peaks"][e.finding] = None if np.isnan(peak).any() else peak
            if side:
                row.setdefault("picture", _png(_shrunk(image, side)))
                level = np.clip(heats[number][key] / largest[number], 0, 1) if largest[number] > 0 else np.zeros(image.shape[:2])
                row.setdefault("maps", {})[e.finding] = _png(_shrunk((255 * level).round().astype(np.uint8), side))
    order = {path: number for number, path in enumerate(names)}
    return [rows[key] for key in sorted(rows, key=lambda key: (order.get(key[0], 0), key[1] or 0))]


def _about(e: Explanation) -> dict[str, Any]:
    return {"method": e.maps[0].method, "adds_up_to": e.adds_up_to, "rest": float(sum(of.rest for of in e.maps))}


def _shrunk(image: np.ndarray, side: int) -> np.ndarray:
    scale = side / max(image.shape[:2])
    if scale >= 1:
        return image
    size = tuple(max(1, round(n * scale)) for n in image.shape[1::-1])
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _png(image: np.ndarray) -> str:
    """A picture as a data URL."""
    bgr = image if image.ndim == 2 else image[..., ::-1]
    done, data = cv2.imencode(".png", bgr)
    assert done
    return f"data:image/png;base64,{base64.b64encode(data.tobytes()).decode()}"


def _without_paths(text: str, files: Sequence[Decoded]) -> str:
    for of in files:
        text = text.replace(str(of.path), of.name)
    return text.splitlines()[0]
