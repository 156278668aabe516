"""CheXpert: chest X-rays labelled from their reports (Irvin et al. 2019, arXiv:1901.07031).

``train.csv`` and ``valid.csv`` have a row an image: path (``CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg``),
view, and 14 findings, 1 positive, 0 negative, -1 uncertain, blank not mentioned. The full release also comes in batches,
in whose folders patients may lie without ``train/``. A test set was published later; where it is there, it is the test split.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from xraylab.data.attributes import ATTRIBUTE
from xraylab.data.datasets.chest_xray import Radiographs, name_wrong, places_of, read_list, settled, with_lines
from xraylab.data.findings import CHEXPERT
from xraylab.data.published import CHEXPERT_IMAGES, Published
from xraylab.data.study_table import ALL_LABELS, Problems, StudyTable
from xraylab.data.synthetic.chest import write_chexpert
from xraylab.errors import UserError

LISTS = {"train": ("train.csv",), "valid": ("valid.csv",), "test": ("test.csv", "test_labels.csv")}
#: of a path of the lists, whatever stands before it
IMAGE = (
    r"^(?:.*/)?(?P<image>(?P<id>(?P<split>train|valid|test)/(?P<patient>patient\d+)/study\d+)/"
    r"view\d+_(?P<side>frontal|lateral)\.jpg)$"
)
# published
TOTALS = {
    "train": {"patients": 64540, "studies": 187641, "images": 223414},
    "valid": {"patients": 200, "images": 234},
    "test": {"patients": 500, "images": 668},
}


class CheXpert(Radiographs):
    """Reader of CheXpert-v1.0, in full or small; a study's group is its views: ap, pa, frontal (not known which), lateral.

    Args:
        root, view, findings, bits, on_error, sample: see :class:`~xraylab.data.datasets.chest_xray.Radiographs`.
        test: of the test set that was published later: ``auto``: it is the test split where it is there; ``ignore``: train and
            valid alone, as publications before it had.

    >>> import tempfile
    >>> root = write_chexpert(Path(tempfile.mkdtemp()) / "CheXpert-v1.0-small", train=20, valid=20)
    >>> table = CheXpert(findings=["edema", "Pleural Effusion"]).read(root)
    >>> len(table.frame), table.labels
    (40, ('edema', 'pleural_effusion'))
    """

    published_name = "CheXpert-v1.0-small"
    other_names = ("CheXpert-v1.0", "chexpertchestxrays-u20210408")
    expected = """
  CheXpert-v1.0-small/       (or CheXpert-v1.0/)
    train/patient00001/study1/view1_frontal.jpg
    valid/patient64541/study1/view1_frontal.jpg
    test/patient64741/study1/view1_frontal.jpg     (if you have it, with test.csv or test_labels.csv)
    train.csv  valid.csv
  or, as the full release comes in batches:
  chexpertchestxrays-u20210408/
    CheXpert-v1.0 batch 1 (validate & csv)/  train.csv  valid.csv  valid/patient64541/...
    CheXpert-v1.0 batch 2 (train 1)/patient00001/study1/view1_frontal.jpg     (also batch 3 and 4)"""
    register = "free for research after registration with the Stanford ML Group, https://stanfordmlgroup.github.io/competitions/chexpert/"
    heldout = "valid"
    known = CHEXPERT
    writer = write_chexpert

    def __init__(
        self, root: str | None = None, view: str | Sequence[str] = "frontal", findings: str | Sequence[str] = "all",
        bits: int | None = None, on_error: str = "stop", sample: dict[str, Any] | None = None, test: str = "auto",
    ) -> None:  # fmt: skip
        super().__init__(root, view, findings, bits, on_error, sample)
        if test not in ("auto", "ignore"):
            raise UserError(f"dataset.test={test}: it is auto or ignore.")
        self.test = test

    def matches(self, path: Path) -> bool:
        """A folder with the lists of train and valid, in it or in one of its batches."""
        return path.is_dir() and {"train", "valid"} <= set(_lists(path))

    def read(self, path: Path) -> StudyTable:
        """One row a study; the held-out split is the published valid, or there are valid and test where a test set is there."""
        lists = {split: file for split, file in _lists(path).items() if split != "test" or self.test == "auto"}
        called = {"train": "train", "valid": "valid" if "test" in lists else "heldout", "test": "test"}
        problems: Problems = defaultdict(list)
        folders = _folders(path)
        parts = [self._images(path / file, split, folders, problems).assign(split=called[split]) for split, file in lists.items()]
        small = "small" in path.name or _first_path(path / lists["train"]).find("-small/") > 0
        name = "CheXpert-v1.0-small" if small else "CheXpert-v1.0"
        return self.table(path, name, pd.concat(parts, ignore_index=True), problems)

    def _images(self, file: Path, split: str, folders: dict[str, str], problems: Problems) -> pd.DataFrame:
        """One row an image of a list, with its study, patient, kind of view, reference and labels."""
        views, about = ("Frontal/Lateral", "AP/PA"), ("Sex", "Age")
        optional = (*about, *(views if split == "test" else ()))
        cells = read_list(file, ["Path", *views, *about], problems, self.findings, optional, known=CHEXPERT)
        found = cells["path"].str.extract(IMAGE)
        good = (found["split"] == split) & ~cells["path"].str.contains("..", regex=False)
        name_wrong(cells["path"][~good], f"an image of {split}", file.name, problems)
        cells, found = cells[good], found[good]

        names = found["image"]
        twice = names.duplicated()
        problems[f"images twice in {file.name}"] += with_lines(names[twice])
        said = cells["frontal_lateral"].str.lower()
        torn = (said != "") & (said != found["side"]) & ~twice
        kind = f"images of {file.name} whose file's name is of another view than Frontal/Lateral says"
        problems[kind] += with_lines(names[torn])
        if folders:
            places = [folders.get(patient, split) for patient in found["patient"]]
            names = pd.Series(places, names.index, dtype=str) + names.str.slice(len(split))
        kinds = cells["ap_pa"].str.lower()
        kinds = kinds.where(kinds.isin(["ap", "pa"]), "frontal")
        columns = {
            "id": found["id"],
            "patient": found["patient"],
            "view": kinds.where(found["side"] == "frontal", "lateral"),
            "image": names,
            ATTRIBUTE + "sex": cells["sex"],
            ATTRIBUTE + "age": cells["age"],
            **cells[[*self.findings, ALL_LABELS]],
        }
        images = pd.DataFrame(columns)
        return settled(images[~(twice | torn)], self.findings, file.name, problems)

    def published(self, table: StudyTable) -> list[Published]:
        """Totals by split, and how many images of train each finding is positive, negative and uncertain in."""
        splits = set(table.frame["split"])
        named = {"train": "train", "valid": "valid" if "test" in splits else "heldout", "test": "test"}
        counts = [
            Published(unit, n, named[split]) for split, of in TOTALS.items() if named[split] in splits for unit, n in of.items()
        ]
        for label, numbers in CHEXPERT_IMAGES.items():
            counts += [Published("images", n, "train", None, (label, v)) for v, n in zip((1, 0, -1), numbers, strict=True)]
        return counts

    def lists(self, path: Path) -> tuple[str, ...]:
        """The CSVs of the splits."""
        return tuple(_lists(path).values())


def _batches(path: Path) -> list[str]:
    """Folders of the release in batches, without a dot before the name."""
    return sorted(found.name for found in path.glob("[!.]*") if "batch" in found.name.lower() and found.is_dir())


def _lists(path: Path) -> dict[str, str]:
    """The list of each split that has one, relative to the dataset."""
    folders = ["", *(f"{name}/" for name in _batches(path))]
    places = {split: [folder + name for folder in folders for name in names] for split, names in LISTS.items()}
    found = {split: [place for place in of if (path / place).is_file()] for split, of in places.items()}
    return {split: of[0] for split, of in found.items() if of}


def _folders(path: Path) -> dict[str, str]:
    """The folder that holds each patient, where they lie in batches; nothing where they do not."""
    batches = _batches(path)
    folders = [f"{top}{split}" for top in ("", *(f"{b}/" for b in batches)) for split in LISTS] + batches
    return places_of(path, folders, "patient") if batches else {}


def _first_path(path: Path) -> str:
    """The beginning of a list, in which its first path is."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(1000)
