"""Faults of CheXpert's lists and files, each named."""

from __future__ import annotations

import gzip

import pytest
from test_chexpert import HEADER, STUDIES, append, edit, images_of, name_of, read, row_of, write
from test_chexpert import root as root

from xraylab.data.datasets.chexpert import CheXpert
from xraylab.data.splits import assign_splits
from xraylab.errors import UserError


def test_half_a_dataset_is_shown_beside_the_whole(root, monkeypatch, tmp_path):
    (root / "valid.csv").unlink()
    monkeypatch.setenv("XRAYLAB_DATA", str(tmp_path))
    for reader in (CheXpert(str(root)), CheXpert()):
        with pytest.raises(UserError) as stop:
            reader.find()
        for said in ("CheXpert-v1.0-small is not there", "batch 2 (train 1)/patient00001", "train.csv", "stanfordmlgroup"):
            assert said in str(stop.value)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("Pleural Effusion", "Plural Effusion",
         "columns that are not there: Pleural Effusion. Pleural Effusion: Did you mean Plural Effusion?"),
        ("AP/PA", "Projection", "columns that are not there: AP/PA."),
        ("Edema", "Fracture", "columns that are not there: Edema."),
        ("Sex", "edema", "the column Edema is there twice"),
    ],
)  # fmt: skip
def test_columns_that_are_not_there_are_named_beside_those_that_are(root, old, new, said):
    edit(root / "train.csv", lambda lines: [lines[0].replace(old, new), *lines[1:]])
    with pytest.raises(UserError) as stop:
        read(root)
    assert f"{root / 'train.csv'}: {said}" in str(stop.value)
    if "not there" in said:
        assert "\nexpected: Path, Frontal/Lateral, AP/PA, Sex, Age, No Finding, " in str(stop.value)
        assert "\nfound:    Path, " in str(stop.value)
        assert new in str(stop.value).split("found:")[1]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "columns that are not there: Path, .*found:    nothing; the file is empty"),
        (b"\xff\xfe0\x000", "it is not a text of UTF-8"),
        (b'Path,"Sex\n1,2\n', "it is not a whole CSV"),
        (gzip.compress(b"Path,Sex" * 9000, mtime=0)[:40], "it is not a whole gzip file"),
    ],
)
def test_lists_that_cannot_be_read_are_named(root, content, said):
    (root / "train.csv").write_bytes(content)
    with pytest.raises(UserError, match=rf"(?s)train\.csv: {said}"):
        read(root)


FAULTY = [("train", 20 + i, 1, ["AP", ""], {"Edema": "1.0"}) for i in range(9)]


def broken(tmp_path):
    """One fault of every kind, each in a study of its own; what each must be reported as."""
    root = write(tmp_path / "broken" / "CheXpert-v1.0-small", [*STUDIES, *FAULTY])
    gone, empty, all_gone, label, differs, twice, side = FAULTY[:7]
    (root / images_of(gone)[0]).unlink()
    (root / images_of(empty)[1]).write_bytes(b"")
    for image in images_of(all_gone):
        (root / image).unlink()
    lines = (root / "train.csv").read_text().splitlines()
    number = {image: k for k, line in enumerate(lines, start=1) for s in FAULTY for image in images_of(s) if image in line}

    def change(line):
        if images_of(label)[1] in line:
            return line.replace(",1.0", ",2.0")
        if images_of(differs)[1] in line:
            return line.replace(",1.0", ",-1.0")
        return line.replace("Lateral", "Frontal") if images_of(side)[1] in line else line

    (root / "train.csv").write_text("\n".join([*map(change, lines), ""]))
    end = len(lines)
    append(root / "train.csv",
        row_of(images_of(twice)[0], "AP", {"Edema": "1.0"}), ["" for _ in HEADER], row_of("nothing", "AP", {}),
        row_of("train/../../patient00001/study1/view1_frontal.jpg", "AP", {}),
        row_of("/etc/view1_frontal.jpg", "AP", {}, prefix=""), row_of(images_of(STUDIES[-1])[0], "AP", {}),
        row_of("", "AP", {"Edema": "1.0"}, prefix=""), [*row_of(images_of(FAULTY[7])[0], "AP", {}), "1.0"],
    )  # fmt: skip
    small = "CheXpert-v1.0-small/"
    return root, {
        "labels in train.csv other than 1, 0, -1 and blank": [f"line {number[images_of(label)[1]]} (Edema '2.0')"],
        "studies of train.csv whose images have different labels": [f"{name_of(*differs)} (edema)"],
        "images of train.csv whose file's name is of another view than Frontal/Lateral says": [
            f"{images_of(side)[1]} (line {number[images_of(side)[1]]})"
        ],
        "images twice in train.csv": [f"{images_of(twice)[0]} (line {end + 1})"],
        "empty rows of train.csv": [f"line {end + 2}"],
        "rows of train.csv that are not an image of train": [
            f"line {end + 3}: {small}nothing", f"line {end + 6}: {small}{images_of(STUDIES[-1])[0]}", f"line {end + 7}: ",
        ],
        "paths of train.csv that lead out of the dataset's folder": [
            f"line {end + 4}: {small}train/../../patient00001/study1/view1_frontal.jpg",
            f"line {end + 5}: /etc/view1_frontal.jpg",
        ],
        "rows of train.csv with another number of cells than its header, 19": [f"line {end + 8} (20 cells)"],
        "missing image files": [images_of(gone)[0], *images_of(all_gone)],
        "empty image files": [images_of(empty)[1]],
        "studies of whose images none can be used": [name_of(*all_gone)],
    }  # fmt: skip


