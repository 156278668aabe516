"""Explaining studies with a run: maps over their images in the pictures' own pixels, and a table of shares and peaks."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from xraylab.data.boxes import find_boxes
from xraylab.data.images.source import ImageSource
from xraylab.data.preprocessing import prepare, require_one_size
from xraylab.data.study_table import SYNTHETIC, StudyTable
from xraylab.errors import UserError
from xraylab.evaluation.predictions import PredictionTable
from xraylab.evaluation.probabilities import sigmoid
from xraylab.explanation.maps import StudyMaps, explain
from xraylab.explanation.members import Member, members_of
from xraylab.explanation.pictures import overlay, sheet, write_png
from xraylab.inference.inputs import LEFT_OUT, Files, Skipped
from xraylab.inference.studies import Options
from xraylab.system.files import beside
from xraylab.system.progress import watched
from xraylab.training.study_module import StudyModule

log = logging.getLogger(__name__)

RINGED = 0.5  # of the largest value of a study: images with as much have a ring round their peak
ABOUT = "xraylab explanation; research only, no medical device"
Key = tuple[str, int | None]  # an image: its file, and its slice there


class Picture(NamedTuple):
    """One image of a study."""

    image: str  # the file, or its reference in the data
    slice: int | None  # from 1 on, of a file of several
    pixels: np.ndarray  # uint8 (H,W) or (H,W,3), as decoded


class Drawn(NamedTuple):
    """A map over its image."""

    image: str  # as of a picture
    slice: int | None
    number: int  # of the image in its study, from 1 on
    share: float  # of the study, of all models together
    pixels: np.ndarray  # uint8 (H,W,3)


class Read(NamedTuple):
    """The images of a study, as decoded and as a network gets them."""

    pictures: tuple[Picture, ...]
    bags: list[np.ndarray]


@dataclass(frozen=True)
class Explanation:
    """Maps of one study and finding, of each model behind the run.

    Attributes:
        study, finding: names.
        logit: of the whole, log-odds before calibration.
        members: the models' names in a combination; one, empty, of a run.
        pictures: the images that each of them saw.
        maps: of each of them, already weighted as the whole weighs it, shares too.
        adds_up_to: what shares and rests of all of them add up to: the whole's ``logit`` or ``probability``; ``members``: each
            to its own model's, times its weight, which the whole is no sum of.
    """

    study: str
    finding: str
    logit: float
    members: tuple[str, ...]
    pictures: tuple[tuple[Picture, ...], ...]
    maps: tuple[StudyMaps, ...]
    adds_up_to: str

    def heat(self) -> dict[Key, np.ndarray]:
        """Of each image, the models' maps together, float (H,W) by pixel of the image itself."""
        total: dict[Key, np.ndarray] = {}
        for pictures, of in zip(self.pictures, self.maps, strict=True):
            for k, picture in enumerate(pictures):
                pixels = of.pixels(k, *picture.pixels.shape[:2])
                key = (picture.image, picture.slice)
                total[key] = total[key] + pixels if key in total else pixels
        return total

    def table(self) -> pd.DataFrame:
        """One row an image and model, see :data:`COLUMNS`."""
        rows = []
        for member, pictures, of in zip(self.members, self.pictures, self.maps, strict=True):
            for k, picture in enumerate(pictures):
                height, width = picture.pixels.shape[:2]
                x, y = of.peak(k) if of.maps[k].max() > 0 else (np.nan, np.nan)
                weight = np.nan if of.attention is None else of.attention[k]
                place = {"image": picture.image, "slice": picture.slice, "share": of.shares[k], "adds_up_to": self.adds_up_to}
                rows.append(
                    {**place, "rest": of.rest, "attention": weight, "peak_x": x * width, "peak_y": y * height, "member": member}
                )
        p = float(sigmoid(np.array(self.logit)))
        out = pd.DataFrame(rows, columns=[c for c in COLUMNS if c not in ("study", "finding", "p", "logit")])
        return out.assign(study=self.study, finding=self.finding, p=p, logit=self.logit)[COLUMNS]


