"""A CSV of one's own: studies, labels, splits and images; and everything that can be wrong with it."""

from __future__ import annotations

import os

import cv2
import numpy as np
import pytest

from xraylab.config.dataset import resolved
from xraylab.data.datasets.csv_table import CsvTable
from xraylab.data.splits import assign_splits
from xraylab.errors import UserError

GOOD = """
id,patient,group,split,images,effusion,fracture
s1,p1,knee,train,a.png; sub/b.png ;,1,0
s2,p1,hip,train,c.png|d.png,0.0,
s3,p2,knee,Test,e.png,-1,1.0
s4,p3,hip,test,f.png, 0 ,nan
"""


PICTURES = ("a.png", "sub/b.png", "c.png", "d.png", "e.png", "f.png", "g.png", "h.png", "i.png", "j.png")


@pytest.fixture
def folder(tmp_path):
    """Holds the pictures."""
    (tmp_path / "sub").mkdir()
    for k, name in enumerate(PICTURES):
        cv2.imwrite(str(tmp_path / name), np.full((8, 10 + k), k, np.uint8))
    return tmp_path


@pytest.fixture
def read(folder):
    """Write a CSV and read it."""

    def run(text, encoding="utf-8", **options):
        (folder / "mine.csv").write_text(text.lstrip("\n"), encoding=encoding)
        reader = CsvTable(str(folder / "mine.csv"), **options)
        return reader.read(reader.find())

    return run


def column(table, name):
    return dict(zip(table.frame["id"], table.frame[name], strict=True))


def rows_of(*numbers, head="id,patient,split,images,sick", split=lambda i: "test" if i % 3 == 2 else "train"):
    return "\n".join([head, *(f"s{i},p{i},{split(i)},{PICTURES[i]},{i % 2}" for i in numbers)]) + "\n"


def test_a_row_is_a_study(read):
    table = read(GOOD)
    assert table.labels == ("effusion", "fracture")
    assert column(table, "images") == {
        "s1": ("a.png", "sub/b.png"), "s2": ("c.png", "d.png"), "s3": ("e.png",), "s4": ("f.png",),
    }  # fmt: skip
    np.testing.assert_array_equal(table.label_values(), np.array([[1, 0], [0, np.nan], [-1, 1], [0, np.nan]], np.float32))
    assert table.frame["split"].tolist() == ["train", "train", "heldout", "heldout"]
    assert table.frame["patient"].tolist() == ["p1", "p1", "p2", "p3"]
    assert table.frame["group"].tolist() == ["knee", "hip", "knee", "hip"]
    assert table.patients_known
    assert table.views
    assert table.name == "mine"
    assert not table.problems
    assert [view.shape for view in table.source.read(table.frame["images"][0])] == [(8, 10), (8, 11)]


def test_a_row_may_be_one_image_of_a_study(read):
    table = read("id,patient,split,image,sick\nx,p1,train,a.png,1\ny,p2,test,c.png,\nx,p1,train,d.png,1\ny,p2,test,e.png,\n")
    assert column(table, "images") == {"x": ("a.png", "d.png"), "y": ("c.png", "e.png")}
    assert table.label_values()[0] == 1
    with pytest.raises(UserError) as stop:
        read("id,patient,split,image,sick,torn\nx,p1,train,a.png,1,0\nx,p2,train,c.png,,0\ny,p3,test,d.png,0,1\n")
    assert "1 ids whose rows do not agree: x (in patient, sick)" in str(stop.value)


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train", "test"), {"train", "heldout"}),
        (("TRAIN", "heldout"), {"train", "heldout"}),
        (("train", "validate"), {"train", "heldout"}),
        (("train", "val"), {"train", "heldout"}),
        (("train", "validation", "test"), {"train", "valid", "test"}),
    ],
)
def test_splits_go_by_their_names(read, names, splits):
    table = read(rows_of(*range(10), split=lambda i: names[i % len(names)]))
    assert set(table.frame["split"]) == splits
    assert set(assign_splits(table, "holdout", None, 0.4, 0).frame["split"]) == {"train", "valid", "test"}


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["train"], "all rows are train"), (["test"], "there is no train split, only test"),
        (["train", "heldout", "valid"], "with heldout there is no other"),
    ],
)  # fmt: skip
def test_splits_that_do_not_make_a_dataset_are_refused(read, names, said):
    with pytest.raises(UserError, match=said):
        read(rows_of(*range(10), split=lambda i: names[i % len(names)]), on_error="skip")