def test_everything_wrong_is_counted_and_named_in_one_summary(tmp_path):
    root, faults = broken(tmp_path)
    with pytest.raises(UserError) as stop:
        read(root, view="all")
    for kind, names in faults.items():
        assert f"\n  {len(names)} {kind}: {', '.join(names)}\n" in str(stop.value), kind
    assert str(stop.value).count("\n") == len(faults) + 1
    assert "dataset.on_error=skip" in str(stop.value)


def test_skip_goes_on_without_them_and_remembers(tmp_path):
    root, faults = broken(tmp_path)
    table = read(root, view="all", on_error="skip")
    assert table.problems == faults
    images = dict(zip(table.frame["id"], table.frame["images"], strict=True))
    gone, empty, _, _, _, twice, side, *rest = FAULTY
    assert set(images) == {name_of(*s) for s in (*STUDIES, gone, empty, twice, side, *rest)}
    assert images[name_of(*gone)] == (images_of(gone)[1],), "the views that are there"
    assert images[name_of(*twice)] == tuple(images_of(twice))
    assert images[name_of(*side)] == (images_of(side)[0],)
    assert all(view.size for study in images.values() for view in table.source.read(study))


def test_faults_of_findings_and_files_that_are_not_asked_for_do_not_matter(tmp_path):
    root, faults = broken(tmp_path)
    found = read(root, view="lateral", findings="fracture", on_error="skip").problems
    lateral = images_of(FAULTY[2])[1]
    assert found == {
        **{kind: names for kind, names in faults.items() if "label" not in kind}, "missing image files": [lateral],
        "studies of whose images none can be used": [name_of(*s) for s in FAULTY[1:3]],
    }  # fmt: skip


def test_a_patient_in_both_published_splits_is_refused(tmp_path):
    root = write(tmp_path / "CheXpert-v1.0", [*STUDIES, ("valid", 1, 1, ["AP"], {})])
    with pytest.raises(UserError, match="1 patients are in more than one split: patient00001"):
        assign_splits(read(root), "official", None, 0.2, 0)


def test_patients_stay_together(tmp_path):
    studies = [("train", 1 + i // 3, 1 + i % 3, ["AP", ""], {"Edema": str(i % 2)}) for i in range(60)]
    root = write(tmp_path / "CheXpert-v1.0", [*studies, *STUDIES[5:]])
    frame = assign_splits(read(root, findings="edema"), "holdout", None, 0.2, 0).frame
    assert (frame.groupby("patient")["split"].nunique() == 1).all()
    assert frame.groupby("split")["patient"].nunique().to_dict() == {"train": 16, "valid": 4, "test": 2}
