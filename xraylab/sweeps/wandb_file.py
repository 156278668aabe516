"""A sweep as a file of Weights & Biases."""

from __future__ import annotations

import logging
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf

from xraylab.config.settings import mode_of, sweep_of
from xraylab.errors import UserError
from xraylab.evaluation.objective import objectives_of
from xraylab.sweeps.comparable import incomparable_over
from xraylab.sweeps.search_space import corners, grid, search_space, varied, wandb_parameters, words_of
from xraylab.system.paths import conf_dir

METHODS = {"grid": "grid", "random": "random", "tpe": "bayes"}
OWN = ("sweep.", "fail_fast=", "hydra.", "hydra/")


def sweep_file(words: list[str]) -> dict[str, Any]:
    """The content of a W&B sweep file for the words of a sweep.

    Raises:
        UserError: W&B cannot do it.
        HydraException: the words do not compose.
    """
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration("config", words, RunMode.MULTIRUN)
        brought = [f"{key}={values}" for key, values in (config.hydra.sweeper.params or {}).items()]
        space = search_space(OverridesParser.create(config_loader=loader).parse_overrides([*brought, *words]))
    rules = sweep_of(OmegaConf.to_container(config.sweep, resolve=True))  # type: ignore[arg-type]
    objectives = objectives_of(rules, str(config.monitor))
    if len(objectives) > 1 or not objectives[0].startswith("valid/"):
        raise UserError(f"sweep.objective={', '.join(objectives)}: W&B takes one, and it is sent one of valid after each epoch.")
    parameters = wandb_parameters(space)
    if not parameters:
        raise UserError("nothing varies. Give values, as seed=0,1,2, or a sweep, as sweep=backbones.")
    if rules.method == "grid":
        grid(space)
    loader.load_sweep_config(config, corners(space)[0])  # keys that do not exist are refused here
    if rules.method == "tpe":
        logging.disable(logging.WARNING)  # of the data, which is looked into
        try:
            incomparable_over(space, objectives, lambda words: loader.load_sweep_config(config, words), rules.method)
        finally:
            logging.disable(logging.NOTSET)
    fixed = {key: d for key, d in space.items() if key not in varied(space)}
    told = [word for word in words_of(fixed, {}) if not word.startswith(OWN)]
    if "sweep" in fixed:
        told.append("hydra.mode=RUN")  # its settings, and one run of them
    if config.hydra.runtime.choices["logger"] != "wandb":
        told.append("logger=wandb")
    if "logger.wandb.offline" not in space:
        told.append("logger.wandb.offline=false")
    content: dict[str, Any] = {
        "name": str(config.name),
        "program": "xraylab.train",
        "command": ["${env}", "${interpreter}", "-m", "xraylab.train", *told, "${args_no_hyphens}"],
        "method": METHODS[rules.method],
        "metric": {"name": objectives[0], "goal": f"{mode_of(objectives[0])}imize"},
        "parameters": parameters,
    }
    if rules.method != "grid":
        content["run_cap"] = rules.trials
    if rules.prune:
        content["early_terminate"] = {"type": "hyperband", "min_iter": max(1, rules.prune_epochs)}
    return content