def test_without_splits_a_part_is_held_out_by_patient(folder):
    for i in range(200):
        cv2.imwrite(str(folder / f"{i}.png"), np.zeros((8, 8), np.uint8))
    lines = [f"s{i},p{i // 2},{('n', 's')[i // 100]},{i}.png,{i // 2 % 2},{i % 3 // 2}" for i in range(200)]
    (folder / "mine.csv").write_text("\n".join(["id,patient,group,images,sick,other", *lines]))

    def read(**options):
        return CsvTable(str(folder / "mine.csv"), **options).read(folder / "mine.csv")

    frame = read().frame
    assert (frame.groupby("patient")["split"].nunique() == 1).all()
    held = frame[frame["split"] == "heldout"]
    assert 10 <= held["patient"].nunique() <= 30
    assert read().frame.equals(frame)
    assert not read(split_seed=1).frame.equals(frame)
    assert set(held["id"]) < set(read(test_fraction=0.5).part("heldout")["id"])
    # whatever labels are chosen, and whatever is left out, the others stay where they are
    assert set(read(labels=["other"]).part("heldout")["id"]) == set(held["id"])
    gone = sorted(held["id"])[0]
    (folder / f"{gone[1:]}.png").unlink()
    assert set(read(on_error="skip").part("heldout")["id"]) == set(held["id"]) - {gone}
    cv2.imwrite(str(folder / f"{gone[1:]}.png"), np.zeros((8, 8), np.uint8))
    whole = assign_splits(read(), "holdout", None, 0.25, 0).frame
    assert (whole.groupby("patient")["split"].nunique() == 1).all()
    with pytest.raises(UserError, match=r"no column split\. Add one, or set dataset\.test_fraction"):
        read(test_fraction=None)


def test_patient_and_group_are_optional(read):
    table = read("id,split,images,sick\ns0,train,a.png,0\ns1,test,c.png,1\n")
    assert not table.patients_known
    assert set(table.frame["patient"]) == {""}
    assert set(table.frame["group"]) == {"mine"}
    table = read("id,patient,group,split,images,sick\ns0,,,train,a.png,0\ns1,,,test,c.png,1\n")
    assert not table.patients_known
    assert set(table.frame["group"]) == {"mine"}


def test_labels_are_the_columns_that_are_chosen(read, caplog):
    text = "id,patient_id,split,images,sick,torn,age\ns0,p0,train,a.png,0,1,63\ns1,p1,test,c.png,1,0,58\n"
    assert read(text, labels=["torn", "sick"]).labels == ("torn", "sick")
    assert read(text, labels="sick").labels == ("sick",)
    assert "columns that are not used: patient_id, torn, age. There is no column patient. Did you mean patient_id?" in caplog.text
    with pytest.raises(UserError) as stop:
        read(text)
    assert "do not hold labels, which are 1, 0, -1 or blank: patient_id ('p0', 'p1'), age ('63', '58')" in str(stop.value)
    assert "Did you mean patient_id?" in str(stop.value)
    assert "dataset.labels=[sick,torn]" in str(stop.value)
    for labels, said in ((["sikc"], "sikc: there is no such column of .* Did you mean sick"), (["split"], "is no label")):
        with pytest.raises(UserError, match=said):
            read(text, labels=labels)
    for labels in ([], ["sick", "sick"]):
        with pytest.raises(UserError, match="each once"):
            CsvTable(labels=labels)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ("id,split,image_paths,sick", r"no column images\. Did you mean image_paths\?"),
        ("study,split,images,sick", r"no column id\. There are: study, split, images, sick"),
        ("id;split;images;sick", "separated by ';'"),
        ("id,images,images,sick", "two columns are called images"),
        ("id,image,images,sick", "both a column images and a column image"),
        ("id,split,images,", "column 4 has no name"),
        ("id,group,images,macro", "called macro, which cannot name a label"),
        ("id,group,images,up/down", "called up/down, which cannot name a label"),
        ("id,patient,group,images", "it has 0 columns that can be labels"),
    ],
)
def test_a_wrong_header_is_named(read, head, said):
    cells = {"id;split;images;sick": "s0;train;a.png;1"}.get(head, "s0,train,a.png,1")
    with pytest.raises(UserError, match=said):
        read(f"{head}\n{cells}\n", on_error="skip")


