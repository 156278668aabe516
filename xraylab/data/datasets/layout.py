"""Folders of pictures: which files are studies, and which are set aside."""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from xraylab.data.images.dicom import dicom_layouts, is_dicom
from xraylab.data.images.nifti import SUFFIXES as NIFTI
from xraylab.data.images.nifti import is_nifti
from xraylab.data.images.series import Volume
from xraylab.data.images.source import ARRAY, SUFFIXES, file_fault, is_picture, stem
from xraylab.data.images.volumes import DICOMDIR, VolumeRule, headers_of, studies_of_series
from xraylab.data.study_table import Problems
from xraylab.errors import UserError, printable, refusing
from xraylab.system.paths import LEAVINGS

log = logging.getLogger(__name__)

SPLITS = {"train": "train", "val": "valid", "valid": "valid", "validation": "valid", "test": "test"}
#: a class folder that holds pictures in one of these, often beside masks, as COVID-19 Radiography and COVID-QU-Ex have it
PICTURES = ("images", "image", "imgs", "pictures")
MASKS = re.compile(r"(?:^|.*[ _-])(?:masks?|segmentations?)$", re.IGNORECASE)  # a folder of them
MASK_OF = re.compile(r"(.+?)[ _-](?:masks?|segmentation)(?:[ _-]?\d+)?$", re.IGNORECASE)  # a file, and what it is the mask of
NO_UTF8 = "names that are not UTF-8, which results cannot hold: rename them"
LINKS = "links that lead nowhere or in circles"


def readable_name(path: Path) -> str:
    return os.path.basename(os.path.abspath(path)) or "data"


def id_pattern(key: str, given: str, wants: str) -> re.Pattern[str]:
    """A regular expression with one group, to be searched in the path of a study.

    Args:
        wants: ends the message where it has another number of groups.

    Raises:
        UserError: it is no such expression.
    """
    with refusing(f"{key}={given}: it is not a regular expression", re.error):
        pattern = re.compile(str(given))
    if pattern.groups != 1:
        raise UserError(f"{key}={given}: it has {pattern.groups} groups{wants}")
    return pattern


def is_image(file: Path) -> bool:
    """Whether a file is of a kind that is read; arrays are not, they are for tables."""
    return file.suffix.lower() != ARRAY and is_picture(file)


class Aside(NamedTuple):
    """What is left alone: files that are no images, and masks."""

    strays: list[str]
    masks: list[str]


def listed_entries(root: Path, folder: str = "", problems: Problems | None = None) -> tuple[list[str], list[str]]:
    """Names of files and of folders in a folder below ``root``, but for hidden ones and what archives and desktops leave.

    What cannot be used is named in ``problems``.
    """
    files: list[str] = []
    folders: list[str] = []
    with refusing(f"{root / folder}: cannot be listed", OSError), os.scandir(root / folder) as entries:
        given = sorted((e for e in entries if not LEAVINGS.match(e.name)), key=lambda e: e.name)
    for entry in given:
        try:
            is_folder, whole = entry.is_dir(), not entry.is_symlink() or os.path.exists(entry.path)
        except OSError:  # a link to itself
            is_folder = whole = False
        fault = None if whole or is_image(Path(entry.path)) else LINKS  # an image is named as missing
        if printable(entry.name) != entry.name:
            fault = NO_UTF8
        if fault is None:
            (folders if is_folder else files).append(entry.name)
        elif problems is not None:
            problems[fault].append(printable(f"{folder}/{entry.name}"))
    return files, folders


def folders(path: Path) -> list[str]:
    return listed_entries(path)[1]


def split_folders(path: Path) -> list[str]:
    return [name for name in folders(path) if name.lower() in SPLITS]


def holds_image(folder: Path, deep: int = 6) -> bool:
    """Whether an image is in a folder, or so deep below it; or something that is named when it is read."""
    problems: Problems = defaultdict(list)
    files, folders = listed_entries(folder, problems=problems)
    return (
        bool(problems)
        or any(is_image(folder / name) for name in files)
        or (deep > 0 and any(holds_image(folder / name, deep - 1) for name in folders))
    )


