"""Faults of MIMIC-CXR's lists, each named."""

from __future__ import annotations

import pytest
from test_mimic_cxr import NAMES, STUDIES, dicom, image_of, radiologists, read, write
from test_mimic_cxr import root as root

from xraylab.data.datasets.mimic_cxr import MIMIC
from xraylab.data.splits import assign_splits
from xraylab.errors import UserError


@pytest.mark.parametrize(
    ("row", "kind", "name"),
    [
        ([59999999], "studies of {} of which there are no images", "s59999999"),
        ([50414267], "studies of {} that are not of test", "s50414267 (train)"),
        ([50985099], "studies twice in {}", "s50985099 (line 4)"),
        (["x12"], "rows of {} that are not of a study", "line 4: x12"),
        ([51178377, "3"], "labels in {} other than 1, 0, -1 and blank", "line 4 (Atelectasis '3')"),
    ],
)
def test_faults_of_the_radiologists_list_are_named(tmp_path, row, kind, name):
    row = row + [""] * (15 - len(row))
    root = write(tmp_path / "MIMIC-CXR-JPG", change=lambda lists: radiologists(lists, row))
    file = "mimic-cxr-2.1.0-test-set-labeled.csv"
    table = read(root, on_error="skip")
    assert table.problems == {kind.format(file): [name]}
    test = table.frame[table.frame["split"] == "test"]["id"].tolist()
    assert test == ["s50578979"] + ["s50985099"] * ("twice" not in kind), "one labelled twice is not known"
    with pytest.raises(UserError, match=f"1 {kind.format(file)}"):
        read(root)
    assert not read(root, test_labels="report").problems


FAULTY = [(11000000 + i, 55000000 + i, "train", ["AP", "LATERAL"], {"Edema": "1.0"}) for i in range(14)]


ID = {i: f"s{55000000 + i}" for i in range(14)}


def breaking(lists):
    """One fault of every kind, each in a study of its own."""

    def at(kind, i, k=0):
        """Row number of an image or a study."""
        image = kind in ("split", "metadata")
        key = dicom(55000000 + i, k) if image else 55000000 + i
        return next(n for n, row in enumerate(lists[kind]) if key in row)

    lists["split"][at("split", 0, 1)][3] = "tset"
    lists["split"][at("split", 1, 1)][3] = "test"
    lists["split"][at("split", 2, 1)][2] = 11999999
    lists["metadata"][at("metadata", 2, 1)][1] = 11999999
    lists["metadata"][at("metadata", 3, 1)][1] = 11999999
    lists["metadata"][at("metadata", 4, 1)][2] = 55999999
    del lists["metadata"][at("metadata", 5, 1)]
    del lists["split"][at("split", 6, 1)]
    del lists["chexpert"][at("chexpert", 7)]
    lists["chexpert"][at("chexpert", 8)][0] = 11999999
    lists["chexpert"][at("chexpert", 9)][2 + NAMES.index("Edema")] = "uncertain"
    lists["chexpert"] += [[11000010, 55000010, *[""] * 14], [1, 56000000, *[""] * 14], [1, "", *[""] * 14]]
    lists["split"] += [
        lists["split"][at("split", 11)], ["../x", 55000011, 11000011, "train"], ["x/y", 55000011, 11000011, "train"],
        [dicom(1, 1), "55000011.0", 11000011, "train"],
    ]  # fmt: skip
    lists["metadata"] += [lists["metadata"][at("metadata", 11)]]


