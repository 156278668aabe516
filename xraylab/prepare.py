"""``python -m xraylab.prepare dataset=mura``: build the packed cache of a dataset ahead of training."""

from __future__ import annotations

import logging

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from xraylab.config.dataset import read, resolved
from xraylab.config.launch import launch
from xraylab.errors import UserError

log = logging.getLogger(__name__)

USAGE = """
xraylab.prepare: decode and resize every image of a dataset once, into memory-mapped arrays that training then reads.

  python -m xraylab.prepare dataset=mura image.size=224
  python -m xraylab.prepare experiment=mura_paper dataset.root=/data/MURA-v1.1
  python -m xraylab.prepare dataset=mura body_part=wrist cache=/fast/disk

Training does it by itself where it is missing (cache=auto); this is for doing it before, or where more cores are. It goes on
where it was interrupted, and does nothing where nothing changed. Runs find it by the files, image.size and image.rescale.
"""


def job(cfg: DictConfig) -> None:
    """Build one cache."""

    from xraylab.config.settings import check_config

    if check_config(cfg).cache == "off":
        raise UserError("cache=off: leave it out to build the cache, or name its folder.")

    from xraylab.data.cache.build import with_cache

    found = resolved(cfg, HydraConfig.get().overrides.task)
    reader, settings, path = found.reader, check_config(found.config), found.data()
    log.info("reading %s", path)
    table, packed = with_cache(read(reader, path), settings, reader.on_error)
    if not packed:
        log.info("nothing to build: the images of %s are as quick to read as they are.", path)
        return
    for kind, names in table.problems.items():
        log.info("skipped: %d %s", len(names), kind)
    size = "as they are" if settings.image.size is None else f"at {settings.image.size} pixels"
    log.info("ready: %d images of %d studies %s", sum(map(len, table.frame["images"])), len(table.frame), size)


def main() -> None:
    """The entry point."""
    launch("prepare", job, USAGE)


if __name__ == "__main__":
    main()
