"""Studies without labels, to predict: a folder, a list, or single files, of PNG, JPEG, TIFF, NumPy arrays, DICOM and NIfTI.

Ids are paths as given or as below the folder, without the suffix; of studies that lie as a published set has them, those of that
set's own tables. Nothing inside a file names its study.
"""

from __future__ import annotations

import csv
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pandas as pd

from xraylab.data.datasets.layout import id_pattern
from xraylab.data.images.dicom import is_dicom
from xraylab.data.images.nifti import is_nifti
from xraylab.data.images.source import SUFFIXES, is_picture, stem
from xraylab.data.images.volumes import DICOMDIR
from xraylab.data.synthetic.mark import SYNTHETIC_MARK
from xraylab.errors import UserError, did_you_mean, listed, printable
from xraylab.run import FOREIGN
from xraylab.system.paths import LEAVINGS
from xraylab.system.remote import local

log = logging.getLogger(__name__)

LISTS = (".csv", ".txt", ".tsv", ".lst")
PATHS = ("path", "paths", "image", "images", "file", "files", "filename", "study")  # names of a list's column of paths
#: of MURA and CheXpert: a study's folder, its patient, and of MURA its body part
STUDY_FOLDER = re.compile(r"(?:^|/)patient\d+/study[^/]*$")
PATIENT, PART = re.compile(r"(?:^|/)(patient\d+)(?:/|$)"), re.compile(r"(?:^|/)XR_([A-Z]+)(?:/|$)")
#: ends of a study's path in a published set, and its id there: MURA and CheXpert, MIMIC-CXR, ChestX-ray14
PUBLISHED = (
    re.compile(r"(?:^|/)((?:train|valid|test)/(?:XR_[A-Z]+/)?patient\d+/study[^/]*)$"),
    re.compile(r"(?:^|/)p\d\d/p\d+/(s\d+)$"),
    re.compile(r"(?:^|/)(\d{8}_\d{3}\.png)$"),
)
NO_UTF8 = "its name is not UTF-8; rename it"
FROM_THE_REST, LEFT_OUT = "predicted from the rest", "left out"
COLUMNS = ["id", "patient", "group", "images", "path"]


class Skipped(NamedTuple):
    """A file that is not predicted from."""

    id: str  # of its study
    file: str
    reason: str
    study: str  # what became of the study


@dataclass(frozen=True)
class Files:
    """Studies that an input names, as files.

    Attributes:
        frame: one row a study: ``id``, ``patient`` and ``group`` (blank where not known), ``images`` (absolute paths) and
            ``path``, of the study's folder, or of its file.
        name: of the input, for the results' name.
        missing: what the input names and is not there.
        top: the folder that was given, in which it is found out what is a study; None: the input says what is one.
    """

    frame: pd.DataFrame
    name: str
    missing: list[Skipped] = field(default_factory=list)
    top: Path | None = None

    @property
    def synthetic(self) -> bool:
        """Whether a file lies in a folder that the sample generator wrote."""
        folders = {Path(image).parent for images in self.frame["images"] for image in images}
        return any((above / SYNTHETIC_MARK).is_file() for above in {a for f in folders for a in (f, *f.parents)})


