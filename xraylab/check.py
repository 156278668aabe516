"""``python -m xraylab.check dataset=mrnet``: whether a download is whole, and what is wrong with it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from xraylab.config.dataset import reader_of, resolved, settings_beside
from xraylab.config.launch import launch
from xraylab.errors import UserError
from xraylab.system.paths import ENVIRONMENT

log = logging.getLogger(__name__)

USAGE = """
xraylab.check: read all of a dataset and compare it with what is published of it; name what is missing, broken or stray.

  python -m xraylab.check dataset=mrnet dataset.root=/data/MRNet-v1.0
  python -m xraylab.check dataset=mura read_images=false        the lists and the files' names only: seconds
  python -m xraylab.check dataset=medmnist subset=chestmnist names=null
  python -m xraylab.check dataset=table dataset.root=/data/export.csv    of a CSV with columns of its own: what they may be, and
                                                                the command that trains with them

The whole dataset is checked, whatever plane, task or body part is chosen. Data is looked for as in training.
Exit codes: 0 complete, nothing is published to compare with, or columns are proposed; 2 something is missing, too much or broken.
"""


def job(cfg: DictConfig) -> None:
    """Check one dataset; the report goes to standard output."""
    from xraylab.data.integrity import examine

    settings_beside(cfg, "read_images", "names")
    if not isinstance(cfg.read_images, bool):
        raise UserError(f"read_images={cfg.read_images}: it is true or false.")
    if cfg.names is not None and (type(cfg.names) is not int or cfg.names < 1):
        raise UserError(f"names={cfg.names}: it is a number from 1 on, or null for all.")
    with open_dict(cfg):
        cfg.dataset.on_error = "skip"
    reader = reader_of(cfg)
    path = reader.find()
    if path is None and reader.root != "sample":
        environment = os.environ.get(ENVIRONMENT)
        raise UserError(
            f"there is no {reader.published_name} to check: dataset.root is not given; it is not in "
            f"{f'${ENVIRONMENT} ({environment}) or' if environment else f'${ENVIRONMENT}, which is not set, or'} "
            f"{Path('data').absolute()}.\nName its place: dataset.root=<path>. The data: {reader.register}\n"
            "dataset.root=sample checks the embedded synthetic sample."
        )
    if path is None:
        found = resolved(cfg, HydraConfig.get().overrides.task)
        reader, path = found.reader, found.data()
    if (proposal := reader.proposal(path)) is not None:
        log.info("%s", proposal)
        return
    findings = examine(reader, path, cfg.read_images)
    log.info("%s", findings.text(cfg.names))
    if findings.failed:
        raise UserError(findings.line)


def main() -> None:
    """The entry point."""
    launch("check", job, USAGE)


if __name__ == "__main__":
    main()
