"""``python -m xraylab.sample dataset=mrnet root=<folder>``: write a synthetic dataset in a real layout."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from xraylab.config.dataset import reader_of
from xraylab.config.launch import launch
from xraylab.errors import UserError
from xraylab.system.command_line import command_line, word

log = logging.getLogger(__name__)

USAGE = """
xraylab.sample: write a synthetic dataset, file by file as the real one is published, with findings to learn.

  python -m xraylab.sample dataset=mrnet root=samples
  python -m xraylab.sample dataset=mrnet root=samples dataset.sample.train=300 'dataset.sample.slices=[5,8]'
  python -m xraylab.sample dataset=medmnist subset=pneumoniamnist root=samples

Training on it: python -m xraylab.train dataset=mrnet dataset.root=samples
"""


def job(cfg: DictConfig) -> None:
    """Write one sample."""
    reader = reader_of(cfg)
    try:
        path = reader.write_sample(Path(cfg.root).expanduser(), **reader.sample)
    except TypeError as error:
        raise UserError(f"dataset.sample: {error}") from error
    except OSError as error:
        raise UserError(f"root={cfg.root}: cannot be written: {error}") from error
    size = sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size
    embedded: Any = OmegaConf.to_container(cfg.dataset.embedded.settings, resolve=True)
    choice = HydraConfig.get().runtime.choices["dataset"]
    words = [word("dataset", choice), word("dataset.root", cfg.root), *HydraConfig.get().overrides.task]
    words = [w for w in words if not w.startswith(("root=", "dataset.sample.", "seed="))]
    words += [word(k, v) for k, v in embedded.items()]
    log.info(
        "wrote %s: synthetic, %.0f MB. Train on it from random weights, as the embedded sample is:\n  %s",
        path, size / 1e6, command_line("train", list(dict.fromkeys(words))),
    )  # fmt: skip


def main() -> None:
    """The entry point."""
    launch("sample", job, USAGE)


if __name__ == "__main__":
    main()