def find_studies(
    given: str | Sequence[str], study: str = "auto", patient: str | None = None, group: str | None = None,
    root: str | None = None,
) -> Files:  # fmt: skip
    """The studies that an input stands for, in its order: a folder's by path, a list's and files' as given.

    Args:
        given: a folder or its URL; a list of paths (``.csv``, ``.txt``, ``.tsv``, ``.lst``); a file; or several of those files.
        study: ``file``: each file is a study; ``folder``: all images of a folder are one; ``auto``: a file that lies directly
            in the given folder, or is listed, is a study, and so is every array; other images are one study with those of
            their folder, as are all images of ``patient…/study…/``.
        patient, group: regular expressions with one group, searched in a study's path; None: as MURA and CheXpert name them.
        root: the folder that the paths of a list start from; None: the list's, the one above it, or the current one.

    Raises:
        UserError: there is nothing, or nothing that is an image, or the list cannot be read.
    """
    if study not in ("auto", "file", "folder"):
        raise UserError(f"study={study}: it is auto, file or folder.")
    patterns = {"patient": PATIENT, "group": PART}
    for key, asked in (("patient", patient), ("group", group)):
        if asked is not None:
            patterns[key] = id_pattern(key, asked, f"; it needs one, round what names the {key}.")
    names = [given] if isinstance(given, str) else [str(name) for name in given]
    if foreign := [name for name in names if name.lower().endswith(FOREIGN)]:
        raise UserError(
            f"input={foreign[0]}: weights of other frameworks are out of scope, and are nothing to predict. input is images: a "
            "split of the run's own data, a folder, a list of paths (.csv or .txt) or files."
        )
    if not isinstance(given, str):
        return _of_list([(None, name) for name in names], "files", [Path()], "file" if study == "auto" else study, patterns)
    path = local(given)
    path = path.parent if path.name == DICOMDIR and path.is_file() else path
    if path.is_dir():
        return _of_folder(path, study, patterns)
    if not path.is_file():
        hint = did_you_mean(str(given), ("train", "valid", "test"))
        raise UserError(
            f"input={given}: there is no such file or folder.{hint} It is train, valid or test, for a split of the run's own "
            "data; a folder; a list of paths (.csv or .txt); or a file, or [several,files]."
        )
    if path.suffix.lower() in LISTS:
        roots = [Path(root).expanduser()] if root else [path.parent, path.parent.parent, Path()]
        if root and not roots[0].is_dir():
            raise UserError(f"root={root}: there is no such folder.")
        return _of_list(_read_list(path), path.stem, roots, study, patterns)
    return _of_list([(_published(path.as_posix()) or path.stem, str(path))], path.stem, [Path()], "file", patterns)


def _of_folder(top: Path, study: str, patterns: dict[str, re.Pattern[str]]) -> Files:
    strays: list[str] = []
    bags: dict[str, list[str]] = {}
    files: set[str] = set()  # those of them that are a file
    whole = STUDY_FOLDER.search(os.path.abspath(top)) is not None
    odd: list[str] = []
    for file in _files_in(top):
        name = file.relative_to(top).as_posix()
        if printable(name) != name:
            odd.append(printable(name))
            continue
        if not is_picture(file):
            strays.append(name)
            continue
        folder = name.rpartition("/")[0]
        alone = study == "file" or (
            study == "auto" and (file.suffix.lower() == ".npy" or is_nifti(file) or (not folder and not whole))
        )
        files.update({name} if alone else ())
        bags.setdefault(name if alone else folder, []).append(str(file.absolute()))
    if strays:
        log.warning("%s: %d files are not images and are left alone: %s", top, len(strays), listed(strays))
    if not bags:
        raise UserError(f"input={top}: there is no image in it: {listed(SUFFIXES)}, .npy, NIfTI or DICOM.")
    name_of = os.path.basename(os.path.abspath(top))
    ids = [_published((top / name).absolute().as_posix()) or (stem(name) if name in files else name or name_of) for name in bags]
    twice = Counter(ids)
    rows = [
        _row(name if twice[i] > 1 else i, (top / name).absolute().as_posix(), bags[name], patterns)
        for name, i in zip(bags, ids, strict=True)
    ]
    lost = [Skipped(stem(n), n, NO_UTF8, LEFT_OUT) for n in odd]
    return Files(pd.DataFrame(rows, columns=COLUMNS), name_of, lost, top if study == "auto" else None)


