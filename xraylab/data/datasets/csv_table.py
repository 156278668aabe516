"""Images of one's own, listed in a CSV: ``id,patient,group,split,images`` and one column a label.

A row is a study, or one image of it: rows of one id are one study and have to agree. Labels are 1, 0, -1 (uncertain) or
blank (not mentioned). ``images`` are paths separated by ``;`` or ``|``. Columns patient, group and split may be missing.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xraylab.data.datasets import csv_cells
from xraylab.data.datasets.folder import OwnData, check_names, heldout_split
from xraylab.data.datasets.layout import arranged, dicom_below, folder_of
from xraylab.data.images.any_file import AnyFileSource
from xraylab.data.images.intensity import check_window
from xraylab.data.images.source import MISSING, ImageSource, NpySource, check_bits
from xraylab.data.images.volumes import LARGEST, VolumeRule
from xraylab.data.study_table import ALL_LABELS, StudyTable
from xraylab.data.synthetic.pictures import write_table
from xraylab.errors import UserError, did_you_mean, listed

log = logging.getLogger(__name__)


class CsvTable(OwnData):
    """Reader of one's own images, listed in a CSV of studies.

    Args:
        labels: the columns that are labels; None: all but id, patient, group, split and images.
        images_root: the folder that image paths are relative to, itself relative to the CSV's; None: the CSV's.
        test_fraction: of the patients, about, held out where there is no column split.
        split_seed: of that part. It is not the run's seed, so that runs of any seed share it.
        views: each image bears its study's label; False: images are slices of a volume, as those of .npy files and the frames
            of DICOM files are.
        exclusive: exactly one label of a study is 1.
        colour: read three channels, not one.
        bits: how many bits the values of 16-bit files use, e.g. 12.
        series, window, slices: of volumes, see :class:`xraylab.data.images.volumes.VolumeRule`. A path of a folder, or of its
            DICOMDIR, stands for the series of DICOM slices in and below it.

    >>> import tempfile
    >>> root = write_table(Path(tempfile.mkdtemp()), train=8, test=8)
    >>> table = CsvTable(labels="nodule").read(root / "table.csv")
    >>> len(table.frame), table.labels
    (16, ('nodule',))
    """

    published_name = "table.csv"
    needed = "<a CSV file>"
    expected = """
  id,patient,group,split,images,effusion,fracture
  s1,p1,knee,train,p1/front.png;p1/side.png,1,0
  s2,p2,knee,test,p2/front.png,0,-1

  Labels are 1, 0, -1 (uncertain) or blank; images are relative to the CSV's folder; split is train, valid or test.
  Columns patient, group and split may be missing."""
    register = "your own: dataset.root=<file.csv> with the columns id, images and one for each label"

    def __init__(
        self, root: str | None = None, labels: str | int | Sequence[str | int] | None = None, images_root: str | None = None,
        test_fraction: float | None = 0.2, split_seed: int = 0, views: bool = True, exclusive: bool = False,
        colour: bool = False, bits: int | None = None, on_error: str = "stop", sample: dict[str, Any] | None = None,
        series: str = LARGEST, window: str | Sequence[str] | None = None, slices: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(root, on_error, sample)
        self.bits = check_bits(bits)
        self.rule = VolumeRule(series, check_window(window), slices)
        self.labels = None if labels is None else tuple(map(str, [labels] if isinstance(labels, str | int) else labels))
        if self.labels is not None and (not self.labels or len(set(self.labels)) < len(self.labels)):
            raise UserError(f"dataset.labels=[{','.join(self.labels)}]: it is a list of columns, each once; null: all there are.")
        if test_fraction is not None and not (isinstance(test_fraction, int | float) and 0 < test_fraction < 1):
            raise UserError(f"dataset.test_fraction={test_fraction}: it is above 0 and below 1.")
        if not isinstance(split_seed, int) or split_seed < 0:
            raise UserError(f"dataset.split_seed={split_seed}: it is an integer, 0 or more.")
        self.images_root = None if images_root is None else str(images_root)
        self.test_fraction, self.split_seed = test_fraction, split_seed
        self.views, self.exclusive, self.colour = views, exclusive, colour or self.rule.colour
        self.settings = ({"backbone.in_chans": 3} if self.colour else {}) | ({"loss": "cross_entropy"} if exclusive else {})

    def matches(self, path: Path) -> bool:
        """A file."""
        return path.is_file()

    def read(self, path: Path) -> StudyTable:
        """One row a study, in the file's order; a study is left out as a whole where anything of it is wrong."""
        cells, short = csv_cells.read_cells(path)
        image_column, labels = self._columns(path, cells)
        values = self._values(path, cells, labels)
        faults = csv_cells.Faults()
        for line, number in short.items():
            faults.add("rows with fewer cells than the header", cells["id"][line], f"line {line}: {number}")
        faults.nameless += [f"line {line}" for line in cells.index[cells["id"] == ""]]
        cells = cells[cells["id"] != ""]
        values = values.loc[cells.index]
        every = csv_cells.every_label(cells)
        self._check_values(cells, values, faults)
        rows = pd.concat([cells["id"], self._about(path, cells, faults), values], axis=1)
        csv_cells.check_agreement(rows, faults)

        studies = rows.assign(**{ALL_LABELS: every}).drop_duplicates("id", ignore_index=True)
        studies.insert(4, "images", pd.Series(csv_cells.bags_of(cells["id"], cells[image_column]), dtype=object))
        source = self._images(path, studies, faults)
        views = self.views and not isinstance(source, NpySource)
        if isinstance(source, AnyFileSource):
            views, source = self._arrange(source, studies, faults)
        problems = faults.problems()
        total = max(len(studies) + len(faults.nameless), sum(map(len, problems.values())))
        studies = studies[~studies["id"].isin(faults.studies)].reset_index(drop=True)
        if not csv_cells.is_given(cells, "split"):
            studies["split"] = self._hold_out(studies)
        return self.table_of(
            path,
            studies,
            problems,
            total,
            labels=labels,
            source=source,
            name=path.stem,
            patients_known=csv_cells.is_given(cells, "patient"),
            exclusive=self.exclusive,
            channels=3 if self.colour else 1,
            views=views,
            parts=self.rule.parts,
        )

    def _columns(self, path: Path, cells: pd.DataFrame) -> tuple[str, tuple[str, ...]]:
        """The column of images, and the labels."""
        names = list(cells.columns)
        image_columns = [name for name in ("images", "image") if name in names]
        for missing in [name for name, there in (("id", "id" in names), ("images", image_columns)) if not there]:
            odd = [mark for mark in (";", "\t") if len(names) == 1 and mark in names[0]]
            raise UserError(
                f"{path}: there is no column {missing}.{did_you_mean(missing, names)} There are: {listed(names, 30)}."
                + (f" They seem to be separated by {odd[0]!r}: save the file with commas." if odd else "")
                + f"\nexpected:\n{self.expected.strip(chr(10))}"
            )
        if len(image_columns) > 1:
            raise UserError(f"{path}: it has both a column images and a column image. Keep one.")
        others = [name for name in names if name not in csv_cells.COLUMNS]
        labels = tuple(others) if self.labels is None else self.labels
        if wrong := [label for label in labels if label not in others]:
            why = "that column is no label" if wrong[0] in names else "there is no such column"
            raise UserError(
                f"dataset.labels: {wrong[0]}: {why} of {path}.{did_you_mean(wrong[0], others)} There are: {listed(others, 30)}."
            )
        if len(labels) < (2 if self.exclusive else 1):
            raise UserError(
                f"{path}: it has {len(labels)} columns that can be labels. "
                + ("dataset.exclusive=true needs two or more." if self.exclusive else "Add one: 1, 0, -1 or blank.")
            )
        check_names(labels, f"{path}: a column")
        unused = [name for name in others if name not in labels]
        if unused:
            log.warning(
                "%s: columns that are not used: %s.%s", path, listed(unused, 30), csv_cells.renamed_columns(cells, unused)
            )
        return image_columns[0], labels

    def _values(self, path: Path, cells: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
        """Labels, float32; infinite where a cell is not one.

        Raises:
            UserError: a column is none of labels.
        """
        values = pd.DataFrame({label: csv_cells.numbers_of(cells[label]) for label in labels}, index=cells.index)
        bad = [label for label in labels if not csv_cells.are_labels(values[label].to_numpy())]
        if bad:
            shown = [f"{label} ({listed(map(repr, cells[label].unique()), 3)})" for label in bad]
            good = [label for label in labels if label not in bad]
            raise UserError(
                f"{path}: columns that do not hold labels, which are 1, 0, -1 or blank: {listed(shown)}."
                + csv_cells.renamed_columns(cells, bad)
                + (f" Choose the labels: dataset.labels=[{','.join(good)}]." if good else "")
            )
        return values

    def _check_values(self, cells: pd.DataFrame, values: pd.DataFrame, faults: csv_cells.Faults) -> None:
        for label in values:
            faults.add_rows(f"labels {label} other than 1, 0, -1 and blank", cells["id"][np.isinf(values[label])], cells[label])
        if self.exclusive:
            several = ~((values == 1).sum(axis=1).eq(1) & values.isin((0, 1)).all(axis=1))
            faults.add_rows("rows of which not exactly one label is 1 and the others 0", cells["id"][several])

    def _about(self, path: Path, cells: pd.DataFrame, faults: csv_cells.Faults) -> pd.DataFrame:
        """Columns patient, group, split; what is missing or wrong there is named."""
        about = pd.DataFrame({"patient": "", "group": path.stem, "split": "train"}, index=cells.index)
        for name in ("patient", "group"):
            if csv_cells.is_given(cells, name):
                about[name] = cells[name]
                faults.add_rows(f"rows without a {name}, which others have", cells["id"][cells[name] == ""])
        if csv_cells.is_given(cells, "split"):
            split = cells["split"].str.lower().map(csv_cells.SPLIT_NAMES)
            unknown = split.isna()
            known = ", ".join(csv_cells.SPLIT_NAMES)
            kind = f"splits other than {known} ({csv_cells.counted(cells['split'][unknown])})"
            faults.add_rows(kind, cells["id"][unknown], cells["split"])
            if unknown.any() and not (split == "train").any():
                words = csv_cells.counted(cells["split"])
                raise UserError(f"{path}: no row is of the split train. The column split has {words}. It is one of {known}.")
            all_train = "all rows are train (without the column split, dataset.test_fraction of the patients is held out)"
            about["split"] = split.map(heldout_split(split.dropna().unique(), f"{path}: {all_train}")).fillna("")
        elif self.test_fraction is None:
            raise UserError(f"{path}: it has no column split. Add one, or set dataset.test_fraction.")
        return about

    def _images(self, path: Path, studies: pd.DataFrame, faults: csv_cells.Faults) -> ImageSource:
        """Make the references in ``studies`` relative to the source's root; those that cannot be used are named."""
        root = Path(os.path.normpath(path.parent / Path(self.images_root or "").expanduser()))
        if not root.is_dir():
            raise UserError(f"dataset.images_root={self.images_root}: there is no folder {root.absolute()}.")
        base = os.path.abspath(root)
        references = [image for bag in studies["images"] for image in bag]
        arrays = [image for image in references if image.lower().endswith(".npy")]
        if arrays and len(arrays) < len(references):
            other = next(image for image in references if not image.lower().endswith(".npy"))
            raise UserError(f"{path}: it lists .npy volumes ({arrays[0]}) as well as image files ({other}). Make two tables.")
        if arrays and self.colour:
            raise UserError(f"dataset.colour=true: the slices of .npy volumes ({arrays[0]}) are grey. Leave it false.")
        if arrays and self.rule != VolumeRule():
            raise UserError(
                f"dataset.series, window and slices are of DICOM and NIfTI, not of .npy volumes ({arrays[0]}). Leave them."
            )
        owners: dict[str, str] = {}
        bags, missing = [], 0
        for study, bag in zip(studies["id"].tolist(), studies["images"], strict=True):
            images = []
            for given in bag:
                image = csv_cells.inside(given, base)
                fault = csv_cells.path_fault(base, image) if image is not None else "image paths that leave dataset.images_root"
                missing += fault == MISSING
                if fault == MISSING and "\\" in given:
                    fault = "image paths with backslashes, as Windows writes them: write slashes"
                image = image or given
                if fault:
                    faults.add(fault, study, given)
                elif owners.setdefault(image, study) != study:
                    faults.add("images of two studies", study, f"{given}, also of {owners[image]}")
                    faults.studies.add(owners[image])
                elif image in images:
                    faults.add("images twice in a study", study, given)
                images.append(image)
            if not images:
                faults.add("studies without an image", study)
            if arrays and len(images) > 1:
                faults.add("studies of several .npy volumes, where one is a study", study, str(len(images)))
            bags.append(tuple(images))
        if missing and missing == len(references):
            raise UserError(
                f"{path}: not one of its {missing} images is there, the first would be {os.path.join(base, references[0])}. "
                "Set dataset.images_root to the folder that the paths start from."
                + (" A backslash, as Windows writes paths, has to be a slash here." if "\\" in references[0] else "")
            )
        studies["images"] = pd.Series(bags, dtype=object)
        return NpySource(root) if arrays else AnyFileSource(self.colour, self.bits, root=root)

    def _arrange(self, source: AnyFileSource, studies: pd.DataFrame, faults: csv_cells.Faults) -> tuple[bool, AnyFileSource]:
        """Whether images are views, and their source; folders in ``studies`` become series. What is wrong is named."""
        sound = studies.loc[~studies["id"].isin(faults.studies), ["id", "images"]]
        bags = dict(zip(sound["id"], sound["images"], strict=True))
        folders = {study: [f for i in images if (f := folder_of(source.root, i))] for study, images in bags.items()}
        inside = {study: [i for f in of for i in dicom_below(source.root, f)] for study, of in folders.items() if of}
        found = arranged(source.root, bags | inside, self.rule, self.views, inside)
        for kind, names in found.faults.items():
            for name in names:
                faults.add(kind, name)
        images = [found.images.get(i, of) for i, of in zip(studies["id"], studies["images"], strict=True)]
        studies["images"] = pd.Series(images, index=studies.index, dtype=object)
        if self.rule.parts:
            studies["parts"] = [self.rule.parts] * len(studies)
        return found.views, AnyFileSource(self.colour, self.bits, root=source.root, rule=self.rule, series=found.series)

    def _hold_out(self, studies: pd.DataFrame) -> np.ndarray:
        """The split of each study, by a hash of its patient: the same whatever labels are chosen and studies are left out."""
        assert self.test_fraction is not None
        patients = studies["patient"].where(studies["patient"] != "", studies["id"])
        hashes = [hashlib.sha256(f"{self.split_seed}:{patient}".encode()).digest()[:8] for patient in patients]
        drawn = np.array([int.from_bytes(h, "big") for h in hashes], np.float64) / 2**64
        return np.where(drawn < self.test_fraction, "heldout", "train")

    def write_sample(self, parent: Path, **options: Any) -> Path:
        """See :func:`write_table`."""
        return write_table(parent / "table", **options)
