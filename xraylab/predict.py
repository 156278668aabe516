"""``python -m xraylab.predict run=<run> input=<…>``: predict a split, a folder, a list or single files with a run."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from xraylab.config.launch import importing, launch
from xraylab.errors import UserError, listed
from xraylab.run import home_of, run_of
from xraylab.system.command_line import shown
from xraylab.system.files import beside, new_folder

if TYPE_CHECKING:
    import pandas as pd

    from xraylab.inference.inputs import Files, Skipped
    from xraylab.inference.predictor import Predicted
    from xraylab.inference.studies import Options

log = logging.getLogger(__name__)

USAGE = """
xraylab.predict: predict studies with a finished run.

  python -m xraylab.predict run=outputs/mrnet/<date_time> input=test output=again.csv
  python -m xraylab.predict run=outputs/mura/<date_time> input=/data/MURA-v1.1/test format=mura
  python -m xraylab.predict run=outputs/mura/<date_time> input=patients.csv
  python -m xraylab.predict 'run=[<abnormal>,<acl>,<meniscus>]' input=MRNet-v1.0/valid format=mrnet output=mrnet.csv
  python -m xraylab.predict run=outputs/chexpert/<date_time> 'input=[front.dcm,side.dcm]'
  python -m xraylab.predict run=outputs/mrnet/<date_time> input=new/axial calibrate=true threshold=youden
  python -m xraylab.predict run=outputs/mura/<date_time> input=hand.dcm format=dicom_sr output=reports

A run may be a combination; several runs, each of other labels, make one table. Files are PNG, JPEG, TIFF, .npy (an image, or
a volume of slices) and DICOM (pip install 'xraylab[dicom]'). The table is id,patient,group,split,p_<label>...,logit_<label>...
(natural log-odds, before calibrate=true), in the order of the input; where studies have several views, <output>_images.csv is
the same by image. An id is a file's name or path: nothing that a file says of its patient is read, but for format=dicom_sr.
Files that cannot be read are named in <output>.skipped.csv, and the rest is predicted. Weights of other frameworks (.h5) are
out of scope.

