"""``python -m xraylab.train``: train, validate and test one run, or a sweep with ``-m``."""

from __future__ import annotations

import logging
import os
import pickle
import sys
from collections.abc import Sequence
from functools import partial
from multiprocessing import current_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from xraylab.config.launch import escape_unprintable, exit_with, importing, launch
from xraylab.config.messages import every_key
from xraylab.config.resume import resumed_config
from xraylab.errors import EXIT_RESUMABLE, Lost, Stopped, UserError, listed
from xraylab.run import BEGUN, differing, is_finished, read_begun, run_of
from xraylab.system.processes import SINGLE_PROCESS, Processes, own_gpus, planned, silence
from xraylab.system.progress import clock

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from xraylab.training.session import Session

log = logging.getLogger(__name__)
OF_SWEEPS = ("sweep.", "fail_fast=", "hydra.sweep.", "hydra.sweeper.", "hydra/launcher", "hydra.launcher.")

USAGE = """
xraylab.train: train a classifier of radiology studies, test it, and leave a run that can be judged.

  python -m xraylab.train                                       the main job: MRNet, axial, ACL
  python -m xraylab.train dataset=mrnet plane=sagittal task=meniscus dataset.root=/data/MRNet-v1.0
  python -m xraylab.train dataset=mrnet 'task=[acl,meniscus]' backbone=resnet18 batch_size=4 max_epochs=20
  python -m xraylab.train experiment=pneumoniamnist dataset.root=/data/pneumoniamnist.npz
  python -m xraylab.train -m plane=axial,coronal,sagittal seed=0,1,2
  python -m xraylab.train -m sweep.method=tpe 'optimizer.lr=tag(log,interval(1e-6,1e-3))' batch_size=1,4,16
  python -m xraylab.train sweep.resume=outputs/mrnet/multirun/<date_time>   what that sweep has not finished
  python -m xraylab.train fold=1/5                              one fold of a cross-validation
  python -m xraylab.train resume=outputs/mrnet/<date_time>      go on where that run stopped
  python -m xraylab.train dataset=mrnet resume=auto             go on with the last unfinished run of this command, or begin it
  python -m xraylab.train batch_size=8 accelerator=gpus         all GPUs of this machine; accelerator.devices=2: two processes
  torchrun --nproc-per-node=2 -m xraylab.train batch_size=8     the same, started by torchrun

Data is looked for in dataset.root, in $XRAYLAB_DATA (the parent of the published names), in ./data; where there is none,
a synthetic sample is used and everything says so. Results go to outputs/<name>/<date_time>, or hydra.run.dir=<folder>.
Exit codes: 0 done, 2 a mistake in what was asked, 75 stopped and can be resumed, 1 anything else.
"""


def train(
    cfg: DictConfig, directory: Path, typed: Sequence[str], processes: Processes = SINGLE_PROCESS,
    callbacks: Sequence[pl.Callback] = (), outer: Session | None = None,
) -> None:  # fmt: skip
    """One run, from a composed configuration to a finished run directory.

    Args:
        processes: that have met, see :func:`xraylab.training.distributed.launch.process_group`; only the first writes.
        callbacks: beside those of the configuration.
        outer: the run that this one is the first model of.

    Raises:
        UserError: a mistake in the configuration or the data, or the machine is too small for it.
        Pruned: a callback gave it up.
        Stopped: interrupted, or another process was lost; the directory holds what there is and can be resumed.
    """
    with importing():
        from xraylab.inference.evaluate import evaluate_run
        from xraylab.reporting.log_results import send_results
        from xraylab.reporting.run_report import write_report
        from xraylab.reporting.summary import closing_table
        from xraylab.training.complete_checkpoint import complete_checkpoint
        from xraylab.training.session import session

    with session(cfg, directory, typed, processes, outer) as s:
        if first := s.first_model():
            _train_first(s, *first)
        experiment = s.prepare()
        with s.closing():
            s.train(experiment, callbacks)
            evaluation = evaluate_run(experiment, directory, directory)
            if evaluation is not None:  # in the first process
                complete_checkpoint(experiment, directory)
                s.write_evaluation(evaluation, experiment)
                write_report(directory)
                s.mark_finished()  # the last, for now nothing is missing
                send_results(s.loggers, evaluation, directory)
        if evaluation is not None:
            log.info("%s", closing_table(evaluation, directory, clock(s.record["seconds"])))
        if s.stopped:
            raise Stopped("" if processes.rank else f"stopped before the end. {s.go_on}")


def _train_first(s: Session, cfg: DictConfig, directory: Path) -> None:
    """Train the first model of a self-trained loss."""
    try:
        train(cfg, directory, s.typed, outer=s)
    except Stopped:
        raise Stopped(f"stopped while the first model was trained. {s.go_on}") from None
    log.info("loss=selftrained: the first model is trained; now the second")


def job(cfg: DictConfig) -> None:
    """One run; in a worker of a sweep that was killed meanwhile, the last, for it would keep its memory and its GPU."""
    parent = os.getppid()
    try:
        _job(cfg)
    finally:
        if current_process().name.startswith("LokyProcess") and os.getppid() != parent:
            os._exit(EXIT_RESUMABLE)