#: of ``explanations.csv``: study, finding, image, slice (from 1 on, of a file of several), share, what shares add up to with rest
#: (the study's ``logit`` or ``probability``; ``members``: see :attr:`Explanation.adds_up_to`), rest (of each model, the same in
#: all its rows), attention (the pool's weight, where it has one), the peak of the map in the image's own pixels from its upper
#: left corner (blank: nothing speaks for the finding), the study's p and logit, and in a combination the member
COLUMNS = [
    "study", "finding", "image", "slice", "share", "adds_up_to", "rest", "attention", "peak_x", "peak_y", "p", "logit", "member",
]  # fmt: skip


class Explainer:
    """What explains the studies of an input, with a run or a combination.

    Args:
        run: its directory, or a checkpoint.
        studies: ``train``, ``valid`` or ``test`` of the run's own data; or files.
        options: as of predicting.
        only: names of the studies that are wanted; None: all.

    Attributes:
        predicted: what the run predicts of them.
        skipped: what could not be read, while predicting and after.
        logits: finding to the whole's log-odds by study.
        patients: study to patient; blank where not known.

    Raises:
        UserError: as of :func:`xraylab.inference.predictor.predict`.
    """

    def __init__(self, run: Path, studies: str | Files, options: Options, only: Collection[str] | None = None) -> None:
        self.predicted, self.members = members_of(run, studies, options, only)
        opened = [member.opened for member in self.members]
        self.modules, self._tables = [of.module for of in opened], [of.table for of in opened]
        ids = [of.table.frame["id"].iloc[of.rows].tolist() for of in opened]
        self._rows = [dict(zip(names, of.rows.tolist(), strict=True)) for names, of in zip(ids, opened, strict=True)]
        self.skipped: list[Skipped] = list(self.predicted.skipped)
        self._unread = {(s.id, s.file) for s in self.skipped}
        table = PredictionTable(self.predicted.table)
        self.patients = dict(zip(self.ids, table.frame["patient"].tolist(), strict=True))
        self.logits = {name: dict(zip(self.ids, table.log_odds(name).tolist(), strict=True)) for name in table.predicted}

    @property
    def ids(self) -> list[str]:
        """Of the studies that could be predicted, in the order of the input."""
        return self.predicted.table["id"].tolist()

    def images(self) -> Iterator[tuple[str, str]]:
        """Each study with each of its images, of all members."""
        for table, rows in zip(self._tables, self._rows, strict=True):
            references = table.frame["images"].tolist()
            yield from ((study, image) for study, row in rows.items() for image in references[row])

    def boxes_file(self) -> Path | None:
        """The table of boxes that lies with the images; None: there is none."""
        table, rows = self._tables[0], self._rows[0]
        images = table.frame["images"].iloc[next(iter(rows.values()))]
        path = table.source.path(images[0])
        return None if path is None else find_boxes(path.absolute())

    def called(self, study: str) -> list[str]:
        """The findings of a study whose probability is at least .5, or else the most probable one."""
        of = {name: logits[study] for name, logits in self.logits.items()}
        return [name for name, logit in of.items() if logit >= 0] or [max(of, key=lambda name: of[name])]

    def read(self, study: str) -> list[Read | None]:
        """The images of a study, for each member that has it and counts for it.

        Raises:
            UserError: an image could be read when it was predicted and cannot be read now.
        """
        return [
            self._read(module, table, rows[study]) if study in rows else None
            for module, table, rows in zip(self.modules, self._tables, self._rows, strict=True)
        ]

    def explained(
        self, study: str, read: Sequence[Read | None], findings: Sequence[str], method: str, most: int | None = None,
        modules: Sequence[StudyModule] | None = None,
    ) -> list[Explanation]:  # fmt: skip
        """One a finding.

        Args:
            read: of :meth:`read`.
            findings, method, most: see :func:`xraylab.explanation.maps.explain`.
            modules: other models in the members' places; None: their own.

        Raises:
            UserError: as of :func:`xraylab.explanation.maps.explain`.
        """
        parts: dict[str, list[tuple[str, tuple[Picture, ...], StudyMaps]]] = defaultdict(list)
        units: dict[str, set[str]] = defaultdict(set)
        findings = list(dict.fromkeys(findings))
        for member, module, of in zip(self.members, modules or self.modules, read, strict=True):
            if of is None:
                continue
            own = [name for name in findings if member.weight(study, name)]
            for maps in explain(module, of.bags, own, method, most) if own else ():
                parts[maps.finding].append((member.name, of.pictures, self._weighed(member, study, maps)))
                units[maps.finding].add(maps.of if maps.of in member.keeps(maps.finding) else "members")
        found = []
        for name in findings:
            if parts[name]:
                names, pictures, weighed = (tuple(column) for column in zip(*parts[name], strict=True))
                unit = units[name].pop() if len(units[name]) == 1 else "members"
                found.append(Explanation(study, name, self.logits[name][study], names, pictures, weighed, unit))
        return found

    def _weighed(self, member: Member, study: str, maps: StudyMaps) -> StudyMaps:
        weight = member.weight(study, maps.finding)
        bias = member.biases.get(maps.finding, 0.0)
        return replace(maps, maps=maps.maps * weight, shares=maps.shares * weight, rest=maps.rest * weight + bias)

    def _read(self, module: StudyModule, table: StudyTable, row: int) -> Read:
        """The images of a study that could be read when it was predicted."""
        study, references = table.frame["id"].tolist()[row], table.frame["images"].tolist()[row]
        part_of = table.frame["parts"].tolist()[row] if table.parts else [""] * len(references)
        pictures: list[Picture] = []
        bags = []
        for part in table.parts or ("",):
            left = [i for i, p in zip(references, part_of, strict=True) if p == part and (study, i) not in self._unread]
            images = table.source.read(left)
            pictures += named(left, images, table.source)
            bags.append(prepare(images, **module.preprocessing))
        require_one_size(bags)
        return Read(tuple(pictures), bags)


