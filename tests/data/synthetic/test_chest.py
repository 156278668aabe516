"""Synthetic chest X-rays: the published layouts, labels counted by their rates, and findings that can be learned."""

from __future__ import annotations

import gzip
import re
import struct
from collections import Counter

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from tfrecord.example_pb2 import Example
from torch import nn

from xraylab.data.findings import CHEXPERT, COMPETITION, NIH, finding
from xraylab.data.synthetic.chest import write_chexpert, write_mimic, write_nih, write_tutorial
from xraylab.data.synthetic.chest_drawing import DRAWN, MIMICKED, Case, draw_view
from xraylab.data.synthetic.chest_labels import MENTIONED, TRUTH, draw_labels
from xraylab.data.synthetic.mark import is_synthetic
from xraylab.errors import UserError

FIVE = [CHEXPERT.index(name) for name in COMPETITION]
SMALL = {"train": 40, "valid": 20, "size": 48}
HEADER = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,"
    "Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)
LABELS = HEADER.split(",")[5:]


@pytest.fixture(scope="module")
def chexpert(tmp_path_factory):
    """A small tree with a test set. Do not change it."""
    return write_chexpert(tmp_path_factory.mktemp("chexpert") / "any", test=20, **SMALL)


@pytest.fixture(scope="module")
def mimic(tmp_path_factory):
    """A small tree. Do not change it."""
    return write_mimic(tmp_path_factory.mktemp("mimic") / "any", train=200, valid=20, test=20, size=24)


def column(name):
    return CHEXPERT.index(name)


def same(one, two):
    """Whether two trees hold the same files, byte for byte."""
    files = [{p.relative_to(r): p.read_bytes() for p in r.rglob("*") if p.is_file() and p.suffix != ".txt"} for r in (one, two)]
    return files[0] == files[1]


def test_chexpert_is_written_as_published(chexpert):
    assert is_synthetic(chexpert)
    assert {p.name for p in chexpert.iterdir()} == {
        "train", "valid", "test", "train.csv", "valid.csv", "test.csv", "SYNTHETIC_SAMPLE.txt", "boxes.csv"
    }  # fmt: skip
    patients = {}
    for split in ("train", "valid", "test"):
        assert (chexpert / f"{split}.csv").read_text().splitlines()[0] == HEADER
        table = pd.read_csv(chexpert / f"{split}.csv", dtype=str, keep_default_na=False)
        pattern = rf"CheXpert-v1\.0-small/{split}/patient(\d{{5}})/study(\d)/view(\d)_(frontal|lateral)\.jpg"
        parts = [re.fullmatch(pattern, path) for path in table["Path"]]
        assert [m[4].title() for m in parts] == list(table["Frontal/Lateral"])
        assert ((table["AP/PA"] == "") == (table["Frontal/Lateral"] == "Lateral")).all()
        assert set(table["AP/PA"]) == {"", "AP", "PA"}
        assert set(table["Sex"]) == {"Female", "Male"}
        listed = {path.split("/", 1)[1] for path in table["Path"]}
        assert listed == {p.relative_to(chexpert).as_posix() for p in (chexpert / split).rglob("*.jpg")}
        assert len(listed) == len(table)
        patients[split] = {int(m[1]) for m in parts}
        assert set(table["No Finding"]) == {"train": {"", "1.0"}}.get(split, {"0.0", "1.0"})
        values = set(table[LABELS[1:]].to_numpy().ravel())
        assert values == {"train": {"", "1.0", "0.0", "-1.0"}}.get(split, {"0.0", "1.0"})
        studies = table["Path"].str.rsplit("/", n=1).str[0]
        assert studies.nunique() == {"train": 40, "valid": 20, "test": 20}[split]
        assert len(table[LABELS].assign(study=studies).drop_duplicates()) == studies.nunique()  # one set of labels a study
    assert min(patients["train"]) == 1
    assert max(patients["train"]) < 40  # some return
    assert sorted(patients["valid"]) == list(range(64541, 64561))
    assert sorted(patients["test"]) == list(range(64741, 64761))


