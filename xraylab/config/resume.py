"""The configuration of a run that goes on: which run that is, and what may change."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from xraylab.errors import UserError, did_you_mean
from xraylab.run import BEGUN, Run, is_finished, read_begun, read_config, run_of
from xraylab.system.command_line import command_line, word

RESUMABLE = ("max_epochs", "dataset.root", "num_workers", "log_every", "bootstrap", "save_train_predictions", "cache", "upload",
             "checkpoint_every", "profiler", "accelerator")  # fmt: skip


def resumed_config(resume: str, typed: Sequence[str], accelerator: Any = None) -> DictConfig:
    """The configuration of the run to resume, with the values typed now.

    Only what leaves the course of the run as it was can change: its length, how it is watched and read, and where it runs.
    What was typed when it was begun, and what it has anyway, may be typed again.

    Args:
        accelerator: the composed group, which is taken where it was typed.

    Raises:
        UserError: no such run, or something else was typed.
    """
    run, checkpoint = existing_run(resume)
    saved = read_config(run) if checkpoint else OmegaConf.create(read_begun(run)["config"])
    laid_out = {"total_steps", "T_max"} & set(saved.scheduler)
    before = read_begun(run)["typed"] if (run / BEGUN).is_file() else []
    for override in OverridesParser.create().parse_overrides(list(typed)):
        key = override.key_or_group
        if key == "resume":
            continue
        if key.split(".")[0] == "accelerator" and accelerator is not None:
            saved.accelerator = accelerator
            continue
        if key == "max_epochs" and laid_out:
            raise UserError(
                f"resume={resume}: its learning rate is laid out for {saved.max_epochs} epochs; max_epochs cannot change."
            )
        if key not in RESUMABLE and (override.input_line in before or _has(saved, override)):
            continue
        if key not in RESUMABLE:
            raise UserError(
                f"resume={resume}: {key} cannot change in a run that goes on.{did_you_mean(key, RESUMABLE)} "
                f"What can: {', '.join(RESUMABLE)}. Start a new run for the rest."
            )
        OmegaConf.update(saved, key, override.value())
    saved.resume = str(checkpoint or run)
    return saved


def _has(saved: DictConfig, override: Override) -> bool:
    """Whether a run has that value already."""
    value = OmegaConf.select(saved, override.key_or_group)
    return not OmegaConf.is_config(value) and value is not None and bool(value == override.value())


def existing_run(resume: str) -> tuple[Path, Path | None]:
    """The run to resume, and the checkpoint to go on from: the one named, else its last; None: it is to be started again.

    Raises:
        UserError: there is no run, or it has no checkpoint and is too old to be started again; or it is finished, and its last
            is gone.
    """
    run = run_of(resume, begun=True)
    if resume.endswith(".ckpt"):
        return run, run / "checkpoints" / Path(resume).name
    last = Run(run).checkpoint("last")
    if last.is_file():
        return run, last
    if others := sorted((run / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime):
        if is_finished(run):
            words = "\n".join(f"  {command_line('train', [word('resume', path)])}" for path in reversed(others))
            raise UserError(f"resume={resume}: {last} is gone. Another may be gone on from; what came after it is lost:\n{words}")
        return run, others[-1]  # it ended while its first last.ckpt was written
    if (run / BEGUN).is_file():
        return run, None
    raise UserError(f"resume={resume}: {run} has no checkpoints/last.ckpt: it ended before its first epoch. Start it anew.")