def _of_list(
    entries: Iterable[tuple[str | None, str]], name: str, roots: Sequence[Path], study: str, patterns: dict[str, re.Pattern[str]]
) -> Files:
    """Studies of ids (None: the path says it) and paths, of files or of folders whose images are a study."""
    bags: dict[str, list[str]] = defaultdict(list)
    paths: dict[str, str] = {}
    named: dict[str, set[str]] = defaultdict(set)
    missing: list[tuple[str, str]] = []
    for given_id, given in entries:
        posix = PurePosixPath(given.replace("\\", "/")).as_posix()
        folder = posix.rpartition("/")[0]
        places = [root / name for name in (given, posix) for root in roots]  # a backslash as it is, or as Windows means it
        found = next((place for place in places if place.is_file() or place.is_dir()), None)
        found = found.parent if found is not None and found.name == DICOMDIR else found
        whole = found is not None and found.is_dir()
        of_folder = study == "folder" or (study == "auto" and STUDY_FOLDER.search(folder) is not None)
        path = folder if of_folder and not whole else posix
        study_id = given_id or _published(path) or (path if whole or of_folder else stem(path))
        if given_id is None and paths.get(study_id, path) != path:
            study_id = posix  # of two files that differ in the suffix alone
        paths.setdefault(study_id, path)
        if given in named[study_id]:
            raise UserError(f"{name}: {given} is listed twice for the study {study_id}. Keep it once.")
        named[study_id].add(given)
        if found is not None and whole:
            inside = [str(file.absolute()) for file in _files_in(found, deep=False)]
            images = [file for file in inside if printable(file) == file and is_picture(file)]
            if not images:  # a disk, whose folders hold folders
                inside = [str(file.absolute()) for file in _files_in(found)]
                images = [file for file in inside if printable(file) == file and is_picture(file) and is_dicom(Path(file))]
        else:
            images = [] if found is None else [str(found.absolute())]
        bags[study_id] += images
        if not images:
            missing.append((study_id, given))
    if not bags:
        raise UserError(f"{name}: there is no path in it.")
    reason = "there is no such file, or no image in that folder"
    lost = [Skipped(i, file, reason, FROM_THE_REST if bags[i] else LEFT_OUT) for i, file in missing]
    rows = [_row(i, paths[i], images, patterns) for i, images in bags.items() if images]
    if not rows:
        raise UserError(
            f"{name}: not one of its {len(bags)} files is there; the first would be {(roots[0] / missing[0][1]).absolute()}. "
            "Name the folder that its paths start from: root=<folder>."
        )
    return Files(pd.DataFrame(rows, columns=COLUMNS), name, lost)


def of_plane(files: Files, plane: str, planes: Sequence[str]) -> Files:
    """Of exams in several planes, which folders name, the images of the plane that a model was trained on.

    Ids are without the plane, so that those of several planes, and of the published set's own tables, are the same.

    Raises:
        UserError: there are images of other planes only.
    """
    named = [next((part for part in reversed(path.split("/")) if part in planes), None) for path in files.frame["path"]]
    if not any(named):
        return files
    frame = files.frame[[p in (plane, None) for p in named]].reset_index(drop=True)
    if frame.empty:
        there = listed(sorted({p for p in named if p}))
        raise UserError(f"{files.name}: these are images of {there}; the model was trained on plane={plane}.")
    if len(frame) < len(named):
        log.info("%d of %d studies are of another plane than %s, and left alone", len(named) - len(frame), len(named), plane)
    ids = _exams(frame, [plane] * len(frame))
    if len(set(ids)) == len(ids):
        frame["id"] = ids
    frame["group"] = frame["group"].where(frame["group"] != "", plane)
    return replace(files, frame=frame)


def with_parts(files: Files, parts: Sequence[str]) -> Files:
    """Studies of several volumes, which folders or files name: ``axial/1130.npy`` and ``1130/axial.npy`` are of study ``1130``.

    Returns:
        A frame with a column ``parts``; ``missing`` names what is not of a study with all parts.

    Raises:
        UserError: no study has all parts.
    """
    lost = list(files.missing)
    studies: dict[str, dict[Any, Any]] = {}
    words = ([*p.split("/")[:-1], i.rpartition("/")[2]] for p, i in zip(files.frame["path"], files.frame["id"], strict=True))
    named = [next((word for word in reversed(of) if word in parts), "") for of in words]
    for row, part, study in zip(files.frame.to_dict("records"), named, _exams(files.frame, named), strict=True):
        if not part:
            lost.append(Skipped(row["id"], row["path"], f"its path does not name one of {', '.join(parts)}", LEFT_OUT))
            continue
        of = studies.setdefault(study, {**row, "id": study, "of": {}})
        of["of"].setdefault(part, []).extend(row["images"])
    whole = []
    for study, found in studies.items():
        of = found.pop("of")
        if missing := [part for part in parts if part not in of]:
            lost.append(Skipped(study, "", f"there is no {' and no '.join(missing)} of it", LEFT_OUT))
            continue
        pairs = [(image, part) for part in parts for image in of[part]]
        found["group"] = found["group"] or "+".join(parts)
        found["images"], found["parts"] = (tuple(column) for column in zip(*pairs, strict=True))
        whole.append(found)
    if not whole:
        raise UserError(
            f"{files.name}: the model sees {', '.join(parts)} of a study at once, and no study has them all. "
            f"Call their folders, or files, so: {parts[0]}/<study>.npy or <study>/{parts[0]}.npy."
        )
    return replace(files, frame=pd.DataFrame(whole), missing=lost)