def test_chexperts_labels_are_the_reports_of_train_and_the_truth_of_the_rest(chexpert):
    for number, split in enumerate(("train", "valid", "test")):
        cases = draw_labels(40 if split == "train" else 20, [0, number])
        table = pd.read_csv(chexpert / f"{split}.csv")
        studies = table["Path"].str.rsplit("/", n=1).str[0]
        written = table[~studies.duplicated()][LABELS].to_numpy()
        np.testing.assert_array_equal(written, cases.reported if split == "train" else cases.truth)


def test_images_are_grey_jpegs_of_many_sizes(chexpert):
    images = [cv2.imread(str(p), cv2.IMREAD_UNCHANGED) for p in chexpert.rglob("*.jpg")]
    assert all(image.dtype == np.uint8 and image.ndim == 2 for image in images)
    assert len({image.shape for image in images}) > 30
    assert all(48 <= max(image.shape) <= 63 and min(image.shape) >= 36 for image in images)


def test_mimics_tables_fit_together(mimic):
    split = pd.read_csv(mimic / "mimic-cxr-2.0.0-split.csv.gz")
    metadata = pd.read_csv(mimic / "mimic-cxr-2.0.0-metadata.csv.gz", keep_default_na=False)
    assert list(split.columns) == ["dicom_id", "study_id", "subject_id", "split"]
    keys = ["dicom_id", "study_id", "subject_id"]
    pd.testing.assert_frame_equal(split[keys], metadata[keys])
    assert set(split["split"]) == {"train", "validate", "test"}
    assert split.groupby("subject_id")["split"].nunique().max() == 1
    assert {"PA", "AP", "LATERAL", "LL", ""} <= set(metadata["ViewPosition"])
    for row in metadata.itertuples():
        path = f"files/p{str(row.subject_id)[:2]}/p{row.subject_id}/s{row.study_id}/{row.dicom_id}.jpg"
        assert cv2.imread(str(mimic / path), cv2.IMREAD_UNCHANGED).shape == (row.Rows, row.Columns)
    assert len(list(mimic.rglob("*.jpg"))) == len(split)
    chexpert, negbio = (pd.read_csv(mimic / f"mimic-cxr-2.0.0-{n}.csv.gz") for n in ("chexpert", "negbio"))
    assert list(chexpert.columns) == ["subject_id", "study_id", *sorted(n.replace("_", " ").title() for n in CHEXPERT)]
    assert set(chexpert["study_id"]) == set(split["study_id"])
    assert chexpert["study_id"].is_unique
    pd.testing.assert_frame_equal(chexpert[["subject_id", "study_id"]], negbio[["subject_id", "study_id"]])
    one, two = (t.iloc[:, 2:].to_numpy() for t in (chexpert, negbio))
    assert 0.01 < (one != two)[~np.isnan(one)].mean() < 0.08
    assert (np.isnan(one) == np.isnan(two)).all()


def test_mimics_test_set_has_the_truth_besides(mimic):
    labelled = pd.read_csv(mimic / "mimic-cxr-2.1.0-test-set-labeled.csv")
    assert labelled.columns[0] == "study_id"
    assert "Airspace Opacity" in labelled.columns
    assert "Lung Opacity" not in labelled.columns
    split = pd.read_csv(mimic / "mimic-cxr-2.0.0-split.csv.gz")
    assert set(labelled["study_id"]) == set(split.loc[split["split"] == "test", "study_id"])
    cases = draw_labels(20, [0, 2])
    np.testing.assert_array_equal(labelled[sorted(labelled.columns[1:], key=finding)], cases.truth[:, np.argsort(CHEXPERT)])


def test_nih_is_written_as_published(tmp_path):
    root = write_nih(tmp_path / "nih", train=120, test=20, size=24)
    lines = (root / "Data_Entry_2017_v2020.csv").read_text().splitlines()
    assert lines[0] == (
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
        "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
    )
    rows = [line.split(",") for line in lines[1:]]
    assert {len(row) for row in rows} == {11}
    names = [row[0] for row in rows]
    lists = [(root / f"{name}_list.txt").read_text().split() for name in ("train_val", "test")]
    assert [len(part) for part in lists] == [120, 20]
    assert lists[0] + lists[1] == names
    assert {int(n[:8]) for n in lists[0]}.isdisjoint(int(n[:8]) for n in lists[1])
    assert all(name == f"{int(row[3]):08d}_{int(row[2]):03d}.png" for name, row in zip(names, rows, strict=True))
    found = [row[1].split("|") for row in rows]
    assert {finding(label) for labels in found for label in labels} == {*NIH, "no_finding"}
    assert "Pleural_Thickening" in {label for labels in found for label in labels}
    assert all(labels == ["No Finding"] or "No Finding" not in labels for labels in found)
    cases = draw_labels(120, [0, 0])
    for name in ("cardiomegaly", "pleural_effusion"):
        written = [name in map(finding, labels) for labels in found[:120]]
        np.testing.assert_array_equal(written, cases.truth[:, column(name)])
    channels = Counter(cv2.imread(str(root / "images" / n), cv2.IMREAD_UNCHANGED).ndim for n in names)
    assert 0 < channels[3] < 0.1 * channels[2]


