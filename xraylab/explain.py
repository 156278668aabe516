"""``python -m xraylab.explain run=<run> input=<…>``: where in its images a prediction comes from, and how good such maps are."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from xraylab.config.launch import importing, launch
from xraylab.errors import UserError
from xraylab.predict import input_given, run_given
from xraylab.run import home_of, new_run_dir
from xraylab.system.files import new_folder, write_json

if TYPE_CHECKING:
    from xraylab.explanation.explanations import Explainer

log = logging.getLogger(__name__)

USAGE = """
xraylab.explain: maps of a finished run's predictions, finding by finding, and what each image of a study adds.

  python -m xraylab.explain run=outputs/mrnet/<date_time> input=test
  python -m xraylab.explain run=outputs/mura/<date_time> input=new/ finding=abnormal method=gradcam
  python -m xraylab.explain run=outputs/combine/<date_time> input=front.dcm output=why
  python -m xraylab.explain run=outputs/nih/<date_time> input=test measure=true

Maps are of the study's own logit, through the pool: of a maximum over slices only the slices that decide have a map. Each study
and finding has a folder of overlays in the images' own pixels and a sheet.png; explanations.csv has every image's share and
peak. measure=true judges the methods where boxes are known, and recommends one. A map shows what the model looked at, not what
is the matter with a patient.
"""


def job(cfg: DictConfig) -> None:
    """Explain, or measure."""
    run, given = run_given(str(cfg.run)), input_given(cfg.input)
    findings = (
        None if cfg.finding is None else [str(f) for f in (cfg.finding if OmegaConf.is_list(cfg.finding) else [cfg.finding])]
    )
    _check(cfg)

    with importing():
        from xraylab.data.study_table import SPLITS, SYNTHETIC
        from xraylab.explanation.explanations import Explainer, write_explanations
        from xraylab.explanation.maps import METHODS, require_known
        from xraylab.inference.inputs import find_studies
        from xraylab.inference.predictor import run_labels
        from xraylab.inference.studies import Options
        from xraylab.training.fit import silence_lightning

    started = time.monotonic()
    silence_lightning()
    method = cfg.method or METHODS[0]
    require_known(method, findings or [], run_labels(run, cfg.checkpoint))
    accelerator: Any = OmegaConf.to_container(cfg.accelerator)
    options = Options(  # in full precision, as maps are, or shares would not add up to what is predicted
        cfg.checkpoint, cfg.root, "32", bits=cfg.bits, accelerator=accelerator if accelerator["accelerator"] != "auto" else None,
    )  # fmt: skip
    studies = given if given in SPLITS else find_studies(given, cfg.study, root=cfg.root)
    if not isinstance(studies, str) and cfg.limit is not None and not cfg.measure:
        studies = replace(studies, frame=studies.frame.head(cfg.limit))
    explainer = Explainer(run, studies, options)
    if cfg.measure:
        _measure(cfg, run, explainer, findings)
        return
    output = _output(cfg, run)
    try:
        table = write_explanations(explainer, output, findings, method, cfg.limit, cfg.images, cfg.arrays)
    except UserError:
        with suppress(OSError):
            output.rmdir()  # where nothing was written
        raise
    done, synthetic = table["study"].nunique(), explainer.predicted.synthetic
    write_json(output / "explanations.json", {
        "run": str(run), "input": given, "method": method, "studies": done, "scale": "natural log-odds before calibration",
        "data": SYNTHETIC if synthetic else "as given",
    })  # fmt: skip
    for skipped in explainer.skipped:
        log.warning("%s: %s; the study is %s", skipped.file or skipped.id, skipped.reason, skipped.study)
    explainer.predicted.warn_of_unlike()
    if synthetic:
        log.warning("SYNTHETIC SAMPLE: the model or the images are drawings; results mean nothing for patients.")
    if done == cfg.limit:
        log.info("limit=%d: the first studies of the input; limit=null explains all", cfg.limit)
    log.info(
        "explained %s by %s in %.0f s: %s",
        "1 study" if done == 1 else f"{done} studies",
        method,
        time.monotonic() - started,
        output,
    )


def _measure(cfg: DictConfig, run: Path, explainer: Explainer, findings: list[str] | None) -> None:
    """Judge methods, print the table and write ``measures.json``."""
    from xraylab.data.boxes import read_boxes
    from xraylab.data.study_table import SYNTHETIC
    from xraylab.explanation.maps import METHODS
    from xraylab.explanation.measures import MEASURES, as_text, measure, recommended

    file = explainer.boxes_file() if cfg.boxes is None else Path(cfg.boxes)
    log.info("boxes: %s", file or "none are known")
    methods = METHODS if cfg.method is None else (cfg.method,)
    boxes = None if file is None else read_boxes(file)
    found = measure(explainer, boxes, findings, methods, cfg.limit, cfg.images, cfg.seed)
    best, why = recommended(found)
    output = _output(cfg, run)
    synthetic = explainer.predicted.synthetic
    units = "patients" if any(explainer.patients.values()) else "studies"
    write_json(output / "measures.json", {
        "run": str(run), "input": str(cfg.input), "data": SYNTHETIC if synthetic else "as given",
        "methods": {method: {name: e.record() for name, e in of.items()} for method, of in found.items()},
        "recommended": best, "why": why, "measures": MEASURES, "interval": f"95%, over {units}",
    })  # fmt: skip
    log.info("%s%s", "SYNTHETIC SAMPLE\n" if synthetic else "", as_text(found))
    log.info("%s: %s", f"method={best} is recommended here" if best else "none is recommended", why)
    log.info("everything is in %s", output / "measures.json")


def _check(cfg: DictConfig) -> None:
    for key in ("limit", "images"):
        if not (cfg[key] is None and key == "limit") and (type(cfg[key]) is not int or cfg[key] < 1):
            raise UserError(f"{key}={cfg[key]}: it is a number from 1 on{', or null for all' if key == 'limit' else ''}.")
    for key in ("arrays", "measure"):
        if not isinstance(cfg[key], bool):
            raise UserError(f"{key}={cfg[key]}: it is true or false.")


def _output(cfg: DictConfig, run: Path) -> Path:
    """A new folder."""
    if cfg.output is not None:
        return new_folder(cfg.output)
    home = home_of(run)
    return Path(new_run_dir("explain") if home is None else new_run_dir("explanations", above=home))


def main() -> None:
    """The entry point."""
    launch("explain", job, USAGE)


if __name__ == "__main__":
    main()
