"""Splits by iterative stratification: rare findings, sizes, and what a split may not depend on."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf

from xraylab.config.settings import check_config
from xraylab.data.datasets.chexpert import CheXpert
from xraylab.data.datasets.csv_table import CsvTable
from xraylab.data.datasets.mrnet import MRNet
from xraylab.data.datasets.nih import NIH as ChestXray14
from xraylab.data.findings import CHEXPERT, NIH
from xraylab.data.splits import assign_splits, in_parts, places
from xraylab.data.study_table import patients_of
from xraylab.data.synthetic.chest import write_nih
from xraylab.run import differing
from xraylab.sweeps.record import Journal, resumed_words
from xraylab.training.experiment import split_table

FIVE, HOLDOUT = [0.2] * 5, [0.8, 0.2]
DIGEST = "7859e4c110889187"  # of the parts of one seed


def made(seed, patients=1000, shares=(0.3,) * 6 + (0.01,) * 4, most=3, groups=("ap", "pa")):
    """Studies with findings of these shares of positives, common ones first, which those of a patient share in part."""
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(patients), rng.integers(1, most + 1, patients))
    drawn = np.where(rng.random((len(of), len(shares))) < 0.7, rng.random((patients, len(shares)))[of], 1)
    frame = pd.DataFrame((drawn < np.array(shares)).astype(float), columns=[f"f{k}" for k in range(len(shares))])
    group = rng.choice(groups, patients)[of]
    return frame.assign(id=[f"s{i}" for i in range(len(of))], patient=[f"p{i:04d}" for i in of], group=group), list(frame)


def lack(frame, labels, part, shares):
    """Parts without a positive of a finding that enough patients have; and the largest deviation from a finding's share."""
    empty, off = 0, []
    for label in labels:
        positive = (frame[label] == 1).to_numpy()
        counts = np.bincount(part[positive], minlength=len(shares))
        if frame.loc[positive, "patient"].nunique() >= 1 / min(shares):
            empty += int((counts == 0).sum())
            off.append((np.abs(counts / positive.sum() - shares) / shares).max())
    return empty, float(np.mean(off))


@pytest.mark.parametrize("shares", [FIVE, HOLDOUT])
def test_no_part_lacks_a_rare_finding_where_places_left_some_without(shares):
    before, now = [], []
    for seed in range(6):
        frame, labels = made(seed)
        for version, found in ((1, before), (2, now)):
            part = in_parts(frame, labels, shares, seed, version)
            assert pd.Series(part).groupby(frame["patient"].to_numpy()).nunique().max() == 1
            found.append(lack(frame, labels, part, np.array(shares)))
    assert sum(empty for empty, _ in now) == 0 < sum(empty for empty, _ in before)
    assert np.mean([off for _, off in now]) < 0.5 * np.mean([off for _, off in before])


def test_no_part_lacks_a_finding_that_is_spread_over_many_small_groups():
    empty = []
    for seed in range(10):
        frame, labels = made(seed, 90, (0.1,) * 5, most=1, groups=[f"g{k}" for k in range(12)])
        empty.append(lack(frame, labels, in_parts(frame, labels, HOLDOUT, seed), np.array(HOLDOUT))[0])
    assert sum(empty) == 0


@pytest.mark.parametrize("shares", [FIVE, HOLDOUT, [0.5, 0.5]])
@pytest.mark.parametrize("of", [(0.5,), (0.3,), (0.2, 0.4)])
def test_simple_cases_are_as_even_as_before(shares, of):
    off = {1: [], 2: []}
    for seed in range(5):
        frame, labels = made(seed, 200, of, most=1, groups=("wrist", "hand", "elbow"))
        for version in off:
            part = in_parts(frame, labels, shares, seed, version)
            sizes = np.bincount(part)
            assert np.abs(sizes - 200 * np.array(shares)).max() <= 1
            for label in labels:
                counts = pd.crosstab(part, [frame["group"], frame[label]])
                expected = np.outer(sizes / sizes.sum(), counts.sum())
                off[version].append(np.abs(counts.to_numpy() - expected).max())
    assert np.mean(off[2]) <= np.mean(off[1]) + 0.05, "patients too many or too few in a class of a group"
    assert max(off[2]) < 1.5


def test_uncertain_labels_and_negatives_are_dealt_too():
    rng = np.random.default_rng(0)
    frame, labels = made(0, 600, (0.3,))
    frame["f0"] = rng.choice([1.0, 0.0, -1.0, np.nan], len(frame), p=[0.5, 0.02, 0.02, 0.46])
    for value in (0.0, -1.0):
        here = (frame["f0"] == value).to_numpy()
        counts = np.bincount(in_parts(frame, labels, FIVE, 0)[here], minlength=5)
        assert np.ptp(counts) <= 1, counts


def test_parts_are_a_function_of_names_labels_and_seed_alone():
    frame, labels = made(3, 300)
    part = in_parts(frame, labels, FIVE, 7)
    shuffled = frame.sample(frac=1, random_state=1)
    assert (pd.Series(in_parts(shuffled, labels[::-1], FIVE, 7), shuffled.index).sort_index() == part).all()
    assert not (in_parts(frame, labels, FIVE, 8) == part).all()
    digest = hashlib.sha256("".join(map(str, part)).encode()).hexdigest()
    assert digest[:16] == DIGEST, "the split of a seed has changed: give it a new split_version"


def test_more_parts_than_a_findings_patients_and_patients_that_are_not_known():
    frame, labels = made(1, 40, (0.05,))
    part = in_parts(frame.assign(patient=""), labels, [1 / len(frame)] * len(frame), 0)
    assert sorted(part) == list(range(len(frame))), "each study on its own"
    assert patients_of(frame.assign(patient="")).is_unique


