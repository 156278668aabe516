"""``python -m xraylab.evaluate run=<run>``: repeat a run's evaluation from its checkpoint."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from xraylab.cli import launch
from xraylab.errors import UserError

log = logging.getLogger(__name__)

USAGE = """
xraylab.evaluate: predict again with a run's checkpoint, and write its tables, evaluation.json and report.html anew.

  python -m xraylab.evaluate run=outputs/mrnet/<date_time>
  python -m xraylab.evaluate run=outputs/mrnet/<date_time> checkpoint=last
  python -m xraylab.evaluate run=outputs/mrnet/<date_time> root=/new/place/MRNet-v1.0
  python -m xraylab.evaluate run=outputs/chexpert/<date_time> blank=negative
  python -m xraylab.evaluate run=outputs/mrnet/<date_time> sensitivity=0.95
"""


def job(cfg: DictConfig) -> None:
    """Evaluate one run; says whether the numbers are those of the last evaluation."""
    from xraylab.assemble import assemble
    from xraylab.report import closing_table, write_report
    from xraylab.run import run_of, write_json
    from xraylab.training import checkpoint_of, evaluate_run, quiet

    started = time.monotonic()
    quiet()
    run = run_of(cfg.run)
    checkpoint = checkpoint_of(run)
    if cfg.checkpoint != "best":
        checkpoint = run / "checkpoints" / "last.ckpt" if cfg.checkpoint == "last" else Path(cfg.checkpoint)
        checkpoint = checkpoint_of(checkpoint)
    config = OmegaConf.load(run / "config.yaml")
    assert isinstance(config, DictConfig)
    with open_dict(config):
        config.num_workers = cfg.num_workers
        if cfg.root is not None:
            config.dataset.root = cfg.root
        if cfg.precision is not None:
            config.precision = cfg.precision
        if cfg.cache is not None:
            config.cache = cfg.cache
        if cfg.bootstrap is not None:
            config.bootstrap = cfg.bootstrap
        if "first" in config.loss:
            config.loss.first = None  # for training only
        for key in ("blank", "uncertain"):
            if cfg[key] is not None:
                OmegaConf.update(config, f"evaluate.{key}", cfg[key], force_add=True)
        if cfg.readers is not None:
            OmegaConf.update(config, "readers", cfg.readers, force_add=True)
        for key in ("sensitivity", "specificity"):
            if cfg[key] is not None:
                OmegaConf.update(config, f"operating.{key}", cfg[key], force_add=True)
        if OmegaConf.select(cfg, "accelerator.accelerator") != "auto":
            config.accelerator = cfg.accelerator
    try:
        assembled = assemble(config, [], fresh=False)
    except UserError as error:
        if "is not there" in str(error):
            raise UserError(f"{error}\nWhere the data was moved, name its new place: root=<folder>.") from error
        raise
    before = _read(run / "evaluation.json")
    evaluation = evaluate_run(assembled, run, checkpoint)
    write_json(run / "evaluation.json", evaluation)
    write_report(run)
    log.info("%s", closing_table(evaluation, run, f"{time.monotonic() - started:.0f} s"))
    if before is not None:
        changed = sorted(_differences(before, evaluation))
        log.info("the same numbers as before" if not changed else "changed since the last evaluation: " + ", ".join(changed[:8]))


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}. Delete it to evaluate anew.") from error


def _differences(a: Any, b: Any, path: str = "") -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        keys = sorted(set(a) | set(b))
        return [d for k in keys for d in _differences(a.get(k), b.get(k), f"{path}.{k}" if path else k)]
    return [] if a == b else [path]


def main() -> None:
    """The entry point."""
    launch("evaluate", job, USAGE)


if __name__ == "__main__":
    main()