def test_what_is_no_csv_is_refused(folder):
    for content, said in (
        (b"", "it is empty"), (b"\n\n", "it is empty"), (b"id,images,sick\n", "no rows but a header"),
        (b"\x89PNG\r\n\xff", "not a text of UTF-8"), (b"id,images\ns0,a.png,1,2\n", "Expected 2 fields in line 2, saw 4"),
        (b'id,images,sick\ns0,"a.png,1\n', "not a whole CSV"),
    ):  # fmt: skip
        (folder / "mine.csv").write_bytes(content)
        with pytest.raises(UserError, match=said):
            CsvTable().read(folder / "mine.csv")


def test_byte_order_marks_blank_lines_and_empty_columns_are_harmless(read):
    text = 'id,split,images,sick,,\ns0,train,a.png,0,,\n\n,,,,,\ns1,test,"c.png;d.png",1,,\n'
    assert read(text, encoding="utf-8-sig").frame.equals(read(text).frame)
    assert column(read(text), "images") == {"s0": ("a.png",), "s1": ("c.png", "d.png")}


BROKEN = """
id,patient,group,split,images,sick,torn
good1,p1,knee,train,a.png,1,0
good2,p2,knee,test,c.png,0,1
label,p3,knee,train,d.png,2,0
split,p4,knee,tset,e.png,1,0
missing,p5,knee,train,f.png;nowhere.png,1,0
empty,p6,knee,train,empty.png,1,0
outside,p7,knee,train,../x.png,1,0
absolute,p8,knee,train,/etc/x.png,1,0
none,p9,knee,train,;,1,0
nobody,,knee,train,g.png,1,0
ungrouped,p10,,train,h.png,1,0
twice,p11,knee,train,i.png;./i.png,1,0
one,p12,knee,train,j.png,1,0
other,p13,knee,train,j.png,1,0
kind,p14,knee,train,x.gif,1,0
differ,p15,knee,train,sub/b.png,1,0
differ,p15,knee,train,k.png,1,1
,p16,knee,train,l.png,0,0
"""


def test_everything_wrong_is_counted_and_named_in_one_summary(read, folder):
    (folder / "empty.png").write_bytes(b"")
    (folder / "x.gif").write_bytes(b"GIF89a")
    with pytest.raises(UserError) as stop:
        read(BROKEN)
    text = str(stop.value)
    for said in (
        "1 labels sick other than 1, 0, -1 and blank: label ('2', line 4)", "split ('tset', line 5)",
        "missing image files: missing (nowhere.png), differ (k.png)", "1 empty image files: empty (empty.png)",
        "2 image paths that leave dataset.images_root: outside (../x.png), absolute (/etc/x.png)",
        "1 studies without an image: none", "1 rows without a patient, which others have: nobody (line 11)",
        "1 rows without a group, which others have: ungrouped (line 12)", "1 images twice in a study: twice (./i.png)",
        "1 images of two studies: other (j.png, also of one)", "1 images that are neither .png, .jpg", "kind (x.gif)",
        "1 ids whose rows do not agree: differ (in torn)", "1 rows without an id: line 19", "dataset.on_error=skip",
    ):  # fmt: skip
        assert said in text, said