def named(references: Sequence[str], images: Sequence[np.ndarray] | np.ndarray, source: ImageSource) -> Iterator[Picture]:
    """Images with the file, and the slice in it, that each is of."""
    counts = [1] * len(references)
    if len(images) != len(references):
        counts = [len(images)] if len(references) == 1 else [source.shape(reference)[0] for reference in references]
    names = [place for reference, n in zip(references, counts, strict=True) for place in source.places(reference, n)]
    yield from (Picture(*name, image) for name, image in zip(names, images, strict=True))


def write_explanations(
    explainer: Explainer, output: Path, findings: Sequence[str] | None, method: str, limit: int | None, drawn: int,
    arrays: bool = False,
) -> pd.DataFrame:  # fmt: skip
    """Write ``explanations.csv`` and, for each study and finding, overlays and a sheet, into a folder.

    Args:
        findings: None: of each study those called positive at .5, or else the most probable one.
        limit: studies at most, in the order of the input; None: all.
        drawn: images of a study at most that are drawn, those of the largest shares; of occlusion also those that are occluded.
        arrays: also write each study's maps as ``maps.npz``.

    Returns:
        The table.

    Raises:
        UserError: not one study could be explained, or a method is not for this model.
    """
    about = ABOUT + "; synthetic sample: results mean nothing for patients" * explainer.predicted.synthetic
    tables = []
    ids = explainer.ids[:limit]
    for number, study in enumerate(watched(ids, len(ids), "explaining studies"), start=1):
        try:
            read = explainer.read(study)
        except UserError as error:
            explainer.skipped.append(Skipped(study, "", str(error), LEFT_OUT))
            continue
        most = drawn if method == "occlusion" else None
        for found in explainer.explained(study, read, findings or explainer.called(study), method, most):
            tables.append(found.table())
            folder = output / f"{number:04d}_{safe(study)}"
            draw(found, folder / safe(found.finding), drawn, about)
            if arrays:
                write_arrays(found, folder / f"{safe(found.finding)}.npz")
    if not tables:
        raise UserError("not one study could be explained: its images can no longer be read.")
    table = pd.concat(tables, ignore_index=True)
    out = table.assign(data=SYNTHETIC) if explainer.predicted.synthetic else table
    with beside(output / "explanations.csv") as partial:
        out.assign(slice=out["slice"].astype("Int64")).to_csv(partial, index=False)
    return table


