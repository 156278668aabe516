"""The files that challenges take, from a prediction table.

None of the three challenges is open any more, and none publishes its format beyond an example, so what is written here was
read in public submissions where there are any:

- MRNet: three columns without a header, probabilities of abnormal, acl, meniscus, a row an exam in the order of the input
  (seen in several submissions; the rows name no exam).
- CheXpert: a header ``Study,Atelectasis,Cardiomegaly,Consolidation,Edema,Pleural Effusion`` and a row a study such as
  ``CheXpert-v1.0/valid/patient64541/study1`` (seen). With all 14 findings, in the order of ``train.csv`` (assumed).
- MURA: ``MURA-v1.1/valid/XR_WRIST/patient11185/study1_positive/,1`` without a header, as in ``valid_labeled_studies.csv``
  (assumed: no submission was found that shows it).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from xraylab.data.datasets.mrnet import TASKS
from xraylab.data.datasets.mura import LABEL
from xraylab.data.findings import CHEXPERT, COMPETITION, spelled
from xraylab.errors import UserError, did_you_mean
from xraylab.evaluation.predictions import PredictionTable
from xraylab.system.files import beside

DICOM = "dicom_sr"  # no challenge's: structured reports, see xraylab.explanation.dicom_folder
FORMATS = ("table", "mrnet", "mura", "chexpert", DICOM)


def check_format(name: str, labels: Sequence[str] | None = None) -> None:
    """Refuse a format that does not exist, or whose labels a model has not.

    Args:
        labels: of the model; None: not known yet.

    Raises:
        UserError: as said.
    """
    if name not in FORMATS:
        raise UserError(f"format={name}: it is {', '.join(FORMATS)}.{did_you_mean(name, FORMATS)}")
    if labels is None or name in ("table", DICOM):
        return
    needed = {"mrnet": TASKS, "mura": (LABEL,), "chexpert": COMPETITION}[name]
    if missing := [label for label in needed if label not in labels]:
        raise UserError(
            f"format={name} needs {', '.join(needed)}; this run predicts {', '.join(labels)}. Missing: {', '.join(missing)}."
        )


def write_submission(name: str, table: pd.DataFrame, paths: Sequence[str], file: Path, left_out: Sequence[str] = ()) -> None:
    """Write a challenge's file, as a whole or not at all.

    Args:
        name: ``mrnet``, ``mura`` or ``chexpert``.
        table: a prediction table; for MURA with ``call_abnormal``, 1 or 0.
        paths: of its studies; from the dataset's own name on, as the challenge writes them, where that is part of them.
        left_out: studies that are not in the table.

    Raises:
        UserError: labels are missing; or studies, whose place in MRNet's file no other may take.
    """
    check_format(name, PredictionTable(table).predicted)
    if name == "mrnet":
        if left_out:
            raise UserError(
                f"format=mrnet: its rows name no exam, so none can be missing; {len(left_out)} could not be predicted, the first "
                f"{left_out[0]}. Mend them, or write format=table."
            )
        out, header = table[[f"p_{task}" for task in TASKS]], False
    elif name == "mura":
        calls = table[f"call_{LABEL}"].tolist()
        out, header = pd.DataFrame({"study": [f"{_published(p)}/" for p in paths], "call": calls}), False
    else:
        findings = CHEXPERT if all(f"p_{f}" in table for f in CHEXPERT) else COMPETITION
        out = table[[f"p_{f}" for f in findings]].set_axis([spelled(f) for f in findings], axis=1)
        out.insert(0, "Study", [_published(p) for p in paths])
        header = True
    with beside(file) as partial:
        out.to_csv(partial, index=False, header=header)


def _published(path: str) -> str:
    """A study's path from the dataset's own name on; as it is, where that is not in it."""
    match = re.search(r"(?:^|/)((?:MURA|CheXpert)-v[^/]*/.*)$", path)
    return (match.group(1) if match else path).rstrip("/")
