"""``python -m xraylab.export run=<run> format=onnx``: a run as one file that other programs read, without xraylab."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from omegaconf import DictConfig

from xraylab.config.launch import importing, launch
from xraylab.errors import UserError, did_you_mean
from xraylab.exporting import FORMATS
from xraylab.predict import run_given
from xraylab.run import home_of
from xraylab.system.command_line import shown

log = logging.getLogger(__name__)

USAGE = """
xraylab.export: write a finished run as one file for other programs, from a study's pictures to its probabilities.

  python -m xraylab.export run=outputs/mrnet/<date_time>
  python -m xraylab.export run=outputs/combine/<date_time> output=knee.onnx calibrate=true
  python -m xraylab.export run=outputs/mura/<date_time> format=torch_export output=bones.pt2

The file holds preprocessing, network, pool, combination and, with calibrate=true, temperatures. It takes images, uint8 pictures
of a study (N,H,W), or (N,H,W,3) of a model of colours, as decoded and before resizing, all of one size; of several planes
images_<plane> each. It gives probabilities, float32, one a label, in the order of the labels that it names. Before it gets its
name it is run, and compared with what xraylab predicts of studies of the run's own data and of drawn ones: where a probability
differs by more than 1e-4 nothing is written. It takes half a minute to a few minutes, by the depth of the network, on the CPU.
A model of this kind is for research, and no medical device.
"""


def job(cfg: DictConfig) -> None:
    """Write the file."""
    _check(cfg)
    run = run_given(str(cfg.run))
    output = _output(cfg, run)

    with importing():
        from xraylab.evaluation.operating_points import temperatures_of
        from xraylab.exporting.written import export
        from xraylab.inference.predictor import chosen_of, run_labels
        from xraylab.training.fit import silence_lightning

    started = time.monotonic()
    silence_lightning()
    chosen = chosen_of(run, cfg.checkpoint)
    temperatures = temperatures_of(chosen, run_labels(run, cfg.checkpoint)) if cfg.calibrate else {}
    log.info("exporting %s as %s: half a minute to a few minutes", run, cfg.format)
    done = export(run, cfg.format, output, temperatures, chosen, cfg.checkpoint, cfg.root, cfg.studies)
    log.info(
        "largest difference from xraylab's probabilities: %.1e (%s); 1e-4 would be let pass", done.parity.largest,
        ", ".join(done.parity.where),
    )  # fmt: skip
    if not chosen:
        log.info("no thresholds are in it: operating_points.json of this checkpoint is not there")
    if done.synthetic:
        log.warning("SYNTHETIC SAMPLE: the model or the images are drawings; results mean nothing for patients.")
    megabytes, seconds = done.size / 1e6, time.monotonic() - started
    log.info("wrote %s, %.1f MB, in %.0f s; it takes %s", output, megabytes, seconds, ", ".join(done.inputs))


def _check(cfg: DictConfig) -> None:
    if cfg.format not in FORMATS:
        raise UserError(f"format={cfg.format}: it is {' or '.join(FORMATS)}.{did_you_mean(str(cfg.format), FORMATS)}")
    for key in ("calibrate", "overwrite"):
        if not isinstance(cfg[key], bool):
            raise UserError(f"{key}={cfg[key]}: it is true or false.")
    if type(cfg.studies) is not int or cfg.studies < 1:
        raise UserError(f"studies={cfg.studies}: it is a number from 1 on.")


def _output(cfg: DictConfig, run: Path) -> Path:
    """Where to write, which can be written and is not there yet."""
    suffix = FORMATS[cfg.format]
    home = home_of(run)
    if cfg.output is None and home is None:
        raise UserError(f"output must be given: {run} is a checkpoint in no run directory. output=<file{suffix}>")
    default = (home or Path()) / f"model{'_calibrated' * cfg.calibrate}{suffix}"
    output = default if cfg.output is None else Path(cfg.output).expanduser()
    if output.is_dir():
        raise UserError(f"output={output}: it is a folder. Name a file: {shown('output', output / default.name)}")
    if output.exists() and not cfg.overwrite:
        raise UserError(f"{output} is there already. Name another file, output=<file{suffix}>, or replace it: overwrite=true.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output={output}: its folder cannot be made: {error.strerror}.") from error
    if not os.access(output.parent, os.W_OK):
        raise UserError(f"output={output}: its folder cannot be written to.")
    return output


def main() -> None:
    """The entry point."""
    launch("export", job, USAGE)


if __name__ == "__main__":
    main()