def test_the_tutorials_records_and_tables_hold_the_same(tmp_path):
    reader = pytest.importorskip("tfrecord.reader")
    records, tables = (
        write_tutorial(tmp_path / str(csv), train=40, valid=20, test=20, size=24, csv=csv) for csv in (False, True)
    )
    names = [name.replace("lung_opacity", "airspace_opacity") for name in CHEXPERT]
    for plane in ("frontal", "lateral"):
        for split in ("train", "valid", "test"):
            shards = [records / plane / f"{split}-0000{k}-of-00002.tfrecord" for k in (0, 1)]
            loaded = [list(reader.tfrecord_loader(str(s), None)) for s in shards]
            table = pd.read_csv(tables / plane / f"{split}.csv")
            assert list(table.columns) == ["path", *names]
            assert len(table) == sum(map(len, loaded))
            for k, row in table.iterrows():
                record = loaded[k % 2][k // 2]
                assert set(record) == {"jpg_bytes", *names}
                assert [int(record[name][0]) for name in names] == [row[name] for name in names]
                assert bytes(record["jpg_bytes"]) == (tables / plane / row["path"]).read_bytes()
    codes = pd.read_csv(tables / "frontal" / "train.csv")["airspace_opacity"]
    reported = draw_labels(40, [0, 0]).reported[:, column("lung_opacity")]
    first, last = reported[0], reported[-1]
    assert [codes.iloc[0], codes.iloc[-1]] == [{1: 3, -1: 2, 0: 1}.get(value, 0) for value in (first, last)]


@pytest.mark.slow
def test_the_same_seed_writes_the_same_files(tmp_path, chexpert):
    again, other = (write_chexpert(tmp_path / str(seed), test=20, seed=seed, **SMALL) for seed in (0, 1))
    assert same(chexpert, again)
    assert not same(chexpert, other)
    one, two = (write_mimic(tmp_path / f"mimic{k}", train=20, valid=20, test=20, size=24) for k in (1, 2))
    assert same(one, two)
    assert gzip.decompress((one / "mimic-cxr-2.0.0-split.csv.gz").read_bytes()).startswith(b"dicom_id,")


def test_features_of_a_record_are_in_one_order_so_that_a_seed_is_the_same_bytes_in_every_process(tmp_path):
    root = write_tutorial(tmp_path / "tutorial", train=20, valid=20, test=20, size=24, shards=1)
    shard = (root / "frontal" / "test-00000-of-00001.tfrecord").read_bytes()
    record = shard[12:][: struct.unpack_from("<Q", shard)[0]]
    assert Example.FromString(record).SerializeToString(deterministic=True) == record


@pytest.mark.parametrize("count", [400, 300, 100, 80, 60])
def test_a_split_has_enough_of_each_class(count):
    cases = draw_labels(count, 3)
    for values in (cases.truth[:, FIVE], cases.reported[:, FIVE]):
        assert ((values == 1).sum(0) >= 5).all()
        assert ((values == 0).sum(0) >= 5).all()
    assert cases.truth.any(axis=0).all()


@pytest.mark.parametrize("truth", [0.05, 0.5, 0.95])
def test_uncertain_labels_are_counted(truth):
    cases = draw_labels(400, 1, uncertain=0.5, truth=truth)
    for name in COMPETITION:
        reported, true = cases.reported[:, column(name)], cases.truth[:, column(name)]
        uncertain, mentioned = reported == -1, ~np.isnan(reported)
        assert abs(true[uncertain].sum() - truth * uncertain.sum()) <= 1
        assert abs(uncertain.sum() - 0.5 * mentioned.sum()) <= 1
        assert (reported[true] != 0).all()  # no report is wrong
        assert (reported[~true] != 1).all()


def test_default_rates_are_the_published_ones():
    cases = draw_labels(2000, 1)
    for name in MENTIONED:
        reported, true = cases.reported[:, column(name)], cases.truth[:, column(name)]
        positive, negative, doubt = MENTIONED[name]
        uncertain, mentioned = reported == -1, ~np.isnan(reported)
        assert abs(uncertain.sum() - doubt / (positive + negative + doubt) * mentioned.sum()) < 2
        assert abs(true[uncertain].sum() - TRUTH[name] * uncertain.sum()) <= 1
        if name in ("cardiomegaly", "consolidation", "edema", "pleural_effusion"):  # of others there are more, to be scored
            assert (reported == 0).sum() == pytest.approx(negative / positive * (reported == 1).sum(), abs=2)
    no_finding = cases.reported[:, column("no_finding")]
    assert set(no_finding[~np.isnan(no_finding)]) == {1}
    assert cases.truth[no_finding == 1, column("no_finding")].all()
    assert np.isnan(cases.reported[~cases.truth]).mean() > 0.6  # most negatives are not mentioned


def test_rates_by_finding_leave_the_others_as_they_are():
    plain, asked = draw_labels(400, 1), draw_labels(400, 1, uncertain={"Edema": 0.4}, truth={"edema": 1})
    np.testing.assert_array_equal(plain.truth, asked.truth)
    np.testing.assert_array_equal(plain.severity, asked.severity)
    edema = asked.reported[:, column("edema")]
    assert asked.truth[edema == -1, column("edema")].all()
    assert (edema == -1).sum() == pytest.approx(0.4 * (~np.isnan(edema)).sum(), abs=1)
    for name in ("atelectasis", "fracture"):
        k = column(name)
        assert (plain.reported[:, k] == -1).sum() == (asked.reported[:, k] == -1).sum()
    assert not (draw_labels(400, 1, uncertain=0).reported == -1).any()


def test_uncertain_is_what_is_subtle_or_looks_alike():
    cases = draw_labels(400, 2, uncertain=0.3, truth=0.5)
    for k in FIVE:
        true, uncertain = cases.truth[:, k], cases.reported[:, k] == -1
        assert cases.severity[true & uncertain, k].max() < cases.severity[true & ~uncertain, k].min() + 0.1
        share = [(cases.mimic[part, k] > 0).mean() for part in (~true & uncertain, ~true & ~uncertain)]
        assert share[0] > 2 * share[1]


def test_findings_come_together():
    truth = draw_labels(2000, 4).truth
    pairs = (("edema", "cardiomegaly"), ("edema", "pleural_effusion"), ("consolidation", "pneumonia"))
    for one, two in (*pairs, ("atelectasis", "pleural_effusion"), ("pneumothorax", "support_devices")):
        a, b = truth[:, column(one)], truth[:, column(two)]
        assert b[a].mean() > 1.2 * b[~a].mean()
    sick = truth[:, [column(n) for n in DRAWN if n != "support_devices"]].any(axis=1)
    np.testing.assert_array_equal(truth[:, column("no_finding")], ~sick)
    parts = ["consolidation", "edema", "atelectasis", "lung_lesion", "pneumonia"]
    np.testing.assert_array_equal(truth[:, column("lung_opacity")], truth[:, [column(n) for n in parts]].any(axis=1))


@pytest.mark.parametrize("view", ["pa", "ap", "lateral"])
@pytest.mark.parametrize("name", DRAWN)
def test_a_finding_shows_in_every_view_the_more_the_severer(name, view):
    def changed(case, seed):
        drawn, healthy = (draw_view(c, view, 96, np.random.default_rng(seed)).astype(int) for c in (case, Case()))
        assert drawn.shape == healthy.shape
        return np.abs(drawn - healthy) > 12

    subtle, severe = (np.mean([changed(Case({name: s}, seed=k), k).mean() for k in range(8)]) for s in (0.15, 1.0))
    assert severe > subtle > 0.0002
    assert severe > 0.004
    if name in MIMICKED:
        assert np.mean([changed(Case(mimic={name: 1.0}, seed=k), k).mean() for k in range(8)]) > 0.0002


def drawings(cases, seed, size=48):
    """Frontal images, float32 (n,1,size,size)."""
    images = []
    for i in range(len(cases.truth)):
        rng = np.random.default_rng([seed, i])
        image = draw_view(cases.case(i, int(rng.integers(2**31))), ("pa", "ap")[i % 2], size, rng)
        images.append(cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA))
    return torch.tensor(np.stack(images)).float()[:, None] / 255