def _exams(frame: pd.DataFrame, parts: Sequence[str]) -> list[str]:
    """Ids without the part that a path names, and as MRNet's own tables have them where the path ends as there, in
    ``<split>/<part>/<exam>``; unless exams of two splits would be one."""
    whole, short = [], []
    for study, path, part in zip(frame["id"], frame["path"], parts, strict=True):
        whole.append("/".join(word for word in study.split("/") if word != part))
        match = re.search(rf"(?:^|/)(?:train|valid|test)/{re.escape(part)}/([^/]+)$", path)
        exam = stem(match.group(1)) if match else ""
        short.append(exam if exam and f"/{whole[-1]}".endswith(f"/{exam}") else whole[-1])
    return short if len(set(short)) == len(set(whole)) else whole


def _published(path: str) -> str | None:
    """The id that the published set's own tables have of a study there; None where the path is of none."""
    return next((match.group(1) for pattern in PUBLISHED if (match := pattern.search(path))), None)


def _row(study: str, path: str, images: Sequence[str], patterns: dict[str, re.Pattern[str]]) -> dict[str, object]:
    found = {key: pattern.search(path) for key, pattern in patterns.items()}
    patient, group = (m.group(1) or "" if (m := found[key]) else "" for key in ("patient", "group"))
    group = group.lower() if patterns["group"] is PART else group
    return {"id": study, "patient": patient, "group": group, "images": tuple(images), "path": path}


def _read_list(path: Path) -> list[tuple[str | None, str]]:
    """Ids (None where the list has none) and paths of a list.

    With a header, a column ``path``, ``image`` or the like and perhaps ``id``; without one, the first column.

    Raises:
        UserError: it cannot be read, or has a header without a column of paths.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            separator = "\t" if path.suffix.lower() == ".tsv" else ","
            rows = [[c.strip() for c in row] for row in csv.reader(file, delimiter=separator) if any(c.strip() for c in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a list of paths: {error}.") from error
    if not rows:
        raise UserError(f"{path}: there is no path in it.")
    header = [cell.lower() for cell in rows[0]]
    column = next((header.index(name) for name in PATHS if name in header), None)
    if column is None and "id" in header:
        raise UserError(f"{path}: there is no column of paths beside id. Call it path. There are: {listed(rows[0], 30)}.")
    if column is None:
        return [(None, row[0]) for row in rows if row[0]]
    ids = header.index("id") if "id" in header else None
    entries: list[tuple[str | None, str]] = []
    for number, row in enumerate(rows[1:], start=2):
        if len(row) <= max(column, ids or 0) or not row[column] or (ids is not None and not row[ids]):
            raise UserError(f"{path}: row {number} has no path, or no id: {listed(row, 5)}.")
        for image in re.split("[;|]", row[column]):
            entries.append((row[ids] if ids is not None else None, image.strip()))
    return entries


def _files_in(folder: Path, deep: bool = True, above: tuple[str, ...] = ()) -> Iterable[Path]:
    """Files in a folder and, if deep, below it, by path, but for hidden ones and what archives and desktops leave.

    Args:
        above: the real paths of the folders that this one was reached by, into which a link may lead back.
    """
    here = os.path.realpath(folder)
    if here in above:
        log.warning("%s: a link that leads in a circle is not followed", printable(str(folder)))
        return
    try:
        with os.scandir(folder) as found:
            entries = sorted((e for e in found if not LEAVINGS.match(e.name)), key=lambda e: _natural(e.name))
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed: {error.strerror}.") from error
    for entry in entries:
        if os.path.isfile(entry.path):
            yield Path(entry.path)
        elif deep and os.path.isdir(entry.path):
            yield from _files_in(Path(entry.path), deep, (*above, here))
        elif deep:
            log.warning("%s: a link that leads nowhere, or no file, is left alone", printable(entry.path))


def _natural(name: str) -> list[tuple[int, str]]:
    """A key by which ``image10`` follows ``image9``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
