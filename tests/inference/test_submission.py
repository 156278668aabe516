"""The files of challenges."""

from __future__ import annotations

import pandas as pd
import pytest

from xraylab.errors import UserError
from xraylab.inference.submission import write_submission


def test_challenges_get_their_files(tmp_path):
    table = pd.DataFrame({"id": ["0", "1"], "p_acl": [0.1, 0.2], "p_abnormal": [0.3, 0.4], "p_meniscus": [0.5, 0.6]})
    write_submission("mrnet", table, ["0", "1"], tmp_path / "mrnet.csv")
    assert (tmp_path / "mrnet.csv").read_text() == "0.3,0.1,0.5\n0.4,0.2,0.6\n"
    with pytest.raises(UserError, match="none can be missing; 1 could not be predicted, the first 0044"):
        write_submission("mrnet", table, ["0", "1"], tmp_path / "mrnet.csv", left_out=["0044"])

    findings = ["edema", "atelectasis", "pleural_effusion", "cardiomegaly", "consolidation"]
    table = pd.DataFrame({"id": ["a"], **{f"p_{f}": [k / 10] for k, f in enumerate(findings)}})
    write_submission("chexpert", table, ["/data/CheXpert-v1.0/test/patient64741/study1"], tmp_path / "chexpert.csv")
    assert (tmp_path / "chexpert.csv").read_text().splitlines() == [
        "Study,Atelectasis,Cardiomegaly,Consolidation,Edema,Pleural Effusion",
        "CheXpert-v1.0/test/patient64741/study1,0.1,0.3,0.4,0.0,0.2",
    ]
    with pytest.raises(UserError, match="Missing: edema"):
        write_submission("chexpert", table.drop(columns="p_edema"), ["a"], tmp_path / "chexpert.csv")
    table = pd.DataFrame({"id": ["a", "b"], "p_abnormal": [0.5, 0.49], "call_abnormal": [1, 0]})
    write_submission("mura", table, ["/x/MURA-v1.1/test/XR_HAND/patient1/study1", "b"], tmp_path / "mura.csv")
    assert (tmp_path / "mura.csv").read_text() == "MURA-v1.1/test/XR_HAND/patient1/study1/,1\nb/,0\n"
