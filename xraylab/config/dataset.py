"""The configuration completed by its data: the reader, the place of the data, and the keys that these bring. Without torch."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from xraylab.config.instantiate import build, plain
from xraylab.errors import UserError, listed
from xraylab.system.paths import ENVIRONMENT, conf_dir

if TYPE_CHECKING:
    from xraylab.config.settings import Settings
    from xraylab.data.datasets.base import DatasetReader
    from xraylab.data.study_table import StudyTable

log = logging.getLogger(__name__)


def settings_beside(cfg: DictConfig, *own: str) -> Settings:
    """Check the training keys of a command's configuration, which has some of its own.

    Raises:
        UserError: see :func:`xraylab.config.settings.check_config`.
    """
    from xraylab.config.settings import check_config  # pydantic, which a command's help does not wait for

    return check_config(OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in own]))


@dataclass(frozen=True)
class ResolvedConfig:
    """A configuration, completed by what its data brings, and that data.

    Attributes:
        config: finished; nothing behind it needs the words that were typed.
        path: of the data; None: the embedded sample, which :meth:`data` writes where it is not there yet.
        sample: the sample's options.
    """

    config: DictConfig
    reader: DatasetReader
    path: Path | None
    sample: dict[str, Any]

    def data(self) -> Path:
        """Where the data is; the sample is written on first use."""
        return self.reader.embedded(self.sample) if self.path is None else self.path


def resolved(cfg: DictConfig, typed: Sequence[str] = (), fresh: bool = True) -> ResolvedConfig:
    """A composed configuration, finished: what its data needs, and what the embedded sample brings, replaces what was not typed.

    Args:
        cfg: stays as it is.
        typed: the overrides as typed.
        fresh: a new run; else ``cfg`` is that of an earlier one, and is finished.

    Raises:
        UserError: the dataset's arguments are wrong, or ``dataset.root`` is not what it should be.
    """
    cfg = copy.deepcopy(cfg)
    OmegaConf.set_struct(cfg, False)
    reader = reader_of(cfg)
    path = reader.find()
    sample = _set_from_data(cfg, reader, path, typed) if fresh else {}
    return ResolvedConfig(cfg, reader, path, sample)


def resolved_again(cfg: DictConfig) -> ResolvedConfig:
    """The configuration of an earlier run, for a command that takes ``root=<folder>`` where its data was moved.

    Raises:
        UserError: see :func:`resolved`.
    """
    try:
        return resolved(cfg, fresh=False)
    except UserError as error:
        if "is not there" in str(error):
            raise UserError(f"{error}\nWhere the data was moved, name its new place: root=<folder>.") from error
        raise


def _set_from_data(cfg: DictConfig, reader: DatasetReader, path: Path | None, typed: Sequence[str]) -> dict[str, Any]:
    """Set the keys that the data brings and that were not typed; returns the embedded sample's options where that is used."""
    embedded = plain(cfg.dataset.get("embedded") or {})
    given = {key: value for t in typed for key, _, value in [t.lstrip("+~").partition("=")]}
    needed = _replace(cfg, reader.settings, given)
    if needed:
        log.info("%s needs, and was given: %s", reader.published_name, ", ".join(needed))
    if path is not None:
        return {}
    reader.require_sample()
    changed = _replace(cfg, embedded.get("settings", {}), given)
    asked = reader.root is not None
    why = "as asked" if asked else f"no {reader.published_name} in dataset.root, ${ENVIRONMENT} or ./data"
    log.warning(
        "%s\nSYNTHETIC SAMPLE (%s): drawings stand in for images; results mean nothing for patients.\n"
        "The data: %s\nThe sample's own settings, unless typed: %s\n%s",
        "=" * 100, why, reader.register, ", ".join(changed) or "none", "=" * 100,
    )  # fmt: skip
    return reader.sample | {k: v for k, v in embedded.get("sample", {}).items() if f"dataset.sample.{k}" not in given}


def read(reader: DatasetReader, path: Path) -> StudyTable:
    """A reader's table, which has a study at least.

    Raises:
        UserError: files or rows are wrong, or there is no study at all.
    """
    table = reader.read(path)
    if table.frame.empty:
        raise no_study(reader, path, table)
    return table


def no_study(reader: DatasetReader, path: Path, table: StudyTable) -> UserError:
    """The error for a dataset in which there is no study that can be used."""
    named = "".join(f"\n  {len(names)} {kind}: {listed(names)}" for kind, names in table.problems.items())
    return UserError(f"{path}: there is no study in it that can be used.{named}\nexpected:\n{reader.expected.rstrip()}")


def reader_of(cfg: DictConfig) -> DatasetReader:
    """The reader of the configured dataset.

    Raises:
        UserError: a wrong argument or value.
    """
    return build({k: v for k, v in plain(cfg.dataset).items() if k != "embedded"}, "dataset")


def _replace(cfg: DictConfig, settings: Mapping[str, Any], typed: Mapping[str, str]) -> list[str]:
    """Set keys, or choices of a group, that were not typed; returns those that changed, as ``key=value``.

    What was typed of a group that is replaced is set again.

    Raises:
        UserError: the group's new choice has no such key.
    """
    changed = []
    recipe = any(typed.get(group, "none") != "none" for group in ("experiment", "sweep"))
    for key, value in settings.items():
        file = conf_dir() / key / f"{value}.yaml"
        group_typed = key.split(".")[0] in typed and not key.endswith(".pretrained")
        if key in typed or group_typed or OmegaConf.select(cfg, key, default="absent") == "absent":
            continue
        if file.is_file():
            if recipe and key == "backbone":
                continue
            kept = {k: OmegaConf.select(cfg, k) for k in typed if k.startswith(f"{key}.")}
            cfg[key] = OmegaConf.load(file)
            for name, given in kept.items():
                if OmegaConf.select(cfg, name, default="absent") == "absent":
                    raise UserError(f"{name}: {key}={value} is used here, which has no such key. Choose another: {key}=<choice>.")
                OmegaConf.update(cfg, name, given)
        elif OmegaConf.select(cfg, key) == value:
            continue
        else:
            OmegaConf.update(cfg, key, value)
        changed.append(f"{key}={value}")
    return changed