def _job(cfg: DictConfig) -> None:
    """Heavy imports happen here, after composition."""

    from xraylab.config.settings import check_config

    check_config(cfg)  # mistakes answer before torch is imported
    hydra_config = HydraConfig.get()
    typed = list(hydra_config.overrides.task)
    directory = Path(hydra_config.runtime.output_dir)
    swept = hydra_config.mode is RunMode.MULTIRUN
    of_sweeps = [w for w in (*typed, *hydra_config.overrides.hydra) if w.lstrip("+").startswith(OF_SWEEPS)]
    if of_sweeps and not swept:
        raise UserError(f"{of_sweeps[0]} is of a sweep, and this is one run: add -m and values to try, as seed=0,1,2.")
    processes = planned(cfg.accelerator, sweep=swept)
    if swept and hydra_config.launcher._target_.endswith((".JoblibLauncher", ".LocalLauncher")):
        own_gpus(directory.parent, processes.local_world)
    if processes.world > 1:  # where another is lost, torch would print its stack
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if processes.rank:
        silence()

    with importing():
        from xraylab.training.distributed.collectives import agree, gather
        from xraylab.training.distributed.launch import process_group

    if processes.launcher and processes.world > 1:
        with process_group(processes):
            composed = every_key(OmegaConf.to_container(cfg, resolve=False))
            agree("settings", {k: v for k, v in composed if not isinstance(v, dict)})
            mine = (config_to_run(cfg, directory, typed), directory) if processes.rank == 0 else (None, directory)
            going, directory = gather(mine, patiently=True)[0]
            if going is not None:
                train(going, directory, typed, processes)
        return
    if swept and (directory / BEGUN).is_file():  # of a sweep that was cut off, and goes on
        cfg.resume, typed = str(directory), []
    if (going := config_to_run(cfg, directory, typed)) is None:
        return
    processes = planned(going.accelerator)

    callbacks = []
    if swept and cfg.sweep.prune:
        from xraylab.sweeps.median_pruning import MedianPruning

        callbacks = [MedianPruning.of(cfg.sweep, cfg.monitor, directory)]
    with process_group(processes, partial(pickled_for_child, going, directory, typed)):
        train(going, directory, typed, processes, callbacks)


def config_to_run(cfg: DictConfig, directory: Path, typed: list[str]) -> DictConfig | None:
    """The configuration of the run to begin or to go on with; None if it is finished.

    Raises:
        UserError: there is nothing to go on with, or not in this way.
    """
    if cfg.resume == "auto":
        return auto_resumed_config(cfg, directory)
    if cfg.resume:
        resumed = resumed_config(cfg.resume, typed, cfg.accelerator)
        if directory.resolve() != run_of(cfg.resume, begun=True).resolve():
            raise UserError(f"resume={cfg.resume}: a run goes on in its own directory: leave out -m and hydra.run.dir.")
        planned(resumed.accelerator)
        return resumed
    return cfg


def pickled_for_child(cfg: DictConfig, directory: Path, typed: list[str], processes: Processes) -> bytes:
    """The module and the arguments of :func:`run_child`, for one of the processes that the first starts."""

    # without the launchers' types, which are others in the processes that they start
    plain = OmegaConf.create(OmegaConf.to_container(HydraConfig.instance().cfg))
    return pickle.dumps(("xraylab.train", (plain, cfg, directory, typed, processes)))


def run_child(hydra_cfg: Any, cfg: DictConfig, directory: Path, typed: list[str], processes: Processes) -> None:
    """One process of a run, which the first has started by :mod:`xraylab.training.distributed.launch`, to its end."""
    silence()
    escape_unprintable()
    from xraylab.training.distributed.launch import process_group

    HydraConfig.instance().cfg = hydra_cfg
    try:
        with process_group(processes):
            train(cfg, directory, typed, processes)
    except (UserError, Stopped, Lost) as error:
        exit_with(error)
    except KeyboardInterrupt:
        sys.exit(1)  # the first process says it


def auto_resumed_config(cfg: DictConfig, directory: Path) -> DictConfig | None:
    """The configuration to go on with in a directory of ``resume=auto``, or to begin with; None if that run is finished.

    Raises:
        UserError: the directory holds a run of another configuration.
    """
    if not (directory / BEGUN).is_file():
        log.info("resume=auto: no unfinished run of this command; a new one begins in %s", directory)
        cfg.resume = None
        return cfg
    if differ := differing(OmegaConf.to_container(cfg), read_begun(directory)["config"]):  # type: ignore[arg-type]
        raise UserError(
            f"resume=auto: {directory} holds a run of another configuration, which differs in {listed(differ)}. "
            "Give the command that began it, or name another hydra.run.dir."
        )
    if is_finished(directory):
        log.info("resume=auto: the run in %s is finished; there is nothing to do.", directory)
        return None
    log.info("resume=auto: going on with %s", directory)
    return resumed_config(str(directory), [])


def _of_sweep(words: list[str]) -> list[str]:
    """The words of a sweep that goes on, in the place of ``sweep.resume=<its directory>``."""
    if not any(word.startswith("sweep.resume=") for word in words):
        return words
    from xraylab.sweeps.record import resumed_words

    return resumed_words(words)


def main() -> None:
    """The entry point."""
    launch("config", job, USAGE, _of_sweep)


if __name__ == "__main__":
    main()
