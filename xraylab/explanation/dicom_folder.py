"""A folder of DICOM results, ``<study>.sr.dcm`` and ``<study>.<finding>.sc.dcm``, of what runs predict of DICOM files."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from xraylab import __version__
from xraylab.data.images.dicom import is_dicom
from xraylab.data.images.dicom_headers import DicomHeader, read_header, require_one_study
from xraylab.errors import UserError, listed
from xraylab.evaluation.ensembles.combination import read_combination
from xraylab.evaluation.predictions import PredictionTable
from xraylab.explanation.dicom_results import Finding, Model, made_of
from xraylab.explanation.explanations import Drawn, Explainer, Read, drawn, safe
from xraylab.explanation.maps import METHODS
from xraylab.inference.inputs import LEFT_OUT, Files, Skipped
from xraylab.run import home_of
from xraylab.system.files import write_bytes
from xraylab.system.progress import watched
from xraylab.training.study_module import StudyModule

log = logging.getLogger(__name__)
NOT_DICOM = "not a DICOM file, so there is no DICOM study to put a result in"


def of_dicom(studies: Files) -> Files:
    """The studies whose files are all DICOM; the others are missing, each with the file that is not.

    Raises:
        UserError: there is none.
    """
    other = [next((i for i in images if not is_dicom(Path(i))), None) for images in studies.frame["images"]]
    lost = [
        Skipped(study, image, NOT_DICOM, LEFT_OUT)
        for study, image in zip(studies.frame["id"].tolist(), other, strict=True)
        if image is not None
    ]
    kept = studies.frame[[image is None for image in other]].reset_index(drop=True)
    if kept.empty:
        raise UserError(
            f"format=dicom_sr: {studies.name} has no study of DICOM files, and a result is put in the study of its images: "
            f"{listed((s.file for s in lost), 3)} is no DICOM file. Give DICOM, or write format=table."
        )
    return replace(studies, frame=kept, missing=[*studies.missing, *lost])


def write_results(
    explainers: Mapping[Path, Explainer], table: pd.DataFrame, thresholds: Mapping[str, float] | None, synthetic: bool,
    folder: Path,
) -> tuple[list[str], list[Skipped]]:  # fmt: skip
    """Write a report and heat maps of each study, each file as a whole or not at all.

    Heat maps are of the findings that are called positive, at .5 where nothing is called, or else of the most probable one.

    Args:
        explainers: of each run, each of other labels.
        table: what they predict together, a prediction table; with ``call_<label>`` where there are thresholds.
        thresholds: by label, of the table's probabilities; None: nothing is called.
        synthetic: the models or the images are of the synthetic sample.

    Returns:
        The studies that were written, and what was skipped on the way.

    Raises:
        UserError: not one study can be written.
    """
    labels = PredictionTable(table).predicted
    models = {run: model_of(run, explainer) for run, explainer in explainers.items()}
    done: list[str] = []
    skipped: list[Skipped] = []
    ids = table["id"].tolist()
    names, mapless = dict(zip(ids, apart(ids), strict=True)), set[str]()
    ends = dict(zip(labels, apart(labels), strict=True))
    for row in watched(table.to_dict("records"), len(ids), "writing DICOM"):
        study = str(row["id"])
        try:
            read = {run: explainer.read(study) for run, explainer in explainers.items()}
            headers = headers_of([one for of in read.values() for one in of])
            wanted = _to_map(row, labels)
            findings = []
            for run, explainer in explainers.items():
                maps = _maps(explainer, study, read[run], [name for name in wanted if name in explainer.logits], mapless)
                findings += [_finding(row, name, models[run], thresholds, maps.get(name)) for name in explainer.logits]
            findings.sort(key=lambda finding: labels.index(finding.name))
            report, captures = made_of(headers, findings, study, synthetic)
        except UserError as error:
            skipped.append(Skipped(study, "", str(error), LEFT_OUT))
            continue
        for name, content in captures.items():
            write_bytes(folder / f"{names[study]}.{ends[name]}.sc.dcm", content)
        write_bytes(folder / f"{names[study]}.sr.dcm", report)
        done.append(study)
    for why in sorted(mapless):
        log.warning("there are no heat maps: %s", why)
    if not done:
        raise UserError(f"not one of {len(ids)} studies can be written as DICOM: {listed((s.reason for s in skipped), 3)}")
    return done, skipped


def headers_of(read: Sequence[Read | None]) -> dict[str, DicomHeader]:
    """The headers of the files that the models saw of a study, by file.

    Raises:
        UserError: one lacks what is needed, or they are of several DICOM studies.
    """
    files = dict.fromkeys(picture.image for of in read if of is not None for picture in of.pictures)
    headers = {file: read_header(Path(file)) for file in files}
    require_one_study(list(headers.values()))
    return headers


def model_of(run: Path, explainer: Explainer) -> Model:
    """What a run, or a combination, is called in results: nothing of where it lies."""
    found = read_combination(run) if run.is_dir() else None
    backbones = dict.fromkeys(
        str(module.net.backbone.hparams.get("name", type(module.net.backbone).__name__)) for module in explainer.modules
    )
    name = (
        ", ".join(backbones) if found is None else f"{found[0].method} of {len(explainer.modules)} models: {', '.join(backbones)}"
    )
    home = home_of(run)
    version = f"xraylab {__version__}, weights sha256 {digest(explainer.modules)[:16]}"
    return Model(name, version, run.stem if home is None else home.resolve().name)


def digest(modules: Sequence[StudyModule]) -> str:
    """SHA-256 of models' weights, in hexadecimal."""
    found = hashlib.sha256()
    for module in modules:
        for name, value in module.net.state_dict().items():
            found.update(name.encode())
            found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def apart(names: Sequence[str]) -> list[str]:
    """Names of files, none of which is another's, on a disk that does not tell upper case from lower either.

    >>> apart(["visit/1", "visit_1", "b"])
    ['visit_1', 'visit_1_2', 'b']
    """
    taken: set[str] = set()
    out = []
    for name in names:
        base, k = safe(name), 1
        while (one := base if k == 1 else f"{base}_{k}").casefold() in taken:
            k += 1
        taken.add(one.casefold())
        out.append(one)
    return out


def _to_map(row: Mapping[Any, Any], labels: Sequence[str]) -> list[str]:
    """The findings of a study that get a heat map."""
    p = {name: float(row[f"p_{name}"]) for name in labels}
    called = [name for name in labels if (row[f"call_{name}"] == 1 if f"call_{name}" in row else p[name] >= 0.5)]
    return called or [max(labels, key=lambda name: p[name])]


def _maps(
    explainer: Explainer, study: str, read: Sequence[Read | None], findings: Sequence[str], mapless: set[str]
) -> dict[str, Drawn]:  # fmt: skip
    """By finding, the map over the image that adds most; none where the model has no places, which is put into ``mapless``."""
    try:
        explained = explainer.explained(study, read, findings, METHODS[0]) if findings else []
    except UserError as error:
        mapless.add(str(error))
        return {}
    return {found.finding: drawn(found, 1)[0] for found in explained}


def _finding(
    row: Mapping[Any, Any], name: str, model: Model, thresholds: Mapping[str, float] | None, over: Drawn | None
) -> Finding:  # fmt: skip
    p = float(row[f"p_{name}"])
    if thresholds is None:
        return Finding(name, p, model, map=over)
    return Finding(name, p, model, row[f"call_{name}"] == 1, thresholds[name], over)
