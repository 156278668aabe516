"""``python -m xraylab.sweep_yaml``: a sweep as a file for W&B, whose agents then run its jobs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from xraylab import conf_dir
from xraylab.cli import compose_only
from xraylab.errors import UserError
from xraylab.run import write_text

USAGE = """
xraylab.sweep_yaml: write a sweep as a file for W&B, whose agents run its jobs, on as many machines as there are agents.

  python -m xraylab.sweep_yaml sweep=backbones experiment=mura_paper dataset.root=/data/MURA-v1.1
  python -m xraylab.sweep_yaml sweep.method=tpe 'optimizer.lr=tag(log,interval(1e-6,1e-3))' batch_size=1,4,16
  python -m xraylab.sweep_yaml seed=range(5) output=seeds.yaml     the file's name; without it, sweep.yaml

It takes what xraylab.train -m takes, and keys as there (python -m xraylab.train --help). sweep.method=grid and random are
those of W&B, tpe its bayes; sweep.prune=true its hyperband; sweep.trials limits the runs. Then: wandb sweep sweep.yaml, and
the agents as it says. Exit codes: 0 done, 2 a mistake in what was asked.
"""
METHODS = {"grid": "grid", "random": "random", "tpe": "bayes"}


def sweep_file(words: list[str]) -> dict[str, Any]:
    """The content of the W&B sweep file for a command line of ``xraylab.train -m``.

    Raises:
        UserError: W&B could not do it.
        HydraException: the words do not compose.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    from xraylab.journal import objectives_of
    from xraylab.settings import mode_of, sweep_of
    from xraylab.space import grid, search_space, varied, wandb_parameters, words_of

    config, loader = compose_only("config", words)
    rules = sweep_of(OmegaConf.to_container(config.sweep, resolve=True))  # type: ignore[arg-type]
    objectives = objectives_of(rules, str(config.monitor))
    if len(objectives) > 1 or not objectives[0].startswith("valid/"):
        raise UserError(f"sweep.objective={', '.join(objectives)}: W&B takes one, and runs send those of valid after each epoch.")
    brought = config.hydra.sweeper.params or {}
    space = search_space(OverridesParser.create(config_loader=loader).parse_overrides([*(f"{k}={v}" for k, v in brought.items()), *words]))
    if not varied(space):
        raise UserError("nothing varies. Give values, as seed=0,1,2, or a sweep, as sweep=backbones.")
    if rules.method == "grid":
        grid(space)
    fixed = {key: d for key, d in space.items() if key not in varied(space) and not key.startswith(("sweep.", "fail_fast", "hydra"))}
    alone = ["hydra.mode=RUN"] * ("sweep" in fixed)
    logger = [] if "logger" in config.hydra.runtime.choices and config.hydra.runtime.choices["logger"] == "wandb" else ["logger=wandb"]
    out: dict[str, Any] = {
        "name": str(config.name),
        "program": "xraylab.train",
        "command": [
            "${env}", "${interpreter}", "-m", "xraylab.train", *words_of(fixed, {}), *alone, *logger,
            "logger.wandb.offline=false", "${args_no_hyphens}",
        ],
        "method": METHODS[rules.method],
        "metric": {"name": objectives[0], "goal": f"{mode_of(objectives[0])}imize"},
        "parameters": wandb_parameters(space),
    }  # fmt: skip
    if rules.method != "grid":
        out["run_cap"] = rules.trials
    if rules.prune:
        out["early_terminate"] = {"type": "hyperband", "min_iter": max(1, rules.prune_epochs)}
    return out
