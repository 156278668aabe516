"""How fast the lists of CheXpert and MIMIC-CXR-JPG become study tables: ``python experiments/speed/chest_tables.py``."""

from __future__ import annotations

import argparse
import gzip
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from xraylab.data.datasets import chest_xray as radiographs
from xraylab.data.datasets.chexpert import CheXpert
from xraylab.data.datasets.mimic_cxr import MIMIC
from xraylab.data.findings import CHEXPERT

NAMES = [radiographs.spelled(label) for label in CHEXPERT]
PROMISE = 30.0  # seconds that a dataset's lists take at most
MEMORY = 1.0  # GB of resident memory at most


def main() -> int:
    """Print a line a dataset; 1 where a promise is not kept, else 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of the published number of patients")
    parser.add_argument("--files", type=int, default=50_000, help="tiny files to look for")
    asked = parser.parse_args()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"{cores} cores, load {os.getloadavg()[0]:.2f}; pandas {pd.__version__}. SYNTHETIC: made-up rows in the published")
    print("layout and number, no images; the check that image files exist is left out of the first lines and timed alone in the")
    print("last. Each timing is of a process of its own, its imports done, files in the page cache; peak RSS is of all of it.")
    kept = []
    with tempfile.TemporaryDirectory() as folder:
        for name, write, read in (("CheXpert", chexpert, read_chexpert), ("MIMIC-CXR-JPG", mimic, read_mimic)):
            root = write(Path(folder) / name, asked.share)
            lists = sorted(root.glob("*.csv*"))
            size = sum(path.stat().st_size for path in lists) / 1e6
            said, seconds, peak = alone(read, root)
            _, base_seconds, base_peak = alone(read_alone, root)
            print(
                f"{name}: {said} from {len(lists)} lists, {size:.0f} MB: {seconds:.1f} s, peak RSS {peak:.2f} GB; baseline, "
                f"pandas.read_csv of the same lists alone: {base_seconds:.1f} s, {base_peak:.2f} GB"
            )
            kept.append(seconds <= PROMISE and peak <= MEMORY)
        said, seconds, _ = alone(look, tiny_files(Path(folder) / "files", asked.files))
        _, base_seconds, _ = alone(look_one_by_one, Path(folder) / "files")
        print(f"files: {said}: {seconds:.2f} s; baseline, os.stat of one after another: {base_seconds:.2f} s")
    print(f"the promise is {PROMISE:.0f} s and {MEMORY:.0f} GB: {'kept' if all(kept) else 'NOT kept'}")
    return 0 if all(kept) else 1


def alone(job: Callable[[Path], str], root: Path) -> tuple[str, float, float]:
    """What a job says, its seconds, and its peak resident memory in GB, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_timed, (job, root))


def _timed(job: Callable[[Path], str], root: Path) -> tuple[str, float, float]:
    start = time.perf_counter()
    said = job(root)
    seconds = time.perf_counter() - start
    return said, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)


def _there(path: Path | str) -> str | None:
    return None


def read_chexpert(root: Path) -> str:
    """Read the study table of all views, files not looked for."""
    radiographs.file_fault = _there
    table = CheXpert(view="all").read(root)
    return f"{table.frame['images'].map(len).sum():,} images of {len(table.frame):,} studies"


def read_mimic(root: Path) -> str:
    """Read the study table of all views, files not looked for."""
    radiographs.file_fault = _there
    table = MIMIC(view="all").read(root)
    return f"{table.frame['images'].map(len).sum():,} images of {len(table.frame):,} studies"


def read_alone(root: Path) -> str:
    """Parse the lists and keep them."""
    frames = [pd.read_csv(path) for path in sorted(root.glob("*.csv*")) if "negbio" not in path.name]
    return str(sum(map(len, frames)))


def look(root: Path) -> str:
    """Look for files as readers do."""
    images = [f"{i // 1000:03d}/{i:06d}.jpg" for i in range(len(list(root.rglob("*.jpg"))))]
    assert not any(radiographs.file_faults(root, images))
    return f"{len(images):,} tiny files found"


def look_one_by_one(root: Path) -> str:
    """The baseline."""
    images = [f"{i // 1000:03d}/{i:06d}.jpg" for i in range(len(list(root.rglob("*.jpg"))))]
    return str(sum(os.stat(root / image).st_size > 0 for image in images))


# ---- made-up lists --------------------------------------------------------------------------------------------------