# ---- what is asked for does not decide ------------------------------------------------------------------------------


def split_of(reader, path, selection="holdout", fold=None):
    frame = assign_splits(reader.read(path), selection, fold, 0.3, 0).frame
    return frame.set_index("id")["split"].sort_index()


@pytest.fixture(scope="module")
def nih(tmp_path_factory):
    return write_nih(tmp_path_factory.mktemp("nih") / "ChestX-ray14", train=60, test=40, size=32)


@pytest.mark.parametrize("how", [("holdout", None), ("holdout", "2/4"), ("split_valid", None)])
def test_findings_and_their_order_do_not_change_the_split_of_chest_x_rays(chexpert_root, nih, how):
    for kind, known, path in ((CheXpert, CHEXPERT, chexpert_root), (ChestXray14, NIH, nih)):
        whole = split_of(kind(), path, *how)
        for findings in (known[3], list(known[::-1]), [known[5], known[2]]):
            assert split_of(kind(findings=findings), path, *how).equals(whole), findings


def test_tasks_and_their_order_do_not_change_the_split_of_knees(mrnet_root):
    whole = split_of(MRNet(task=["acl", "abnormal", "meniscus"]), mrnet_root)
    for task in ("acl", "meniscus", ["meniscus", "abnormal"]):
        assert split_of(MRNet(task=task), mrnet_root).equals(whole)


def test_chosen_and_ordered_columns_do_not_change_the_split_of_a_table(tmp_path):
    frame, labels = made(2, 60, (0.4, 0.1, 0.3))
    for name in frame["id"]:
        (tmp_path / f"{name}.png").write_bytes(b"x")
    frame = frame.assign(images=frame["id"] + ".png", age=50, split="train")
    patients = frame["patient"].unique()
    frame["split"] = np.where(frame["patient"].isin(patients[:45]), "train", "test")
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame[frame.columns[::-1]].to_csv(tmp_path / "b.csv", index=False)
    whole = split_of(CsvTable(labels=labels), tmp_path / "a.csv")
    for name, chosen in (("a", ["f1"]), ("a", ["f2", "f0"]), ("b", labels)):
        assert split_of(CsvTable(labels=chosen), tmp_path / f"{name}.csv").equals(whole), (name, chosen)


# ---- runs and sweeps of before keep their splits --------------------------------------------------------------------


def test_a_configuration_of_before_keeps_its_split(compose, mrnet_root):
    def split(cfg):
        frame = split_table(MRNet(task=["acl", "abnormal"]), mrnet_root, check_config(cfg), 0.2).frame
        return frame.set_index("id")["split"]

    cfg = compose()
    assert cfg.split_version == 3
    now = split(cfg)
    cfg.split_version = 1
    first = split(cfg)
    OmegaConf.set_struct(cfg, False)
    del cfg["split_version"]
    assert split(cfg).equals(first)
    assert not now.equals(first)
    table = MRNet(task=["acl", "abnormal"]).read(mrnet_root)
    train = table.frame[table.frame["split"] == "train"]
    line = places(train, table.labels, 0)
    chosen = np.floor((line + 1) * 0.2) > np.floor(line * 0.2)
    assert set(train.loc[chosen, "id"]) == set(first.index[first == "valid"]), "as it was made then"


def test_a_sweep_or_command_of_before_goes_on_with_its_split(tmp_path):
    journal = Journal(tmp_path, ["dataset=mrnet", "seed=0,1"], "grid", ["valid/loss"])
    journal.write()
    assert not any(word.startswith("split_version") for word in resumed_words([f"sweep.resume={tmp_path}"]))
    for saved, version in (({"seed": 0}, 1), ({"seed": 0, "split_version": 2}, 2)):
        OmegaConf.save(OmegaConf.create(saved), tmp_path / "multirun.yaml")
        assert f"split_version={version}" in resumed_words([f"sweep.resume={tmp_path}"])
    assert differing({"seed": 0, "split_version": 2}, {"seed": 0}) == []
    assert differing({"seed": 0, "split_version": 2}, {"seed": 0, "split_version": 1}) == ["split_version"]


# ---- a seed is a draw -----------------------------------------------------------------------------------------------


def of_two(patients, findings, seed):
    """A table of two studies a patient with findings of any label."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {f"f{k}": rng.choice([0, 1, -1, np.nan], 2 * patients, p=[0.5, 0.2, 0.05, 0.25]) for k in range(findings)}
    )
    of = np.repeat(np.arange(patients), 2)
    return frame.assign(id=[f"s{i}" for i in range(2 * patients)], patient=[f"p{i}" for i in of], group="all"), list(frame)


def test_seeds_draw_other_splits_where_patients_are_few_and_findings_many():
    never, splits = {2: 0.0, 3: 0.0}, {2: [], 3: []}
    for table in range(4):
        frame, labels = of_two(20, 14, table)
        for version in never:
            held = np.stack([in_parts(frame, labels, HOLDOUT, seed, version)[::2] == 1 for seed in range(20)])
            splits[version].append(len(np.unique(held, axis=0)))
            never[version] += (held.mean(0) == 0).mean() / 4
    assert max(splits[2]) < 10, "before, a seed hardly mattered"
    assert min(splits[3]) >= 17
    assert never[3] < 0.15 < 0.5 < never[2], "patients who are in valid by no seed: 1 % by chance"


def test_a_finding_of_one_patient_is_in_a_part_as_often_as_the_part_is_large():
    frame, labels = of_two(50, 1, 0)
    frame["f0"] = (frame["patient"] == "p7").astype(float)
    held = [in_parts(frame, labels, HOLDOUT, seed)[14] == 1 for seed in range(400)]
    assert abs(np.mean(held) - 0.2) < 0.06  # three deviations