def test_skip_goes_on_without_those_studies_and_remembers(read, folder):
    (folder / "empty.png").write_bytes(b"")
    (folder / "x.gif").write_bytes(b"GIF89a")
    table = read(BROKEN, on_error="skip")
    assert table.frame["id"].tolist() == ["good1", "good2"]
    assert table.frame.index.tolist() == [0, 1]
    assert table.patients_known
    assert len(table.problems) == 13


def test_images_may_lie_elsewhere(read, folder):
    (folder / "pictures").mkdir()
    for name in "ab":
        cv2.imwrite(str(folder / "pictures" / f"{name}.png"), np.zeros((5, 6), np.uint8))
    text = f"id,split,images,sick\ns0,train,a.png,0\ns1,test,{folder}/pictures/b.png,1\n"
    table = read(text, images_root="pictures")
    assert column(table, "images") == {"s0": ("a.png",), "s1": ("b.png",)}
    assert table.source.read(("b.png",))[0].shape == (5, 6)
    assert column(read(text, images_root=str(folder / "pictures")), "images") == column(table, "images")
    with pytest.raises(UserError, match=r"dataset\.images_root=picturse: there is no folder .*picturse"):
        read(text, images_root="picturse")
    with pytest.raises(UserError, match=r"not one of its 2 images is there, .*sub/a\.png\. Set dataset\.images_root"):
        read("id,split,images,sick\ns0,train,a.png,0\ns1,test,c.png,1\n", images_root="sub", on_error="skip")


def test_volumes_are_arrays(read, folder):
    volume = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
    for name in ("v", "w"):
        np.save(folder / f"{name}.npy", volume)
    text = "id,split,images,sick\ns0,train,v.npy,0\ns1,test,w.npy,1\n"
    table = read(text)
    assert not table.views
    assert np.array_equal(table.source.read(table.frame["images"][1]), volume)
    with pytest.raises(UserError, match=r"volumes \(v\.npy\) as well as image files \(a\.png\)"):
        read(text.replace("w.npy", "a.png"))
    with pytest.raises(UserError, match=r"dataset\.colour=true: .* are grey"):
        read(text, colour=True)
    np.save(folder / "w.npy", volume.astype(np.float32))
    with pytest.raises(UserError, match=r"1 arrays other than uint8 \(slices, height, width\): s1 \(w\.npy\)"):
        read(text)
    (folder / "w.npy").write_bytes(b"not an array")
    with pytest.raises(UserError, match=r"1 arrays that cannot be read: s1 \(w\.npy\)"):
        read(text)
    assert not read(rows_of(*range(9)), views=False).views, "slices, a file each"


def test_exclusive_labels_have_one_positive_in_a_row(read, folder, compose):
    text = "id,split,images,red,green\ns0,train,a.png,1,0\ns1,test,c.png,0,1\ns2,train,d.png,1,1\ns3,train,e.png,1,\n"
    assert not read(text).exclusive
    with pytest.raises(UserError, match=r"2 rows of which not exactly one label is 1 .*: s2 \(line 4\), s3 \(line 5\)"):
        read(text, exclusive=True)
    table = read(text, exclusive=True, on_error="skip")
    assert table.exclusive
    assert table.frame["id"].tolist() == ["s0", "s1"]
    with pytest.raises(UserError, match="needs two or more"):
        read(text, exclusive=True, labels="red")
    typed = ["dataset=table", f"dataset.root={folder / 'mine.csv'}", "dataset.exclusive=true"]
    cfg = compose(*typed)
    assert resolved(cfg, typed).config.loss["_target_"].endswith("CrossEntropy")


def test_colour_is_asked_for(read):
    table = read(rows_of(0, 2), colour=True)
    assert table.channels == 3
    assert table.source.read(("a.png",))[0].shape == (8, 10, 3)
    assert CsvTable(colour=True).settings == {"backbone.in_chans": 3}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"test_fraction": 1.5}, "above 0 and below 1"), ({"test_fraction": "half"}, "above 0 and below 1"),
        ({"split_seed": -1}, "0 or more"),
    ],
)  # fmt: skip
def test_wrong_values_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        CsvTable(**options)


