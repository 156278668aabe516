"""Hashes in the place of ids: by HMAC as published, the same in every run of a secret, and nothing else is left of a patient."""

from __future__ import annotations

import hashlib
import json

import pandas as pd
import pytest
from conftest import SERVED, run_job, train_run

from xraylab.data.pseudonyms import pseudonym, read_secret
from xraylab.errors import UserError

SECRET = bytes(range(32))


def test_a_hash_is_hmac_of_kind_and_name():
    """By the definition of RFC 2104, blocks of 64 bytes."""
    key = SECRET.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in key) + b"patient:7").digest()
    assert pseudonym(SECRET, "7", "patient") == hashlib.sha256(bytes(b ^ 0x5C for b in key) + inner).hexdigest()[:16]
    assert (
        len({pseudonym(secret, name, kind) for secret in (SECRET, b"x" * 32) for name in "ab" for kind in ("id", "patient")}) == 8
    )


def test_a_secret_that_is_none_is_refused_with_a_way_to_make_one(tmp_path):
    short = tmp_path / "short"
    short.write_text("hospital\n")
    for path, said in ((short, "holds 8 bytes, and 16 are needed"), (tmp_path / "none", "cannot be read")):
        with pytest.raises(UserError, match=f"(?s){said}.*head -c 32 /dev/urandom"):
            read_secret(str(path))


def test_a_run_says_nothing_of_who_is_in_it_and_everything_else_as_before(mura_root, tmp_path):
    (tmp_path / "secret").write_bytes(SECRET)
    words = (*SERVED, "dataset=mura", f"dataset.root={mura_root}", "cases=4", "augmentation=none", "save_train_predictions=true")
    plain, hashed = (
        train_run(tmp_path / name, *words, *more, report=name == "hashed")
        for name, more in (("plain", ()), ("hashed", (f"hash_ids={tmp_path / 'secret'}",)))
    )
    for split in ("train", "valid", "test"):
        a, b = (pd.read_csv(run / "predictions" / f"{split}.csv", dtype={"id": str, "patient": str}) for run in (plain, hashed))
        assert b["id"].tolist() == [pseudonym(SECRET, name) for name in a["id"]]
        assert b["patient"].tolist() == [pseudonym(SECRET, name, "patient") for name in a["patient"]]
        assert a.drop(columns=["id", "patient"]).equals(b.drop(columns=["id", "patient"]))
    a, b = (pd.read_csv(run / "predictions" / "test_images.csv", dtype=str) for run in (plain, hashed))
    assert b["image"].tolist() == [pseudonym(SECRET, name, "image") for name in a["image"]]
    said = [path for path in hashed.rglob("*") if path.is_file() and b"patient0" in path.read_bytes()]
    assert said == []
    assert any(b"patient0" in path.read_bytes() for path in plain.rglob("*.csv")), "which the other run says"
    before = json.loads((hashed / "evaluation.json").read_text())["splits"]
    run_job("evaluate", f"run={hashed}")
    assert json.loads((hashed / "evaluation.json").read_text())["splits"] == before
