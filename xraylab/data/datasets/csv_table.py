"""Images of one's own, listed in a CSV: ``id,patient,group,split,images`` and one column a label.

A row is a study, or one image of it: rows of one id are one study and have to agree. Labels are 1, 0, -1 (uncertain) or
blank (not mentioned). ``images`` are paths separated by ``;`` or ``|``. Columns patient, group and split may be missing.
Where a table has other columns and other words, ``columns`` and ``values`` say what they are.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xraylab.data.attributes import ATTRIBUTE, attributes_of
from xraylab.data.datasets import csv_cells
from xraylab.data.datasets.folder import OwnData, check_names, heldout_split
from xraylab.data.datasets.layout import arranged, dicom_below, folder_of
from xraylab.data.datasets.tables.class_names import ReadLabels, read_class_names
from xraylab.data.datasets.tables.columns import Columns
from xraylab.data.datasets.tables.proposal import propose
from xraylab.data.datasets.tables.words import Words
from xraylab.data.images.any_file import AnyFileSource
from xraylab.data.images.intensity import check_window
from xraylab.data.images.source import MISSING, NpySource, check_bits
from xraylab.data.images.volumes import LARGEST, VolumeRule
from xraylab.data.stratification import written
from xraylab.data.study_table import ALL_LABELS, StudyTable
from xraylab.data.synthetic.pictures import write_table
from xraylab.errors import UserError, did_you_mean, listed
from xraylab.system.command_line import command_line, word

log = logging.getLogger(__name__)


def to_look(path: Path) -> str:
    """The sentence that names the command which proposes what the columns of a table are."""
    return "To be told what its columns may be: " + command_line("check", ["dataset=table", word("dataset.root", path)])


class CsvTable(OwnData):
    """Reader of one's own images, listed in a CSV of studies.

    Args:
        labels: the columns that are labels, or name -> column; None: all but id, patient, group, split and images. One column of
            class names stands for a label each, see :func:`~xraylab.data.datasets.tables.class_names.read_class_names`.
        images_root: the folder that image paths are relative to, itself relative to the CSV's; None: the CSV's.
        test_fraction: of the patients, about, held out where there is no column split.
        split_seed: of that part. It is not the run's seed, so that runs of any seed share it.
        views: each image bears its study's label; False: images are slices of a volume, as those of .npy files and the frames
            of DICOM files are.
        exclusive: exactly one label of a study is 1; False: any number is; None: as the labels are, of class names, else False.
        colour: read three channels, not one.
        bits: how many bits the values of 16-bit files use, e.g. 12.
        columns: see :class:`~xraylab.data.datasets.tables.columns.Columns`.
        values: see :class:`~xraylab.data.datasets.tables.words.Words`.
        classes: of a column of class names, those that are labels, in order; None: all.
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
        self, root: str | None = None, labels: str | int | Sequence[str | int] | Mapping[str, str] | None = None,
        images_root: str | None = None, test_fraction: float | None = 0.2, split_seed: int = 0, views: bool = True,
        exclusive: bool | None = None, colour: bool = False, bits: int | None = None, on_error: str = "stop",
        sample: dict[str, Any] | None = None, columns: Mapping[str, Any] | None = None,
        values: Mapping[Any, Any] | None = None, classes: Sequence[str | int] | None = None,
        series: str = LARGEST, window: str | Sequence[str] | None = None, slices: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(root, on_error, sample)
        self.bits = check_bits(bits)
        self.rule = VolumeRule(series, check_window(window), slices)
        self.columns, self.words = Columns(columns, labels), Words(values)
        self.labels = None if self.columns.labels is None else tuple(self.columns.labels)
        self.classes = None if classes is None else [str(name) for name in classes]
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

    def find(self) -> Path | None:
        """See :meth:`OwnData.find`. Classes that exclude each other need a loss for such."""
        path = super().find()
        if path is not None and self.labels is not None and len(self.labels) == 1:
            cells = self.columns.applied(path, self.cells(path)[0])
            of_classes = "id" in cells and self._names_classes(cells, self.labels)
            if of_classes and self._class_names(path, cells, self.labels, csv_cells.Faults()).exclusive:
                self.settings["loss"] = "cross_entropy"
        return path

    def cells(self, path: Path) -> tuple[pd.DataFrame, dict[int, int]]:
        """See :func:`~xraylab.data.datasets.csv_cells.read_cells`."""
        return csv_cells.read_cells(path)

    def read(self, path: Path) -> StudyTable:
        """One row a study, in the file's order; a study is left out as a whole where anything of it is wrong."""
        cells, short = self.cells(path)
        cells = self.columns.applied(path, cells)
        image_column, labels = self._columns(path, cells)
        faults = csv_cells.Faults()
        for line, number in short.items():
            faults.add("rows with fewer cells than the header", cells["id"][line], f"line {line}: {number}")
        faults.nameless += [f"line {line}" for line in cells.index[cells["id"] == ""]]
        found = (self._class_names if self._names_classes(cells, labels) else self._values)(path, cells, labels, faults)
        cells = cells[cells["id"] != ""]
        values = found.raw.loc[cells.index]
        rows = pd.concat([cells["id"], self._about(path, cells, faults), values], axis=1)
        csv_cells.check_agreement(rows, faults)
        # of rows of one study that differ in labels that are not asked for, the order must not matter
        every = written(found.every.loc[cells.index]).groupby(cells["id"]).transform("min")
        studies = rows.assign(**{ALL_LABELS: every}).drop_duplicates("id", ignore_index=True)
        studies.insert(4, "images", pd.Series(csv_cells.bags_of(cells["id"], cells[image_column], path), dtype=object))
        attributes = {name: cells[ATTRIBUTE + name] for name in self.columns.attributes}
        studies = studies.join(attributes_of(cells["id"], attributes, str(path)), on="id")
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
            labels=found.labels,
            source=source,
            name=path.stem,
            patients_known=csv_cells.is_given(cells, "patient"),
            exclusive=found.exclusive,
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
                + f" {to_look(path)}\nexpected:\n{self.expected.strip(chr(10))}"
            )
        if len(image_columns) > 1:
            raise UserError(f"{path}: it has both a column images and a column image. Keep one.")
        others = [name for name in names if name not in csv_cells.COLUMNS and not name.startswith(ATTRIBUTE)]
        labels = tuple(name for name in others if name not in self.columns.used()) if self.labels is None else self.labels
        if wrong := [label for label in labels if label not in others]:
            why = "that column is no label" if wrong[0] in names else "there is no such column"
            raise UserError(
                f"dataset.labels: {wrong[0]}: {why} of {path}.{did_you_mean(wrong[0], others)} There are: {listed(others, 30)}."
            )
        if len(labels) < (2 if self.exclusive and not self._names_classes(cells, labels) else 1):
            raise UserError(
                f"{path}: it has {len(labels)} columns that can be labels. "
                + ("dataset.exclusive=true needs two or more." if self.exclusive else "Add one: 1, 0, -1 or blank.")
            )
        if not self._names_classes(cells, labels):
            check_names(labels, f"{path}: a column")
        unused = [name for name in others if name not in labels and name not in self.columns.used()]
        if unused:
            log.warning(
                "%s: columns that are not used: %s.%s", path, listed(unused, 30), csv_cells.renamed_columns(cells, unused)
            )
        return image_columns[0], labels

    def _names_classes(self, cells: pd.DataFrame, labels: Sequence[str]) -> bool:
        """Whether the labels asked for are one column of class names."""
        if self.labels is None or len(labels) != 1 or labels[0] not in cells or labels[0] in csv_cells.COLUMNS:
            return False
        values = csv_cells.numbers_of(cells[labels[0]], self.words.label)
        numbers = csv_cells.are_labels(values) and not (self.exclusive and np.isinf(values).any())
        return self.classes is not None or not numbers

    def _class_names(self, path: Path, cells: pd.DataFrame, labels: Sequence[str], faults: csv_cells.Faults) -> ReadLabels:
        """Labels of a column of class names."""
        (name,), rows = labels, cells[cells["id"] != ""]
        where = f"{path}: the column {name}"
        found = read_class_names(rows[name], rows["id"], self.classes, self.exclusive, where, faults)
        check_names(found.labels, f"{where}: a class")
        return found

    def _values(self, path: Path, cells: pd.DataFrame, labels: Sequence[str], faults: csv_cells.Faults) -> ReadLabels:
        """Labels of a column each; infinite where a cell is not one.

        Raises:
            UserError: a column is none of labels.
        """
        if self.classes is not None:
            raise UserError("dataset.classes: it is of one column of class names, columns.labels=[<column>]. Leave it out.")
        numbers = {label: csv_cells.numbers_of(cells[label], self.words.label) for label in labels}
        values = pd.DataFrame(numbers, index=cells.index)
        bad = [label for label in labels if not csv_cells.are_labels(values[label].to_numpy())]
        if bad:
            shown = [f"{label} ({listed(map(repr, cells[label].unique()), 3)})" for label in bad]
            good = [label for label in labels if label not in bad]
            raise UserError(
                f"{path}: columns that do not hold labels, which are 1, 0, -1 or blank: {listed(shown)}."
                + csv_cells.renamed_columns(cells, bad)
                + (f" Choose the labels: dataset.labels=[{','.join(good)}]." if good else "")
                + f" {to_look(path)}"
            )
        if unheard := self.words.unheard(np.unique(cells[[*labels, *(["split"] if "split" in cells else [])]].to_numpy(str))):
            log.warning("values: words that are in no cell of %s: %s", path, listed(unheard))
        rows = cells["id"] != ""
        for label in values:
            wrong = rows & np.isinf(values[label])
            faults.add_rows(f"labels {label} other than 1, 0, -1 and blank", cells["id"][wrong], cells[label])
        if self.exclusive:
            several = rows & ~((values == 1).sum(axis=1).eq(1) & values.isin((0, 1)).all(axis=1))
            faults.add_rows("rows of which not exactly one label is 1 and the others 0", cells["id"][several])
        others = [x for x in map(str, cells) if x in labels or not (x in self.columns.used() or x.startswith(ATTRIBUTE))]
        return ReadLabels(tuple(labels), values, csv_cells.every_label(cells[others], self.words.label), bool(self.exclusive))

    def _about(self, path: Path, cells: pd.DataFrame, faults: csv_cells.Faults) -> pd.DataFrame:
        """Columns patient, group, split; what is missing or wrong there is named."""
        about = pd.DataFrame({"patient": "", "group": path.stem, "split": "train"}, index=cells.index)
        for name in ("patient", "group"):
            if csv_cells.is_given(cells, name):
                about[name] = cells[name]
                faults.add_rows(f"rows without a {name}, which others have", cells["id"][cells[name] == ""])
        if csv_cells.is_given(cells, "split"):
            split = cells["split"].map({word: self.words.split(word) for word in cells["split"].unique()})
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

    def _images(self, path: Path, studies: pd.DataFrame, faults: csv_cells.Faults) -> NpySource | AnyFileSource:
        """The source; references in ``studies`` become relative to its root, and those that cannot be used are named."""
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

    def proposal(self, path: Path) -> str | None:
        """What the columns of a CSV may be, and the command that trains with them; None: it can be read as it is, or the columns
        were given."""
        if self.columns.of or self.labels is not None:
            return None
        cells = csv_cells.read_cells(path)[0]
        try:
            self._values(path, cells, self._columns(path, cells)[1], csv_cells.Faults())
            return None
        except UserError:
            found = propose(path)
        lines = [
            f"{path}: {len(cells):,} rows, with columns other than {', '.join(csv_cells.COLUMNS[:5])} and labels of 1, 0, -1 "
            "and blanks.\nBy their names and words, and the files beside the table, they may be:",
            "",
            *found.text(),
            "",
        ]
        if not found.whole:
            missing = [key for key in ("id", "images", "labels") if key not in found.columns]
            more = "".join(f" columns.{key}=<column>" for key in missing)
            return "\n".join(
                [*lines, f"What is not known has to be said{':' * bool(more)}{more}, beside:", f"  {found.command(path)}"]
            )
        try:
            reader = CsvTable(str(path), columns=found.columns, values=found.values, on_error="skip", **found.dataset)
            table = reader.read(path)
        except UserError as error:
            return "\n".join(
                [*lines, f"Read so, it is refused: {error}", "", "The command, to be mended:", f"  {found.command(path)}"]
            )
        table = replace(table, frame=table.frame.replace({"split": {"heldout": "test"}}))
        wrong = [f"  {len(names):,} {kind}: {listed(names, 5)}" for kind, names in table.problems.items()]
        lines += [f"Read so, there are {len(table.frame):,} studies:", table.summary(), ""]
        lines += ["Something is wrong with others, which dataset.on_error=skip leaves out:", *wrong, ""] if wrong else []
        return "\n".join([*lines, "Check it, and train on it:", f"  {found.command(path, 'check')}", f"  {found.command(path)}"])

    def write_sample(self, parent: Path, **options: Any) -> Path:
        """See :func:`write_table`."""
        return write_table(parent / "table", **options)
