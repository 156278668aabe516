"""``python -m xraylab.train``: train, validate and test one run, or a sweep with ``-m``."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from xraylab.cli import ended_by, every_key, launch
from xraylab.errors import Lost, Stopped, UserError
from xraylab.processes import Processes, planned

USAGE = """
xraylab.train: train a classifier of radiology studies, test it, and leave a run that can be judged.

  python -m xraylab.train                                       the main job: MRNet, axial, ACL
  python -m xraylab.train dataset=mrnet plane=sagittal task=meniscus dataset.root=/data/MRNet-v1.0
  python -m xraylab.train dataset=mrnet 'task=[acl,meniscus]' backbone=resnet18 batch_size=4 max_epochs=20
  python -m xraylab.train experiment=pneumoniamnist dataset.root=/data/pneumoniamnist.npz
  python -m xraylab.train -m plane=axial,coronal,sagittal seed=0,1,2
  python -m xraylab.train fold=1/5                              one fold of a cross-validation
  python -m xraylab.train resume=outputs/mrnet/<date_time>      go on where that run stopped
  python -m xraylab.train batch_size=8 accelerator=gpus         all GPUs of this machine; accelerator.devices=2: two processes
  torchrun --nproc-per-node=2 -m xraylab.train batch_size=8     the same, started by torchrun

Data is looked for in dataset.root, in $XRAYLAB_DATA (the parent of the published names), in ./data; where there is none,
a synthetic sample is used and everything says so. Results go to outputs/<name>/<date_time>, or hydra.run.dir=<folder>.
Exit codes: 0 done, 2 a mistake in what was asked, 75 stopped and can be resumed, 1 anything else.
"""


def job(cfg: DictConfig) -> None:
    """One run. Heavy imports happen here, after composition."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from xraylab.settings import check_config

    check_config(cfg)  # mistakes answer before torch is imported
    hydra_config = HydraConfig.get()
    typed = list(hydra_config.overrides.task)
    directory = Path(hydra_config.runtime.output_dir)
    processes = planned(cfg.accelerator, sweep=hydra_config.mode is RunMode.MULTIRUN)
    if processes.world > 1:  # where another is lost, torch would print its stack
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

    from xraylab.assemble import resumed_config
    from xraylab.exchange import agree, gather, hush, joined, rank
    from xraylab.training import train

    composed = {k: v for k, v in every_key(OmegaConf.to_container(cfg, resolve=False)) if not isinstance(v, dict)}
    if cfg.resume and processes.rank == 0:
        resumed = resumed_config(cfg.resume, typed, cfg.accelerator)
        if directory.resolve() != Path(resumed.resume).resolve():
            raise UserError(f"resume={cfg.resume}: a run goes on in its own directory: leave out -m and hydra.run.dir.")
        cfg = resumed
        processes = planned(cfg.accelerator)
    if processes.rank:
        hush()

    def start(of: Processes) -> bytes:
        return pickle.dumps((HydraConfig.instance().cfg, cfg, directory, typed, of))

    with joined(processes, None if processes.launcher else start):
        if processes.launcher and processes.world > 1:
            agree("settings", composed)
            cfg, directory = gather((cfg, directory) if rank() == 0 else None, patiently=True)[0] or (cfg, directory)
        train(cfg, directory, typed, processes)


def other(hydra_cfg: Any, cfg: DictConfig, directory: Path, typed: list[str], processes: Processes) -> None:
    """One of the processes of a run that the first has started, to its end."""
    from hydra.core.hydra_config import HydraConfig

    from xraylab.exchange import hush, joined
    from xraylab.training import train

    HydraConfig.instance().cfg = hydra_cfg
    hush()
    try:
        with joined(processes):
            train(cfg, directory, typed, processes)
    except (UserError, Stopped, Lost) as error:
        ended_by(error)


def main() -> None:
    """The entry point."""
    launch("config", job, USAGE)


if __name__ == "__main__":
    main()