format=dicom_sr writes a folder: of each study of DICOM files a structured report, and heat maps as secondary captures, in the
same DICOM study. It COPIES the patient's name, number, birth date and the study from the files' headers. Research only.
"""


def job(cfg: DictConfig) -> None:
    """Predict, and write the table and what was skipped."""
    runs = [run_given(str(run)) for run in (cfg.run if OmegaConf.is_list(cfg.run) else [cfg.run])]
    given = input_given(cfg.input)
    if not runs:
        raise UserError("run=[]: it is a run, or several.")
    _check(cfg)
    output = _output(cfg, runs, given)

    with importing():
        from xraylab.data.images.source import check_bits
        from xraylab.data.study_table import SPLITS
        from xraylab.evaluation.operating_points import threshold_text
        from xraylab.evaluation.predictions import PredictionTable
        from xraylab.inference.inputs import find_studies
        from xraylab.inference.predictor import predict_all, run_labels
        from xraylab.inference.studies import Options
        from xraylab.inference.submission import DICOM, check_format
        from xraylab.training.fit import silence_lightning

    check_format(cfg.format)
    if cfg.format != "table":
        check_format(cfg.format, [label for run in runs for label in run_labels(run, cfg.checkpoint)])
    check_bits(cfg.bits)
    threshold = 0.5 if cfg.threshold is None and cfg.format == "mura" else cfg.threshold
    temperatures, thresholds = _chosen(runs, cfg, threshold)
    started = time.monotonic()
    silence_lightning()
    accelerator: Any = OmegaConf.to_container(cfg.accelerator)
    precision = None if cfg.precision is None else str(cfg.precision)
    options = Options(
        cfg.checkpoint, cfg.root, precision, cfg.batch_size, cfg.bits, cfg.num_workers,
        accelerator if accelerator["accelerator"] != "auto" else None,
    )  # fmt: skip
    studies = given if given in SPLITS else find_studies(given, cfg.study, cfg.patient, cfg.group, cfg.root)
    if not isinstance(studies, str):
        log.info("input: %d studies of %d files", len(studies.frame), sum(map(len, studies.frame["images"])))
    chosen = Chosen(threshold, thresholds, temperatures)
    if cfg.format == DICOM:
        done = _write_dicom(runs, studies, options, chosen, output)
    else:
        done = predict_all(runs, studies, options)
        _write(cfg.format, done, chosen, output)
    _write_skipped(done.skipped, _skipped_file(output))
    left_out = _left_out(done.skipped)
    if temperatures:
        log.info("CALIBRATED by the temperatures of validation: %s", _values(temperatures))
        if done.images is not None:
            log.info("there is no table by image: temperatures are of studies")
    if threshold is not None:
        cuts = _values(thresholds, threshold_text) if thresholds else threshold
        log.info("called positive (1) from here on: %s (at or above it, >=)", cuts)
    _say_skipped(done.skipped, output)
    if cfg.study == "auto" and not isinstance(studies, str):
        _warn_of_classes(studies.frame, PredictionTable(done.table).predicted)
    done.warn_of_unlike()
    if done.synthetic:
        log.warning("SYNTHETIC SAMPLE: the model or the images are drawings; results mean nothing for patients.")
    what = ("1 study" if len(done.table) == 1 else f"{len(done.table)} studies") + f", {len(left_out)} left out" * bool(left_out)
    log.info("predicted %s in %.0f s: %s", what, time.monotonic() - started, output)


class Chosen(NamedTuple):
    """What is done with probabilities."""

    threshold: Any  # a number, or the rule's name; None: nothing is called
    thresholds: dict[str, float]  # those of the rule by label, of probabilities as the models give them; empty: there is none
    temperatures: dict[str, float]  # by label; empty: nothing is calibrated

    def decided(self, table: pd.DataFrame) -> pd.DataFrame:
        from xraylab.evaluation.operating_points import decided

        return decided(table, self.thresholds or self.threshold, self.temperatures)

    def cuts(self, labels: Sequence[str]) -> dict[str, float] | None:
        """By label, of the probabilities of the decided table; None: nothing is called."""
        from xraylab.evaluation.operating_points import cut

        if self.threshold is None:
            return None
        if not self.thresholds:
            return dict.fromkeys(labels, float(self.threshold))
        return {label: cut(self.thresholds[label], self.temperatures.get(label)) for label in labels}


def _write(kind: str, done: Predicted, chosen: Chosen, output: Path) -> None:
    """Write the table, and the one by image; or the file of a challenge."""
    from xraylab.evaluation.predictions import PredictionTable
    from xraylab.inference.submission import write_submission

    table = chosen.decided(done.table)
    if kind != "table":
        write_submission(kind, table, done.paths, output, _left_out(done.skipped))
        return
    PredictionTable(table).write(output, done.synthetic)
    if done.images is not None and not chosen.temperatures:
        PredictionTable(done.images).write(_images_file(output), done.synthetic)
    else:
        _images_file(output).unlink(missing_ok=True)


def _write_dicom(runs: Sequence[Path], studies: str | Files, options: Options, chosen: Chosen, output: Path) -> Predicted:
    """Predict, and write structured reports and heat maps into a new folder.

    Raises:
        UserError: the input is no DICOM, or no study can be written.
    """
    from xraylab.evaluation.predictions import PredictionTable
    from xraylab.explanation.dicom_folder import of_dicom, write_results
    from xraylab.explanation.dicom_results import require_highdicom
    from xraylab.explanation.explanations import Explainer
    from xraylab.inference.inputs import LEFT_OUT
    from xraylab.inference.predictor import require_apart, side_by_side

    if isinstance(studies, str):
        raise UserError(
            f"input={studies}: format=dicom_sr puts results in the study of DICOM files; a split of a run's data is not given as "
            "such. Give its files, or write format=table."
        )
    require_highdicom()
    studies = of_dicom(studies)
    require_apart(runs, options)
    folder = new_folder(output)
    log.info("format=dicom_sr COPIES who the patient is, and the study, from the headers of the files into %s", folder)
    try:
        explainers = {run: Explainer(run, studies, options) for run in runs}
        done = side_by_side(runs, [explainer.predicted for explainer in explainers.values()])
        table = chosen.decided(done.table)
        cuts = chosen.cuts(PredictionTable(table).predicted)
        written, skipped = write_results(explainers, table, cuts, done.synthetic, folder)
    except UserError:
        with suppress(OSError):
            folder.rmdir()  # where nothing was written
        raise
    lost = {s.id for s in skipped}
    before = [s._replace(study=LEFT_OUT) if s.id in lost else s for s in done.skipped]
    return replace(done, table=table[table["id"].isin(written)], skipped=[*before, *skipped], images=None)


def _left_out(skipped: Sequence[Skipped]) -> list[str]:
    from xraylab.inference.inputs import LEFT_OUT

    return list(dict.fromkeys(s.id for s in skipped if s.study == LEFT_OUT))


def _warn_of_classes(studies: pd.DataFrame, labels: Sequence[str]) -> None:
    """Warn where a folder that was taken as one study is called as a label: it may be a folder of a class."""
    folders = studies.loc[studies["images"].map(len) > 1, "path"].map(lambda path: Path(path).name)
    if classes := sorted({name for name in folders if name.casefold() in {label.casefold() for label in labels}}):
        log.warning(
            "a folder called %s was taken as one study of all its images, and the model has a label of that name. If it is the "
            "folder of a class, whose files are studies, say study=file.", listed(classes),
        )  # fmt: skip


def _say_skipped(skipped: Sequence[Any], output: Path) -> None:
    if skipped:
        shown = [f"{s.file or s.id} ({s.reason}; the study is {s.study})" for s in skipped]
        log.warning("%d files could not be read: %s\nall of them: %s", len(shown), listed(shown), _skipped_file(output))


def _chosen(runs: list[Path], cfg: DictConfig, threshold: Any) -> tuple[dict[str, float], dict[str, float]]:
    """Temperatures and thresholds by label that the runs chose, as far as they are asked for."""
    from xraylab.evaluation.operating_points import temperatures_of, thresholds_of
    from xraylab.inference.predictor import chosen_of, run_labels

    temperatures: dict[str, float] = {}
    thresholds: dict[str, float] = {}
    for run in runs if cfg.calibrate or isinstance(threshold, str) else []:
        chosen, labels = chosen_of(run, cfg.checkpoint), run_labels(run, cfg.checkpoint)
        if cfg.calibrate:
            temperatures |= temperatures_of(chosen, labels)
        if isinstance(threshold, str):
            thresholds |= thresholds_of(chosen, labels, threshold)
            for label in labels:
                if why := chosen["labels"][label]["thresholds"][threshold].get("reason"):
                    log.warning("threshold=%s of %s is trivial: %s.", threshold, label, why)
    return temperatures, thresholds


def run_given(given: str) -> Path:
    """The run directory, or a checkpoint that lies in none."""
    from xraylab.system.remote import is_url

    path = Path(given).expanduser()
    if not is_url(given) and path.suffix and not path.is_dir():
        from xraylab.training.checkpoints import checkpoint_of

        return checkpoint_of(path)
    return run_of(given)


def input_given(given: Any) -> str | list[str]:
    """The word of ``input=``, or several. Raises UserError: an empty list."""
    if OmegaConf.is_list(given):
        names = [str(name) for name in given]
        if not names:
            raise UserError("input=[]: it is a file, or several.")
        return names
    return str(given)


def _check(cfg: DictConfig) -> None:
    number = isinstance(cfg.threshold, int | float) and not isinstance(cfg.threshold, bool)
    if not (cfg.threshold is None or isinstance(cfg.threshold, str) or (number and 0 <= cfg.threshold <= 1)):
        raise UserError(f"threshold={cfg.threshold}: it is a probability, 0 to 1, or a rule that the run chose by, as youden.")
    if cfg.threshold is not None and cfg.format not in ("table", "mura", "dicom_sr"):
        raise UserError(f"threshold={cfg.threshold}: format={cfg.format} holds no calls. Leave it out, or write format=table.")
    if not isinstance(cfg.calibrate, bool):
        raise UserError(f"calibrate={cfg.calibrate}: it is true or false.")
    if not (cfg.batch_size is None or (isinstance(cfg.batch_size, int) and cfg.batch_size >= 1)):
        raise UserError(f"batch_size={cfg.batch_size}: it is a number from 1 on, or null.")
    if not (cfg.num_workers == "auto" or (isinstance(cfg.num_workers, int) and cfg.num_workers >= 0)):
        raise UserError(f"num_workers={cfg.num_workers}: it is auto or a number from 0 on.")
    if cfg.precision is not None and str(cfg.precision) not in ("auto", "32", "bf16", "16"):
        raise UserError(f"precision={cfg.precision}: it is auto, 32, bf16 or 16.")


def _output(cfg: DictConfig, runs: Sequence[Path], given: str | list[str]) -> Path:
    """Where to write, which can be written and is not there yet; of DICOM results a folder, which is made later."""
    if cfg.output is not None:
        output = Path(cfg.output).expanduser()
    else:
        if len(runs) > 1:
            raise UserError("output must be given where there are several runs: output=<file.csv>")
        home = home_of(runs[0])
        if home is None:
            raise UserError(f"output must be given: {runs[0]} is a checkpoint in no run directory. output=<file.csv>")
        calls = cfg.threshold is not None and cfg.format in ("table", "dicom_sr")
        kinds = {"_calibrated": cfg.calibrate, "_calls": calls, f"_{cfg.format}": cfg.format != "table"}
        name = f"{_name(given)}{''.join(k for k, of_it in kinds.items() if of_it)}"
        output = home / "predictions" / (name if cfg.format == "dicom_sr" else f"{name}.csv")
    if cfg.format == "dicom_sr":
        if cfg.overwrite:
            raise UserError("overwrite=true: format=dicom_sr writes into a new folder and replaces nothing. Leave it out.")
        return output
    if output.is_dir():
        raise UserError(f"output={output}: it is a folder. Name a file: {shown('output', output / 'predictions.csv')}")
    written = (output, _images_file(output)) if cfg.format == "table" else (output,)
    if (there := [file for file in written if file.exists()]) and not cfg.overwrite:
        raise UserError(f"{there[0]} is there already. Name another file, output=<file.csv>, or replace it: overwrite=true.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output={output}: its folder cannot be made: {error.strerror}.") from error
    if not os.access(output.parent, os.W_OK):
        raise UserError(f"output={output}: its folder cannot be written to.")
    return output


def _name(given: str | list[str]) -> str:
    """What a result is called after its input; never as a split's own table, unless it is that."""
    if not isinstance(given, str):
        return "files"
    if given in ("train", "valid", "test"):
        return given
    path = Path(os.path.abspath(given.rstrip("/")))
    stem = path.stem if path.suffix and not path.is_dir() else path.name
    return f"{path.parent.name or 'input'}_{stem}" if stem.removesuffix("_images") in ("train", "valid", "test") else stem


def _values(of: Mapping[str, float], words: Callable[[float], str] = "{:.4f}".format) -> str:
    return ", ".join(f"{label} {words(value)}" for label, value in of.items())


def _images_file(output: Path) -> Path:
    return output.with_name(f"{output.stem}_images{output.suffix}")


def _skipped_file(output: Path) -> Path:
    return output.with_name(f"{output.name}.skipped.csv")


def _write_skipped(skipped: Sequence[Skipped], file: Path) -> None:
    import pandas as pd

    from xraylab.inference.inputs import Skipped

    if not skipped:
        file.unlink(missing_ok=True)
        return
    with beside(file) as partial:
        pd.DataFrame(skipped, columns=list(Skipped._fields)).to_csv(partial, index=False)


def main() -> None:
    """The entry point."""
    launch("predict", job, USAGE)


if __name__ == "__main__":
    main()
