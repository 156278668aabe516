"""Folders of pictures: which files are studies, and which are set aside."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from xraylab.data.images.dicom import dicom_layouts
from xraylab.data.images.source import ARRAY, SUFFIXES, file_fault, is_picture, stem
from xraylab.data.study_table import Problems
from xraylab.errors import UserError, printable, refusing
from xraylab.system.paths import LEAVINGS

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


def holds_image(folder: Path, deep: int = 2) -> bool:
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


def pictures_of(root: Path, files: Sequence[str], aside: Aside) -> list[str]:
    """The images among files; a picture of a mask lies beside that of which it is the mask."""
    images = [name for name in files if is_image(root / name)]
    aside.strays.extend(name for name in files if name not in set(images))
    stems = {stem(name) for name in images}
    masks = {name for name in images if (match := MASK_OF.match(stem(name))) and match.group(1) in stems}
    aside.masks.extend(sorted(masks))
    return [name for name in images if name not in masks]


def by_layout(root: Path, studies: Mapping[str, Sequence[str]], views: bool) -> tuple[bool, dict[str, list[str]]]:
    """Whether the images of studies are views, and the studies that are not of one kind with the rest, by what is wrong.

    The frames of a DICOM file are slices of a volume, which is a study of its own.

    Args:
        studies: id and images of each, relative to ``root``.
        views: False: several files of a study are slices of a volume, in their order.

    Raises:
        UserError: there are DICOM files, and pydicom is not installed.
    """
    files = [i for images in studies.values() for i in images if not i.lower().endswith((*SUFFIXES, ARRAY))]
    if not files:
        return views, {}
    layouts = dict(zip(files, dicom_layouts([root / image for image in files]), strict=True))
    frames = {study: max(layouts.get(image, (1, False))[0] for image in images) for study, images in studies.items() if images}
    volumes = [study for study, number in frames.items() if number > 1]
    mixed = [study for study in volumes if len(studies[study]) > 1]
    series = [study for study, images in studies.items() if views and sum(layouts.get(i, (1, False))[1] for i in images) > 1]
    faults = {
        "studies of several files, one of which is a volume of its own (several frames)": mixed,
        "studies that look like a series of slices (CT, MR or PET, a file each), which would be taken for views; make each one "
        "file of several frames, or list its files in order in a table with dataset.views=false": series,
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