def draw(found: Explanation, folder: Path, most: int, about: str) -> None:
    """Write overlays of the images that say most, each in the image's own pixels, and ``sheet.png`` with all of them."""
    overlays = drawn(found, most)
    names = [p.image for p in {(p.image, p.slice): p for of in found.pictures for p in of}.values()]
    short = told_apart(dict.fromkeys(names))
    tiles = []
    for one in overlays:
        name = f"{one.number:03d}_{safe(short[one.image])}" + (f"_{one.slice:03d}" if one.slice else "")
        write_png(folder / f"{name}.png", one.pixels, about)
        of = f"{short[one.image]} " if len(short) > 1 else ""
        words = f"{of}slice {one.slice} of {names.count(one.image)}" if one.slice else Path(one.image).name
        tiles.append((one.pixels, f"{words[-24:]}: {one.share:+.3f}"))
    p = float(sigmoid(np.array(found.logit)))
    of = "their models'" if found.adds_up_to == "members" else f"the study's {found.adds_up_to}"
    head = f"{found.study}: {found.finding}, p {p:.3f}, {found.maps[0].method}\n"
    head += f"{len(tiles)} of {len(names)} images, those of the largest share of {of}\n{about}"
    write_png(folder / "sheet.png", sheet(tiles, head), about)


def drawn(found: Explanation, most: int) -> list[Drawn]:
    """Overlays of the images that say most, in the order of the study, each in the image's own pixels; one scale for all."""
    heat = found.heat()
    pictures = {(p.image, p.slice): p.pixels for of in found.pictures for p in of}
    table = found.table().assign(slice=lambda t: t["slice"].astype(object).where(t["slice"].notna(), None))
    shares = table.groupby(["image", "slice"], sort=False, dropna=False)["share"].sum()
    keys = [(image, None if pd.isna(number) else int(number)) for image, number in shares.index]
    largest = max(float(values.max()) for values in heat.values())
    out = []
    for k in np.sort(np.argsort(-shares.to_numpy(), kind="stable")[:most]).tolist():
        of = heat[keys[k]]
        over = overlay(pictures[keys[k]], of, largest, ringed=bool(of.max() >= RINGED * largest))
        out.append(Drawn(keys[k][0], keys[k][1], k + 1, float(shares.iloc[k]), over))
    return out


def told_apart(files: Iterable[str]) -> dict[str, str]:
    """What each file is called beside the others: its stem, or where several have it, the folders that differ.

    >>> told_apart(["valid/axial/0180.npy", "valid/coronal/0180.npy"])
    {'valid/axial/0180.npy': 'axial', 'valid/coronal/0180.npy': 'coronal'}
    """
    paths = {file: Path(file) for file in files}
    if len({path.stem for path in paths.values()}) == len(paths):
        return {file: path.stem for file, path in paths.items()}
    folders = [path.parent.parts for path in paths.values()]
    common = {k for k, parts in enumerate(zip(*folders, strict=False)) if len(set(parts)) == 1}
    return {
        file: "_".join(part for k, part in enumerate(path.parent.parts) if k not in common) or path.stem
        for file, path in paths.items()
    }


def write_arrays(found: Explanation, path: Path) -> None:
    """Write the models' maps, shares and images as ``.npz``: ``maps_<k>`` (I,h,w), ``shares_<k>`` (I,), of model k."""
    arrays = {f"{kind}_{k}": getattr(of, kind) for k, of in enumerate(found.maps) for kind in ("maps", "shares")}
    images = {f"images_{k}": np.array([f"{p.image}#{p.slice or ''}" for p in of]) for k, of in enumerate(found.pictures)}
    with beside(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **{"members": np.array(found.members), **arrays, **images})


def safe(name: str) -> str:
    """A name as one part of a path, of at most 60 characters."""
    return re.sub(r"[^\w.-]+", "_", name).strip(".")[:60] or "_"
