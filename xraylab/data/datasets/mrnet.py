"""MRNet-v1.0: knee MRI exams (Bien et al. 2018, PLOS Medicine 15:e1002699).

``MRNet-v1.0/{train,valid}/{axial,coronal,sagittal}/NNNN.npy`` are uint8 arrays (slices, 256, 256);
``{train,valid}-{abnormal,acl,meniscus}.csv`` at the root have no header and rows like ``0000,1``.
No patient ids ship, so splits are disjoint by exam only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xraylab.data.datasets.base import DatasetReader
from xraylab.data.datasets.csv_cells import text_lines
from xraylab.data.images.source import NpySource
from xraylab.data.published import MRNET, Published
from xraylab.data.published import MRNET_PLANES as PLANES
from xraylab.data.stratification import written
from xraylab.data.study_table import ALL_LABELS, Problems, StudyTable, named
from xraylab.data.synthetic.knee import write_mrnet
from xraylab.errors import UserError, did_you_mean, require_each_once

ALL = "all"  # the three planes of an exam as one study
TASKS = ("abnormal", "acl", "meniscus")


class MRNet(DatasetReader):
    """Reader of MRNet-v1.0: one plane, or all three at once, with one or several of its three labels.

    Args:
        plane: axial, coronal or sagittal; or all: a study is then an exam that has all three, each a part of its own.
        task: abnormal, acl or meniscus, or a list of them.

    >>> import tempfile
    >>> root = write_mrnet(Path(tempfile.mkdtemp()) / "MRNet-v1.0", train=20, valid=30, slices=(2, 3))
    >>> table = MRNet(plane="axial", task="acl").read(root)
    >>> len(table.frame), table.labels
    (50, ('acl',))
    """

    published_name = "MRNet-v1.0"
    expected = """
  MRNet-v1.0/
    train/
      axial/0000.npy ... 1129.npy     (also coronal/ and sagittal/)
    valid/
      axial/1130.npy ... 1249.npy     (also coronal/ and sagittal/)
    train-abnormal.csv  train-acl.csv  train-meniscus.csv
    valid-abnormal.csv  valid-acl.csv  valid-meniscus.csv"""
    register = (
        "free for research after registration with the Stanford ML Group, https://stanfordmlgroup.github.io/competitions/mrnet/"
    )

    heldout = "valid"
    writer = write_mrnet

    def __init__(
        self, root: str | None = None, plane: str = "axial", task: str | Sequence[str] = "acl", on_error: str = "stop",
        sample: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(root, on_error, sample)
        self.plane, self.planes = plane, PLANES if plane == ALL else (plane,)
        self.tasks = (task,) if isinstance(task, str) else tuple(task)
        if plane not in (*PLANES, ALL):
            hint = did_you_mean(str(plane), (*PLANES, ALL))
            raise UserError(f"plane={plane}: it is one of {', '.join(PLANES)}, or {ALL}.{hint}")
        require_each_once(self.tasks, TASKS, f"task={task}: it is one of {', '.join(TASKS)}, or a list of them, each once.")

    def matches(self, path: Path) -> bool:
        """A folder with the exams of its planes, and the labels of every task, for train and valid."""
        return all(
            all((path / split / plane).is_dir() for plane in self.planes)
            and all((path / f"{split}-{t}.csv").is_file() for t in self.tasks)
            for split in ("train", "valid")
        )

    def read(self, path: Path) -> StudyTable:
        """One row an exam; the held-out split is the published valid."""
        problems: Problems = defaultdict(list)
        frames = [self._read_split(path, split, problems) for split in ("train", "valid")]
        frame = pd.concat(frames, ignore_index=True)
        twice = frame["id"].duplicated()
        problems["ids in both train and valid"] += frame.loc[twice, "id"].tolist()
        return self.table_of(
            path,
            frame[~twice].reset_index(drop=True),
            problems,
            len(frame) + sum(map(len, problems.values())),
            labels=self.tasks,
            source=NpySource(path),
            name=self.published_name,
            patients_known=False,
            parts=self.planes if "parts" in frame else (),
        )

    def _read_split(self, path: Path, split: str, problems: Problems) -> pd.DataFrame:
        labels = pd.DataFrame({t: _read_labels(path / f"{split}-{t}.csv", problems) for t in self.tasks})
        others = [t for t in TASKS if t not in self.tasks and (path / f"{split}-{t}.csv").is_file()]
        every = labels.copy()
        for task in others:
            with suppress(UserError):  # of what is not asked for, nothing is said or refused
                every[task] = _read_labels(path / f"{split}-{task}.csv", defaultdict(list))
        told = written(every.reindex(columns=list(TASKS)))
        for task in self.tasks:
            missing, known = labels.index[labels[task].isna()], named(problems)
            problems[f"exams of {split} without a row in {split}-{task}.csv"] += [i for i in missing if i not in known]
        labels = labels.dropna()
        whole = set(labels.index)
        for folder in (f"{split}/{plane}" for plane in self.planes):
            files = {p.stem for p in (path / folder).glob("*.npy") if not p.name.startswith(".")}
            problems[f"ids of {split} without a file in {folder}"] += sorted(set(labels.index) - files)
            unlabelled = files - set(labels.index) - named(problems)
            problems[f"files in {folder} without a label"] += [f"{name}.npy" for name in sorted(unlabelled)]
            faults = {name: _fault(path / folder / f"{name}.npy") for name in labels.index if name in files}
            unusable = [f"{folder}/{name}.npy ({fault})" for name, fault in faults.items() if fault]
            problems["arrays that cannot be used"] += unusable
            whole &= {name for name, fault in faults.items() if not fault}
        labels = labels[labels.index.isin(whole)]
        parts = {"parts": [self.planes] * len(labels)} if self.plane == ALL else {}
        columns = {
            "id": labels.index,
            "patient": "",
            "group": "+".join(self.planes),
            "split": "train" if split == "train" else "heldout",
            "images": [tuple(f"{split}/{plane}/{name}.npy" for plane in self.planes) for name in labels.index],
            **parts,
            **{task: labels[task].to_numpy(np.float32) for task in self.tasks},
            ALL_LABELS: told[labels.index].tolist(),
        }
        return pd.DataFrame(columns)

    def whole(self, path: Path) -> list[DatasetReader]:
        """A reader a plane, each of all tasks whose labels are there."""
        tasks = [t for t in TASKS if all((path / f"{split}-{t}.csv").is_file() for split in ("train", "valid"))]
        return [MRNet(self.root, plane, tasks, self.on_error, self.sample) for plane in PLANES]

    def published(self, table: StudyTable) -> list[Published]:
        """Exams and slices by plane, positive exams by task."""
        counts = []
        for split, of in MRNET.items():
            counts += [Published("studies", of["exams"], split, plane) for plane in PLANES]
            counts += [Published("images a study", slices, split, plane) for plane, slices in of["slices"].items()]
            counts += [Published("studies", n, split, label=(task, 1)) for task, n in of["positives"].items()]
        return counts

    def lists(self, path: Path) -> tuple[str, ...]:
        """The six CSVs."""
        return tuple(f"{split}-{task}.csv" for split in ("train", "valid") for task in TASKS)


def _read_labels(path: Path, problems: Problems) -> pd.Series:
    """Labels 0/1 by id from a CSV without a header; rows that are wrong are named in ``problems``."""
    values: dict[str, float] = {}
    seen: set[str] = set()
    for number, line in enumerate(text_lines(path), start=1):
        if not line.strip():
            continue
        cells = [c.strip().strip('"') for c in line.split(",")]
        name = cells[0].zfill(4)
        if len(cells) != 2 or not cells[0].isdigit():
            problems[f"rows of {path.name} that are not <id>,<0 or 1>"].append(f"line {number}: {line[:40]}")
        elif cells[1] not in ("0", "1", "0.0", "1.0"):
            problems[f"labels in {path.name} other than 0 and 1"].append(f"{name} ({cells[1]!r}, line {number})")
            values.pop(name, None)
        elif name in seen:
            problems[f"duplicate ids in {path.name}"].append(f"{name} (line {number})")
            values.pop(name, None)
        else:
            values[name] = float(cells[1])
        seen.add(name)
    return pd.Series(values, dtype=np.float32).sort_index()


def _fault(path: Path) -> str | None:
    """Why an exam cannot be used, from its header and length alone; None if it can."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        return f"unreadable: {str(error).splitlines()[0][:80]}" if str(error) else "unreadable"
    if not isinstance(array, np.ndarray):
        return "an archive, not an array"
    if array.dtype != np.uint8:
        return f"dtype {array.dtype}, expected uint8"
    if array.ndim != 3 or len(array) == 0 or array.shape[1:] != (256, 256):
        return f"shape {array.shape}, expected (slices, 256, 256)"
    return None
