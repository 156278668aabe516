"""``python -m xraylab.describe dataset=mrnet``: a dataset counted and pictured, in one report and a few CSVs."""

from __future__ import annotations

import logging
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from xraylab.config.dataset import read, resolved, settings_beside
from xraylab.config.launch import launch
from xraylab.errors import UserError, listed
from xraylab.reporting.dataset_page import write
from xraylab.reporting.dataset_report import describe
from xraylab.system.command_line import command_line, flags

log = logging.getLogger(__name__)

USAGE = """
xraylab.describe: what is in a dataset, split as training would split it: counts, sizes and pictures.

  python -m xraylab.describe dataset=mrnet plane=sagittal 'task=[abnormal,acl,meniscus]'
  python -m xraylab.describe dataset=mura dataset.root=/data/MURA-v1.1 sizes_of=null
  python -m xraylab.describe dataset=medmnist subset=chestmnist dataset.root=/data/chestmnist.npz

It writes outputs/describe_<name>/<date_time>/ with report.html, counts.csv, images_per_study.csv, image_sizes.csv and,
where patients are known, studies_per_patient.csv. Without data the synthetic sample is described, and everything says so.
"""


def job(cfg: DictConfig) -> None:
    """Describe one dataset."""

    from xraylab.data.splits import assign_splits
    from xraylab.data.study_table import BLANK

    own = ("sizes_of", "pictures")
    settings_beside(cfg, *own)  # mistakes answer before data is read
    if cfg.sizes_of is not None and (type(cfg.sizes_of) is not int or cfg.sizes_of < 1):
        raise UserError(f"sizes_of={cfg.sizes_of}: it is a number from 1 on, or null for all.")
    if type(cfg.pictures) is not int or cfg.pictures < 0:
        raise UserError(f"pictures={cfg.pictures}: it is a number from 0 on.")
    typed = list(HydraConfig.get().overrides.task)
    directory = Path(HydraConfig.get().runtime.output_dir)
    data = resolved(cfg, typed)
    reader, path, settings = data.reader, data.data(), settings_beside(data.config, *own)
    log.info("reading %s", path)
    seed = settings.seed if settings.split_seed is None else settings.split_seed
    how_split = (settings.selection, settings.fold, settings.valid_fraction, seed, settings.split_version)
    table = assign_splits(read(reader, path), *how_split)
    found = describe(table, cfg.sizes_of, cfg.pictures, settings.seed, reader.on_error == "skip")
    chosen = {"fold": settings.fold} if settings.fold else {"valid_fraction": settings.valid_fraction}
    how = {"selection": settings.selection, **chosen, "seed": seed}
    write(found, directory, path, ", ".join(f"{k}={v}" for k, v in how.items()), command_line("describe", [*flags(), *typed]))
    for kind, names in found.skipped.items():
        log.info("  skipped: %d %s, named in the report", len(names), kind)
    if found.blank:
        log.warning("  %d %s, of %s read: %s", len(found.blank), BLANK, f"{found.looked:,}", listed(found.blank))
    log.info(
        "%s, %s studies\n%s\n  everything is in %s\n  read %s",
        table.data, f"{len(table.frame):,}", table.summary(), directory, directory / "report.html",
    )  # fmt: skip


def main() -> None:
    """The entry point."""
    launch("describe", job, USAGE)


if __name__ == "__main__":
    main()