def broken(tmp_path):
    """What ``breaking`` makes, and what each fault must be reported as."""
    kept = {}

    def change(lists):
        breaking(lists)
        kept.update(lists)

    root = write(tmp_path / "MIMIC-CXR-JPG", [*STUDIES, *FAULTY], change=change)
    (root / image_of(FAULTY[12], 0)).unlink()
    (root / image_of(FAULTY[13], 1)).write_bytes(b"")

    def line(kind, *cells):
        return next(n for n, row in reversed(list(enumerate(kept[kind], start=1))) if all(c in row for c in cells))

    split, metadata, labels = (f"mimic-cxr-2.0.0-{kind}.csv.gz" for kind in ("split", "metadata", "chexpert"))
    end = len(kept["split"])
    d = {i: dicom(55000000 + i, 1) for i in range(14)}
    again = dicom(55000011, 0)
    return root, {
        f"paths of {split} that lead out of the dataset's folder": [f"line {end - 2}: ../x,55000011,11000011"],
        f"rows of {split} that are not an image": [
            f"line {end - 1}: x/y,55000011,11000011", f"line {end}: {dicom(1, 1)},55000011.0,11000011",
        ],
        f"images twice in {split}": [f"{again} (line {end - 3})"],
        f"images twice in {metadata}": [f"{again} (line {len(kept['metadata'])})"],
        f"splits in {split} other than train, validate, test": [f"{d[0]} ('tset', line {line('split', 'tset')})"],
        f"images of {metadata} that are not in {split}": [d[6]],
        f"images of {split} that are not in {metadata}": [d[5]],
        f"images of another study or subject in {metadata} than in {split}": [d[3], d[4]],
        f"studies of {split} of more than one subject or split": [f"{ID[1]} (split)", f"{ID[2]} (subject_id)"],
        f"labels in {labels} other than 1, 0, -1 and blank": [f"line {line('chexpert', 55000009)} (Edema 'uncertain')"],
        f"studies twice in {labels}": [f"{ID[10]} (line {len(kept['chexpert']) - 2})"],
        f"rows of {labels} that are not of a study": [f"line {len(kept['chexpert'])}: "],
        f"studies of {labels} of which there are no images": ["s56000000"],
        f"studies without a row in {labels}": [ID[7]],
        f"studies of another subject in {labels}": [ID[8]],
        "missing image files": [image_of(FAULTY[12], 0)],
        "empty image files": [image_of(FAULTY[13], 1)],
    }  # fmt: skip


def test_everything_wrong_is_counted_and_named_in_one_summary(tmp_path):
    root, faults = broken(tmp_path)
    with pytest.raises(UserError) as stop:
        read(root, view="all")
    for kind, names in faults.items():
        assert f"\n  {len(names)} {kind}: {', '.join(names)}\n" in str(stop.value), kind
    assert str(stop.value).count("\n") == len(faults) + 1


def test_skip_goes_on_without_them_and_remembers(tmp_path):
    root, faults = broken(tmp_path)
    table = read(root, view="all", on_error="skip")
    assert table.problems == faults
    images = dict(zip(table.frame["id"], table.frame["images"], strict=True))
    assert set(images) == {f"s{s[1]}" for s in STUDIES} | {ID[i] for i in (0, 3, 4, 5, 6, 11, 12, 13)}
    for i in (0, 3, 4, 5, 6, 13):
        assert images[ID[i]] == (image_of(FAULTY[i], 0),), "the images that are right"
    assert len(images[ID[11]]) == 2
    assert all(view.size for study in images.values() for view in table.source.read(study))


def test_a_subject_in_two_splits_is_refused(tmp_path):
    study = (10000032, 58888888, "test", ["AP"], {"Edema": "1.0"})
    with pytest.raises(UserError, match="1 patients are in more than one split: 10000032"):
        assign_splits(read(write(tmp_path / "MIMIC-CXR-JPG", [*STUDIES, study])), "holdout", None, 0.2, 0)


@pytest.mark.parametrize(
    ("kind", "old", "new", "said"),
    [
        ("metadata", "ViewPosition", "View", r"ViewPosition\..*expected: dicom_id, study_id, subject_id, ViewPosition"),
        ("split", "subject_id", "subject", r"subject_id: Did you mean subject\?"),
        ("chexpert", "Lung Opacity", "Opacity", "columns that are not there: Lung Opacity"),
    ],
)  # fmt: skip
def test_columns_that_are_not_there_are_named(tmp_path, kind, old, new, said):
    def change(lists):
        lists[kind][0] = [new if name == old else name for name in lists[kind][0]]

    with pytest.raises(UserError, match=rf"(?s)mimic-cxr-2\.0\.0-{kind}\.csv\.gz: .*{said}"):
        read(write(tmp_path / "MIMIC-CXR-JPG", change=change))


def test_columns_may_be_spelled_otherwise(tmp_path):
    def change(lists):
        lists["metadata"][0][4] = "view_position"
        lists["chexpert"][0] = [name.lower().replace(" ", "_").replace("lung_op", "airspace_op") for name in lists["chexpert"][0]]

    assert read(write(tmp_path / "MIMIC-CXR-JPG", change=change)).frame["lung_opacity"].tolist()[1] == 1


def test_half_a_dataset_is_shown_beside_the_whole(root):
    (root / "mimic-cxr-2.0.0-metadata.csv.gz").unlink()
    with pytest.raises(UserError) as stop:
        MIMIC(str(root)).find()
    for said in ("MIMIC-CXR-JPG is not there", "files/p10/p10000032/s50414267/", "physionet.org", "mimic-cxr-2.0.0-split.csv.gz"):
        assert said in str(stop.value)