def test_brightness_does_not_tell():
    cases = draw_labels(200, 5)
    images = drawings(cases, 5).numpy()
    for statistic in (np.mean, np.std):
        values = [statistic(image) for image in images]
        for k in FIVE:
            assert abs(roc_auc_score(cases.truth[:, k], values) - 0.5) < 0.2


def learned(images, targets, seed, epochs=8):
    """A small CNN trained on the five findings."""

    def block(wide, into):
        return nn.Conv2d(wide, into, 3, padding=1, bias=False), nn.BatchNorm2d(into), nn.ReLU(), nn.MaxPool2d(2)

    torch.manual_seed(seed)
    stem = nn.Conv2d(1, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
    top = nn.Conv2d(24, 24, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(24 * 36, 5)
    model = nn.Sequential(*stem, *block(8, 16), *block(16, 24), *top)
    steps = len(images) // 32
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(images))[: steps * 32].split(32):
            shifted = torch.roll(images[batch], torch.randint(-3, 4, (2,)).tolist(), (2, 3))
            loss = nn.functional.binary_cross_entropy_with_logits(model(shifted), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@pytest.mark.slow
def test_the_best_policy_depends_on_what_uncertain_hides():
    """Ones beat zeros where nearly all uncertain labels are positive in truth, zeros beat ones where nearly none is."""
    macro = {}
    for seed in range(5):
        cases, held = draw_labels(320, [seed, 0]), draw_labels(200, [seed, 1])
        images, unseen = (
            (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True)
            for x in (drawings(cases, seed), drawings(held, 100 + seed))
        )
        for truth in (0.95, 0.05):
            reported = draw_labels(320, [seed, 0], uncertain=0.6, truth=truth).reported[:, FIVE]
            for policy in ("zeros", "ones"):
                positive = (reported == 1) | ((reported == -1) & (policy == "ones"))
                scores = learned(images, torch.tensor(positive).float(), seed)(unseen).detach().numpy()
                macro[truth, policy, seed] = roc_auc_score(held.truth[:, FIVE], scores)
    for truth, right, wrong in ((0.95, "ones", "zeros"), (0.05, "zeros", "ones")):
        gain = np.array([macro[truth, right, seed] - macro[truth, wrong, seed] for seed in range(5)])
        half = 2.776 * gain.std(ddof=1) / 5**0.5  # Student's t, 4 degrees of freedom, 95%
        assert gain.mean() - half > 0
        assert np.mean([macro[truth, right, seed] for seed in range(5)]) > 0.8  # and the findings can be learned


def test_mistakes_are_refused(tmp_path, chexpert):
    with pytest.raises(UserError, match="exists and is not empty; name another folder"):
        write_chexpert(chexpert)
    with pytest.raises(UserError, match="train=19 test=20: at least 20 studies of each are needed"):
        write_nih(tmp_path / "a", train=19, test=20)
    with pytest.raises(UserError, match="train=40 valid=20 test=5: at least 20"):
        write_chexpert(tmp_path / "a", train=40, valid=20, test=5)
    with pytest.raises(UserError, match=r"uncertain=1\.5 of edema: it is a number from 0 to 1\."):
        write_mimic(tmp_path / "a", uncertain={"edema": 1.5})
    with pytest.raises(UserError, match="truth: odema is none of enlarged_cardiomediastinum, cardiomegaly"):
        write_tutorial(tmp_path / "a", truth={"odema": 0.5})
    with pytest.raises(UserError, match="truth: no_finding is none of"):
        draw_labels(40, 0, truth={"No Finding": 0.5})
    with pytest.raises(UserError, match="shards=0: it is at least 1"):
        write_tutorial(tmp_path / "a", shards=0)
    assert not (tmp_path / "a").exists()
