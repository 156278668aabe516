"""Objects made from nodes of the configuration."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from xraylab.errors import UserError
from xraylab.system.command_line import as_typed


def build(node: Any, where: str) -> Any:
    """Instantiate a node; its mistakes become messages that name it.

    Raises:
        UserError: a wrong class, argument or value.
    """
    if not isinstance(node, Mapping | DictConfig):
        raise UserError(
            f"{where}={as_typed(node)}: it has keys of its own, {where}._target_ and what that takes; it is no value."
        )
    if "_target_" not in node:
        raise UserError(f"{where}: it does not say what it is: {where}._target_=<class> (in {_short(node)})")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", ".*not valid for transform.*")  # albumentations ignores what it does not know
            return instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, UserError):
            raise cause from None
        line = (str(cause) or type(cause).__name__).splitlines()[0]
        line = line.split("__init__() ", 1)[-1]
        if isinstance(cause, TypeError) and "not supported between" in line:
            line = "a value is of the wrong type"
        raise UserError(f"{where}: {line} (in {_short(node)})") from None
    except OmegaConfBaseException as error:
        line = str(error).splitlines()[0]
        if "Missing mandatory value" in line:
            key = f"{where}.{line.split('value: ', 1)[-1].split('.')[-1]}"
            raise UserError(f"{key} must be given: {key}=...") from None
        raise UserError(f"{where}: {line}") from None


def plain(node: Any) -> Any:
    """Dictionaries and lists of a node, resolved."""
    return OmegaConf.to_container(OmegaConf.create(node) if not OmegaConf.is_config(node) else node, resolve=True)


def _short(node: Any) -> str:
    return ", ".join(f"{k}={as_typed(v)}" for k, v in node.items() if not isinstance(v, dict | DictConfig))[:200]
