"""Hydra's errors as messages to the user."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from xraylab.errors import did_you_mean, listed
from xraylab.system.command_line import as_text, command_line, shown, value_of
from xraylab.system.paths import conf_dir


def in_words(error: Exception, config: str) -> str:
    """A composition error of Hydra as a message to the user."""
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        options = list(error.options or choices_of(group))
        text = f"there is no {group}={choice}.{did_you_mean(choice, options)} The choices of {group} are: {listed(options, 40)}."
        extra = " joblib and submitit come with pip install 'xraylab[sweeps]', ray with 'xraylab[ray]'."
        return text + extra * (group == "hydra/launcher")
    if isinstance(error, ConfigCompositionException):
        key = re.search(r"Could not (?:override|append to|delete from config\. )[^']*'([^']+)'", text)
        if key:
            return _unknown_key(key.group(1).split("@")[0], config)
    if several := re.search(r"Ambiguous value for argument '(.*)'$", text, re.M):
        typed = several.group(1)
        return (
            f"{typed}: commas stand between values. To try each, add -m; a list is [{typed.partition('=')[2]}]; a text that has "
            f"them is quoted, once for Hydra and once for the shell:\n  {as_text(typed)}"
        )
    if text.startswith("UserError raised while resolving interpolation: "):  # OmegaConf keeps only the text of a resolver's error
        return text.split("interpolation: ", 1)[1].splitlines()[0]
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException) and str(cause) not in text:
        text = f"{text} ({cause})"
    missing = re.search(r"Missing mandatory value: (\S+)", text)
    if missing:
        return f"{missing.group(1)} must be given: {missing.group(1)}=…  (--help explains it)"
    return text


def _unknown_key(key: str, config: str) -> str:
    typed = [a for a in sys.argv[1:] if "=" in a and not a.startswith("-")]
    groups = {g: a for a in typed for g in [a.split("=")[0].lstrip("+~")] if g in _groups()}
    dataset = groups.get("dataset", "dataset=mrnet").split("=", 1)[1]
    others = {owner for owner, keys in keys_of_datasets().items() if key.split(".")[0] in keys}
    if others and dataset not in others:
        return f"{key} is a key of dataset={' or dataset='.join(sorted(others))}; the dataset here is {dataset}."
    if key.startswith("hydra."):
        words = ["train" if config == "config" else config, *(a for a in typed if a.startswith("hydra/")), "--cfg", "hydra"]
        return f"there is no key {key}. Those of Hydra: {command_line(words[0], words[1:])}"
    flat = dict(every_key(_composed(config, list(groups.values()))))
    known = sorted(set(flat) | set(_groups() if "dataset" in flat else []))
    if key in known:
        return f"{key} cannot be set this way: write {key}=<value> or {key}=<choice>."
    parent, _, last = key.rpartition(".")
    if parent and (flat.get(parent, "") is None or f"{parent}=null" in typed):
        usual = OmegaConf.select(OmegaConf.create(_composed(config, [])), parent) or {}
        given = value_of(next(a for a in typed if a.lstrip("+").startswith(f"{key}=")))
        return f"{parent} is null here, and has no keys. Give it whole: {shown(parent, {**usual, last: given})}"
    if flat.get(parent) == {}:
        return f"{key} is not there yet, but {parent} takes any key: write +{key}=…"
    scope = [k for k in known if "." in key and k.startswith(key.rpartition(".")[0] + ".")]
    listing = scope or [k for k in known if "." not in k]
    return f"there is no key {key}.{did_you_mean(key, known)} There are: {listed(listing, 60)}."


def _composed(config: str, groups: list[str]) -> Any:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        try:
            cfg = hydra.compose(config, groups)
        except HydraException:
            cfg = hydra.compose(config)
    return OmegaConf.to_container(cfg, resolve=False)


def every_key(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a nested mapping, as ``group.key``, and its value."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}", value
            yield from every_key(value, f"{prefix}{key}.")


def keys_of_datasets() -> dict[str, set[str]]:
    """The top-level keys that each dataset's YAML brings and the common configuration does not have."""
    common = set(re.findall(r"^(\w+):", (conf_dir() / "config.yaml").read_text(encoding="utf-8"), re.M))
    common |= set(_groups()) | {"defaults", "dataset"}
    return {
        path.stem: set(re.findall(r"^(\w+):", path.read_text(encoding="utf-8"), re.M)) - common
        for path in sorted((conf_dir() / "dataset").glob("*.yaml"))
    }


def _groups() -> list[str]:
    return sorted(p.name for p in conf_dir().iterdir() if p.is_dir())


def choices() -> dict[str, list[str]]:
    """Every group, and its choices that ship."""
    return {group: choices_of(group) for group in _groups()}


def choices_of(group: str) -> list[str]:
    return sorted(p.stem for p in (conf_dir() / group).glob("*.yaml"))
