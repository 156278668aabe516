"""MedMNIST v2: small, openly licensed pictures, one ``.npz`` a set (Yang et al. 2023, Scientific Data 10:41).

``{train,val,test}_images`` are uint8 (N,28,28), (N,28,28,3), or (N,28,28,28) for the 3D sets, whose volumes are studies of
28 slices; ``{train,val,test}_labels`` are (N,1) class indices, or (N,14) binary for ChestMNIST. Patients are not given.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xraylab.data.datasets.base import DatasetReader
from xraylab.data.images.source import ArraySource
from xraylab.data.published import MEDMNIST, Published, Subset
from xraylab.data.study_table import StudyTable
from xraylab.data.synthetic.medmnist import write_medmnist
from xraylab.errors import UserError, did_you_mean, listed, refusing

SPLITS = {"train": "train", "val": "valid", "test": "test"}
RESOLUTIONS = (28, 64, 128, 224)
DEFAULT = "pneumoniamnist"


class MedMNIST(DatasetReader):
    """Reader of one set of MedMNIST v2.

    Args:
        subset: its name, or ``auto``: by the file that ``root`` names, else pneumoniamnist.
        resolution: 28, 64, 128 or 224, the published variants.

    >>> import tempfile
    >>> path = write_medmnist(Path(tempfile.mkdtemp()) / "breastmnist.npz", "breastmnist", train=8, val=4, test=4)
    >>> table = MedMNIST(subset="breastmnist").read(path)
    >>> len(table.frame), table.labels
    (16, ('normal-or-benign',))
    """

    register = "free without registration, CC BY 4.0 (dermamnist: CC BY-NC 4.0), https://medmnist.com"

    def __init__(
        self, root: str | None = None, subset: str = "auto", resolution: int = 28, on_error: str = "stop",
        sample: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(root, on_error, sample)
        named, size = _split_name(Path(root)) if root and str(root).endswith(".npz") else (None, None)
        if subset == "auto" and str(root).endswith(".npz") and not named:
            raise UserError(f"dataset.root={root}: the file's name does not tell the set: add subset=<name>.")
        if size and resolution not in (28, size):
            raise UserError(f"resolution={resolution} but dataset.root={root} is of {size} pixels: leave one of them out.")
        self.subset = (named or DEFAULT) if subset == "auto" else subset
        self.resolution = size or resolution
        if self.subset not in MEDMNIST:
            raise UserError(
                f"subset={subset}: there is no such set.{did_you_mean(str(subset), MEDMNIST)} There are: {listed(MEDMNIST, 20)}."
            )
        if self.resolution not in RESOLUTIONS:
            raise UserError(f"resolution={resolution}: it is one of {', '.join(map(str, RESOLUTIONS))}.")
        if named and named != self.subset:
            raise UserError(f"subset={subset} but dataset.root={root} is {named}: leave one of them out.")
        self.published_name = f"{self.subset}.npz" if self.resolution == 28 else f"{self.subset}_{self.resolution}.npz"
        about = MEDMNIST[self.subset]
        self.settings = ({"backbone.in_chans": 3} if about.colour else {}) | (
            {"loss": "cross_entropy"} if about.kind == "classes" else {}
        )
        counts = about.counts
        self.expected = (
            f"  {self.published_name}\n    train_images, val_images, test_images: uint8 arrays of "
            f"{counts[0]}, {counts[1]}, {counts[2]} items\n    train_labels, val_labels, test_labels"
        )

    def matches(self, path: Path) -> bool:
        """A file that ends in ``.npz``; as the published name, or given itself."""
        return path.is_file() and path.suffix == ".npz"

    def read(self, path: Path) -> StudyTable:
        """One row an image, or a volume; the published splits."""
        about = MEDMNIST[self.subset]
        arrays, labels = self._load(path, about)
        names = about.labels.split()
        columns = names[1:] if about.kind == "binary" else names
        frames, problems = [], {}
        for key, split in SPLITS.items():
            raw = labels[key]
            if about.kind == "findings":
                bad = ~np.isin(raw, (0, 1)).all(1)
                values = raw.astype(np.float32)
            else:
                bad = ~np.isin(raw[:, 0], np.arange(len(names)))
                values = (raw == np.arange(len(names))).astype(np.float32)
                values = values[:, 1:] if about.kind == "binary" else values
            strange = [f"{key}:{i} ({raw[i].tolist()})" for i in np.flatnonzero(bad)]
            problems[f"labels in {key}_labels outside the {len(names)} of {self.subset}"] = strange
            index = np.flatnonzero(~bad)
            frames.append(
                pd.DataFrame(
                    {
                        "id": [f"{key}-{i:06d}" for i in index],
                        "patient": "",
                        "group": self.subset,
                        "split": split,
                        "images": [(f"{key}:{i}",) for i in index],
                        **{name: values[index, j] for j, name in enumerate(columns)},
                    }
                )
            )
        return self.table_of(
            path,
            pd.concat(frames, ignore_index=True),
            problems,
            sum(map(len, labels.values())),
            labels=tuple(columns),
            source=ArraySource(arrays, about.volume),
            name=self.published_name.removesuffix(".npz"),
            patients_known=False,
            exclusive=about.kind == "classes",
            channels=3 if about.colour else 1,
            views=not about.volume,
        )

    def _load(self, path: Path, about: Subset) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        arrays, labels = {}, {}
        if not zipfile.is_zipfile(path):  # numpy would advise to unpickle it
            raise UserError(f"{path}: cannot be read: it is not a whole .npz archive. Download it again.")
        # zipfile and zlib raise their own kinds for a truncated file
        with refusing(f"{path}: cannot be read as .npz", Exception, end=""), np.load(path, allow_pickle=False) as archive:
            missing = [f"{k}_{what}" for k in SPLITS for what in ("images", "labels") if f"{k}_{what}" not in archive]
            if missing:
                raise UserError(
                    f"{path}: it has no {listed(missing)}; it has {listed(archive.files)}.\nexpected:\n{self.expected}"
                )
            for key in SPLITS:
                arrays[key], labels[key] = archive[f"{key}_images"], np.atleast_2d(archive[f"{key}_labels"])
        size, width = self.resolution, len(about.labels.split()) if about.kind == "findings" else 1
        shape = (size,) * (3 if about.volume else 2) + ((3,) if about.colour else ())
        for key in SPLITS:
            a, y = arrays[key], labels[key]
            if a.dtype != np.uint8 or a.shape[1:] != shape:
                raise UserError(
                    f"{path}: {key}_images is {a.dtype} {a.shape}; {self.published_name} has uint8 "
                    f"(N, {', '.join(map(str, shape))}). Name the right subset and resolution."
                )
            if y.shape != (len(a), width) or y.dtype.kind not in "iu":
                raise UserError(f"{path}: {key}_labels is {y.dtype} {y.shape}, expected integers ({len(a)}, {width}).")
        return arrays, labels

    def published(self, table: StudyTable) -> list[Published]:
        """Items by split."""
        return [Published("studies", n, s) for s, n in zip(SPLITS.values(), MEDMNIST[self.subset].counts, strict=True)]

    def write_sample(self, parent: Path, **options: Any) -> Path:
        """See :func:`write_medmnist`."""
        return write_medmnist(parent / self.published_name, self.subset, self.resolution, **options)


def _split_name(path: Path) -> tuple[str | None, int | None]:
    """``organamnist_64.npz`` -> (organamnist, 64); (None, None) for a file of another name."""
    name, _, size = path.stem.partition("_")
    if name not in MEDMNIST:
        return None, None
    return name, int(size) if size.isdecimal() else 28