def test_the_root_has_to_be_given(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(
        UserError, match=r"(?s)dataset\.root must be given: .* dataset\.root=sample .*id,patient,group,split,images"
    ):
        CsvTable().find()
    for wrong, found in (("nowhere.csv", "there is no such file"), (".", "a.png")):
        with pytest.raises(UserError) as stop:
            CsvTable(wrong).find()
        assert "id,patient,group,split,images" in str(stop.value)
        assert found in str(stop.value)


def test_the_sample_has_all_kinds_of_labels(tmp_path):
    reader = CsvTable("sample")
    assert reader.find() is None
    path = reader.embedded({"train": 60, "test": 20, "seed": 0})
    table = reader.read(path)
    assert table.synthetic
    assert table.labels == ("nodule", "effusion")
    assert table.frame["split"].value_counts().to_dict() == {"train": 60, "heldout": 20}
    values = table.label_values()
    assert {(values == v).any() for v in (1, 0, -1)} == {True}
    assert np.isnan(values).any()
    assert table.train_groups == ["north", "south"]
    assert set(table.frame["images"].map(len)) == {1, 2}
    assigned = assign_splits(table, "holdout", None, 0.2, 0).frame
    assert (assigned.groupby("patient")["split"].nunique() == 1).all()
    assert (table.frame.groupby("patient").size() == 2).all()
    with pytest.raises(UserError, match="at least 8"):
        reader.embedded({"train": 4})
    written = reader.write_sample(tmp_path, train=8, test=8)
    again = CsvTable(str(tmp_path))
    assert again.find() == written / "table.csv", "the folder it was written to is enough"
    with pytest.raises(UserError, match="is not empty"):
        reader.write_sample(tmp_path)


# ---- what other programs write ----------------------------------------------------------------------------------------


def test_rows_with_too_few_cells_are_named(read):
    text = "id,split,images,effusion,fracture\na,train,a.png,1,0\nb,train,e.png,1\nc,test,c.png,0,1\nd,test,d.png,0,\n"
    with pytest.raises(UserError, match=r"1 rows with fewer cells than the header: b \(line 3: 4\)"):
        read(text)
    assert read(text, on_error="skip").frame["id"].tolist() == ["a", "c", "d"]
    assert len(read(text.replace("\nb,train,e.png,1\n", '\n\nb,train,"e.png",1,\n')).frame) == 4


def test_paths_of_windows_are_said_to_be_so(read):
    text = "id,split,images,effusion\na,train,sub\\b.png,1\nb,test,e.png,0\nc,train,c.png,0\n"
    with pytest.raises(
        UserError, match=r"1 image paths with backslashes, as Windows writes them: write slashes: a \(sub\\b\.png\)"
    ):
        read(text)
    with pytest.raises(UserError, match="A backslash, as Windows writes paths, has to be a slash here"):
        read("id,split,images,effusion\na,train,x\\a.png,1\nb,test,x\\e.png,0\n")


def test_words_in_the_column_split_are_shown(read):
    text = "id,split,images,effusion\na,Training,a.png,1\nb,Testing,e.png,0\nc,Training,c.png,0\n"
    with pytest.raises(
        UserError, match=r"no row is of the split train\. The column split has 'Training' in 2 rows, 'Testing' in 1"
    ):
        read(text)
    text = "id,split,images,effusion\na,train,a.png,1\nb,tset,e.png,0\nc,tset,c.png,0\nd,test,d.png,0\n"
    with pytest.raises(UserError, match=r"2 splits other than train, .*\('tset' in 2 rows\): b \('tset', line 3\)"):
        read(text)


def test_a_folder_or_a_pipe_is_no_image(read, folder):
    (folder / "x.png").mkdir()
    os.mkfifo(folder / "y.png")
    text = "id,split,images,effusion\na,train,a.png,1\nb,test,e.png,0\nx,train,x.png,0\ny,train,y.png,0\n"
    table = read(text, on_error="skip")
    assert table.frame["id"].tolist() == ["a", "b"]
    assert table.problems == {"images that are no files, but folders, pipes or the like": ["x (x.png)", "y (y.png)"]}