def studies_of(root: Path, folder: str, problems: Problems, aside: Aside) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Ids and images of the studies in a class folder; those with something wrong are named and left out."""
    found: dict[str, list[tuple[str, list[str]]]] = defaultdict(list)
    files, folders = ([f"{folder}/{name}" for name in names] for names in listed_entries(root, folder, problems))
    masks = [name for name in folders if MASKS.match(name)]
    folders = [name for name in folders if name not in masks]
    for name in masks:
        aside.masks.extend(f"{name}/{inner}" for names in listed_entries(root, name, problems) for inner in names)
    pictures = pictures_of(root, files, aside)
    if not pictures and len(folders) == 1 and os.path.basename(folders[0]).lower() in PICTURES:
        yield from studies_of(root, folders[0], problems, aside)
        return
    for name in pictures:
        found[stem(name)].append((name, [name]))
    for name in folders:
        try:
            inside, deeper = ([f"{name}/{inner}" for inner in names] for names in listed_entries(root, name, problems))
        except UserError:
            problems["folders that cannot be listed"].append(name)
            continue
        if disk := dicom_below(root, name) if deeper or f"{name}/{DICOMDIR}" in inside else []:
            found[name].append((name, disk))
            continue
        problems["folders inside a study's folder, which holds images only"] += deeper
        images = pictures_of(root, inside, aside)
        if not images and not deeper:
            problems["folders without an image"].append(name)
        elif not deeper:
            found[name].append((name, images))
    for study, candidates in found.items():
        if len(candidates) > 1:
            problems["studies of one name"].append(f"{study} ({', '.join(name for name, _ in candidates)})")
            continue
        images = candidates[0][1]
        faults = [(fault, image) for image in images if (fault := file_fault(root / image))]
        for fault, image in faults:
            problems[fault].append(image)
        if not faults:
            yield study, tuple(images)


def dicom_below(root: Path, folder: str) -> list[str]:
    """The DICOM files in a folder of ``root`` and below it, as a study of several series has them, or a disk."""
    files, folders = listed_entries(root, folder)
    inside = [os.path.normpath(f"{folder}/{name}") for name in files]
    found = [name for name in inside if not name.lower().endswith((*SUFFIXES, ARRAY, *NIFTI)) and is_dicom(root / name)]
    return found + [file for name in folders for file in dicom_below(root, f"{folder}/{name}")]


def folder_of(root: Path, image: str) -> str | None:
    """The folder that a path in a list stands for, itself or of its DICOMDIR; None where it stands for a file."""
    folder = os.path.dirname(image) or "." if os.path.basename(image) == DICOMDIR else image
    return folder if (root / folder).is_dir() else None


def pictures_of(root: Path, files: Sequence[str], aside: Aside) -> list[str]:
    """The images among files; a picture of a mask lies beside that of which it is the mask."""
    images = [name for name in files if is_image(root / name)]
    aside.strays.extend(name for name in files if name not in set(images))
    stems = {stem(name) for name in images}
    masks = {name for name in images if (match := MASK_OF.match(stem(name))) and match.group(1) in stems}
    aside.masks.extend(sorted(masks))
    return [name for name in images if name not in masks]


class Arranged(NamedTuple):
    """Studies of which it is known what their files are.

    Attributes:
        views: each image bears its study's label; False: images are slices of volumes.
        images: study -> references of its images, of sound studies.
        series: the references that stand for series of slices, and their slices.
        faults: the studies that cannot be used, by what is wrong.
    """

    views: bool
    images: dict[str, tuple[str, ...]]
    series: dict[str, Volume]
    faults: dict[str, list[str]]


def arranged(
    root: Path, studies: Mapping[str, Sequence[str]], rule: VolumeRule, views: bool, folders: Collection[str] | None = None
) -> Arranged:
    """What the files of studies are: views, slices in their order, volumes, or series of slices that are put in order.

    Args:
        studies: id and files of each, relative to ``root``.
        views: False: several files of a study that is no series are slices of a volume, in their order.
        folders: the studies whose files may be a series, all that a folder holds; None: all. Enhanced files are, anyway.

    Raises:
        UserError: there are DICOM files, and pydicom is not installed; or ``planes`` are asked for, and there is no series.
    """
    files = [i for images in studies.values() for i in images if not i.lower().endswith((*SUFFIXES, ARRAY, *NIFTI))]
    layouts = dict(zip(files, dicom_layouts([root / i for i in files]), strict=True)) if files else {}
    several = headers_of(root, (i for i, (count, _) in layouts.items() if count > 1))
    placed = {i for i, found in several.items() if not isinstance(found, str)}
    slices = {s: [i for i in images if i in placed or layouts.get(i, (1, False))[1]] for s, images in studies.items()}
    listed = set() if folders is None else set(studies) - set(folders)
    of_series = {
        study for study, of in slices.items()
        if placed.intersection(of) or (study not in listed and len(of) > 1) or (folders and study in folders)
    }  # fmt: skip
    if of_series:
        of_series |= {study for study, of in slices.items() if of and study not in listed}
    elif rule.parts:
        raise UserError(f"dataset.series={rule.series}: {root} has no series of slices (CT, MR or PET in DICOM files).")
    bags = {study: [i for i in studies[study] if i in layouts] for study in studies if study in of_series}
    if aside := sum(len(studies[study]) - len(bags[study]) for study in bags):
        log.warning("%s: %d pictures lie beside series of slices and are left alone", root, aside)
    found = studies_of_series(root, bags, rule)
    others = {study: images for study, images in studies.items() if study not in of_series}
    views, faults = by_layout(root, others, views, layouts)
    faults |= found.faults
    if (views or rule.parts) and found.images and others:
        fewer = [*others] if len(others) <= len(found.images) else [*found.images]
        kind = "series of slices beside" if fewer[0] in found.images else "no series of slices, unlike"
        faults.setdefault(f"studies that are {kind} the others; make two datasets", []).extend(fewer)
        views = views and fewer[0] in found.images
    images = {study: found.images.get(study, tuple(studies[study])) for study in studies}
    wrong = {study for names in faults.values() for study in names}
    sound = {study: of for study, of in images.items() if study not in wrong}
    return Arranged(views and not found.images, sound, found.volumes, faults)


def by_layout(
    root: Path, studies: Mapping[str, Sequence[str]], views: bool, layouts: Mapping[str, tuple[int, bool]]
) -> tuple[bool, dict[str, list[str]]]:
    """Whether the images of studies are views, and the studies that are not of one kind with the rest, by what is wrong.

    The frames of a DICOM file are slices of a volume, which is a study of its own; so is a NIfTI file.

    Args:
        studies: id and images of each, relative to ``root``; none is a series that is put in order.
        views: False: several files of a study are slices of a volume, in their order.
        layouts: of DICOM files, see :func:`xraylab.data.images.dicom.dicom_layouts`.
    """
    of = {i: layouts.get(i, (2 if is_nifti(i) else 1, False)) for images in studies.values() for i in images}
    frames = {study: max(of[image][0] for image in images) for study, images in studies.items() if images}
    volumes = [study for study, number in frames.items() if number > 1]
    mixed = [study for study in volumes if len(studies[study]) > 1]
    series = [study for study, images in studies.items() if views and sum(of[i][1] for i in images) > 1]
    faults = {
        "studies of several files, one of which is a volume of its own (several frames, or NIfTI)": mixed,
        "studies that look like a series of slices (CT, MR or PET, a file each), which would be taken for views; name their "
        "folders, which are put in order, or list the files in order with dataset.views=false": series,
    }
    volumes = [study for study in volumes if study not in mixed]
    several = [study for study, images in studies.items() if len(images) > 1 and study not in {*mixed, *series}]
    if volumes and several and views:
        fewer = volumes if len(volumes) <= len(several) else several
        what = (
            "volumes (several frames) beside studies of" if fewer is volumes else "studies, beside volumes (several frames), of"
        )
        faults[f"{what} several views; make two datasets"] = fewer
        volumes = [] if fewer is volumes else volumes
    return views and not volumes, {kind: names for kind, names in faults.items() if names}