def _cells(rng: np.random.Generator, n: int) -> np.ndarray:
    """Labels as reports have them, texts (n, 14)."""
    return rng.choice(np.array(["", "1.0", "0.0", "-1.0"], object), (n, len(NAMES)), p=[0.72, 0.16, 0.08, 0.04])


def _numbered(rng: np.random.Generator, total: int, parents: int) -> np.ndarray:
    """Which of ``parents`` each of ``total`` belongs to, ascending; each has one at least."""
    return np.sort(np.concatenate([np.arange(parents), rng.integers(0, parents, total - parents)]))


def _places(groups: np.ndarray) -> np.ndarray:
    """The place of each row among those of its group, from 1 on."""
    first = np.flatnonzero(np.diff(groups, prepend=-1))
    return np.arange(len(groups)) - first[np.cumsum(np.diff(groups, prepend=-1) > 0) - 1] + 1


def chexpert(root: Path, share: float = 1.0) -> Path:
    """CheXpert's lists: 223,414 images, 187,641 studies, 64,540 patients of train; 234, 200, 200 of valid."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True)
    for split, first, numbers in (("train", 1, (223414, 187641, 64540)), ("valid", 64541, (234, 200, 200))):
        images, studies, patients = (max(1, int(n * share)) if split == "train" else n for n in numbers)
        patient = _numbered(rng, studies, patients)
        study = _numbered(rng, images, studies)
        visit, view = _places(patient)[study], _places(study)
        labels = _cells(rng, studies)
        with open(root / f"{split}.csv", "w") as file:
            file.write(f"Path,Sex,Age,Frontal/Lateral,AP/PA,{','.join(NAMES)}\n")
            for s, v, k in zip(study, visit, view, strict=True):
                side = "frontal" if k % 3 else "lateral"
                path = f"CheXpert-v1.0-small/{split}/patient{patient[s] + first:05d}/study{v}/view{k}_{side}.jpg"
                projection = ("PA" if s % 6 == 0 else "AP") if k % 3 else ""
                file.write(f"{path},Female,{20 + s % 70},{side.title()},{projection},{','.join(labels[s])}\n")
    return root


def mimic(root: Path, share: float = 1.0) -> Path:
    """MIMIC-CXR-JPG's lists: 377,110 images, 227,827 studies, 65,379 subjects."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True)
    images, studies, patients = (max(1, int(n * share)) for n in (377110, 227827, 65379))
    subject = _numbered(rng, studies, patients)
    split = np.array(["train", "validate", "test"], object)[np.searchsorted([64586, 65086], np.arange(patients) / share, "right")]
    study = _numbered(rng, images, studies)
    number = 50_000_000 + rng.permutation(studies)
    parts = rng.integers(0, 2**32, (images, 5))
    names = ["-".join(f"{p:08x}" for p in row) for row in parts.tolist()]
    positions = rng.choice(np.array(["AP", "PA", "LATERAL", "LL", ""], object), images, p=[0.39, 0.25, 0.21, 0.1, 0.05])

    def write(kind: str, header: str, lines: list[str]) -> None:
        with gzip.open(root / f"mimic-cxr-2.0.0-{kind}.csv.gz", "wt", compresslevel=1) as file:
            file.write("\n".join([header, *lines, ""]))

    keys = [(n, number[s], 10_000_000 + subject[s], split[subject[s]]) for n, s in zip(names, study, strict=True)]
    write("split", "dicom_id,study_id,subject_id,split", [",".join(map(str, k)) for k in keys])
    header = "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime"
    about = [f"CHEST (PA AND LAT),{p},3056,2544,21800506,213014.531" for p in positions]
    lines = [f"{n},{j},{s},{rest}" for (n, s, j, _), rest in zip(keys, about, strict=True)]
    write("metadata", header, lines)
    header = f"subject_id,study_id,{','.join(NAMES)}"
    rows = [f"{10_000_000 + j},{n}," for j, n in zip(subject, number, strict=True)]
    for kind in ("chexpert", "negbio"):
        write(kind, header, [row + ",".join(cells) for row, cells in zip(rows, _cells(rng, studies), strict=True)])
    return root


def tiny_files(root: Path, n: int) -> Path:
    """Files of one byte, 1,000 a folder."""
    for i in range(n):
        if i % 1000 == 0:
            (root / f"{i // 1000:03d}").mkdir(parents=True)
        (root / f"{i // 1000:03d}" / f"{i:06d}.jpg").write_bytes(b"x")
    return root


if __name__ == "__main__":
    sys.exit(main())
