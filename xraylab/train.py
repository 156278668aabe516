"""``python -m xraylab.train``: train, validate and test one run, or a sweep with ``-m``."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from xraylab.cli import launch
from xraylab.errors import UserError

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

    from xraylab.assemble import resumed_config
    from xraylab.training import train

    hydra_config = HydraConfig.get()
    typed = list(hydra_config.overrides.task)
    directory = Path(hydra_config.runtime.output_dir)
    if cfg.resume:
        resumed = resumed_config(cfg.resume, typed)
        if directory.resolve() != Path(resumed.resume).resolve():
            raise UserError(f"resume={cfg.resume}: a run goes on in its own directory: leave out -m and hydra.run.dir.")
        cfg = resumed
    swept, callbacks = hydra_config.mode == RunMode.MULTIRUN, []
    if swept and cfg.sweep.prune:
        from xraylab.pruning import MedianPruning

        callbacks = [MedianPruning.of(cfg.sweep, cfg.monitor, directory)]
    if swept and (directory / "config.yaml").is_file():  # of a sweep that was cut off, and goes on
        cfg = resumed_config(str(directory), [])
    train(cfg, directory, typed, callbacks)


def main() -> None:
    """The entry point."""
    launch("config", job, USAGE)


if __name__ == "__main__":
    main()
