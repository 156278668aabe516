"""The keys that belong to no group, typed and checked before any data is read."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from xraylab.errors import UserError, did_you_mean
from xraylab.system.command_line import as_typed
from xraylab.system.paths import conf_dir

M = TypeVar("M", bound=BaseModel)
PRECISION = Literal["auto", "32", "bf16", "16"]
#: of Hydra, that every training configuration has
GROUPS = ("backbone", "pool", "loss", "augmentation", "optimizer", "scheduler", "accelerator", "logger", "callbacks", "dataset")


# ---- what keys are beside their types -------------------------------------------------------------------------------


def _precision(value: Any) -> str:
    return {"bf16-mixed": "bf16", "32-true": "32", "16-mixed": "16"}.get(str(value), str(value))


def _fold(value: Any) -> str | None:
    if value is None:
        return None
    parse_fold(value)
    return str(value)


def _checkpoint_every(value: Any) -> str | None:
    every = None if value is None else str(value)
    parse_interval(every)
    return every


def _profiler(value: str | None) -> str | None:
    if value == "xla" and importlib.util.find_spec("torch_xla") is None:
        raise ValueError("it needs torch_xla, which is not installed here; there are simple and pytorch")
    return value


def _cache(value: Any) -> Any:
    value = "off" if value is False else value  # what YAML makes of off
    if not isinstance(value, str) or value.lower() in ("", "no", "none", "null", "on", "yes"):
        raise ValueError("it is auto, off or a folder; of such a name, ./<name>")
    return value


def _name(value: str) -> str:
    if not re.fullmatch(r"[\w.-]+", value):
        raise ValueError("letters, digits, '.', '_' and '-' only: it names a folder")
    return value


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class EarlyStop(_Strict):
    """Early stopping: when training ends before ``max_epochs``."""

    monitor: str
    patience: int = Field(ge=0)
    min_delta: float = Field(ge=0)


class Image(_Strict):
    """What is done to every image."""

    size: int | None = Field(ge=8)
    rescale: bool
    mean: float | list[float] | None
    std: float | list[float] | None
    resize: Literal["each_axis", "shorter_side"] = "shorter_side"  # of runs that do not say it


class Head(_Strict):
    """The layers between features and logits."""

    hidden: list[Annotated[int, Field(ge=1)]]
    dropout: float = Field(ge=0, lt=1)


class Evaluate(_Strict):
    """What labels that are neither positive nor negative count as in validation and test."""

    blank: Literal["ignore", "negative"] = "ignore"
    uncertain: Literal["ignore", "negative", "positive"] = "ignore"


class Operating(_Strict):
    """Which thresholds are chosen on validation, see :class:`xraylab.evaluation.operating_points.Rules`."""

    youden: bool = True
    sensitivity: float | None = Field(default=0.9, gt=0, le=1)
    specificity: float | None = Field(default=0.9, gt=0, le=1)
    kappa: bool = True


class Sweep(_Strict):
    """The keys of a sweep; the comments in ``conf/config.yaml`` explain the keys."""

    method: Literal["grid", "random", "tpe"] = "grid"
    trials: int = Field(default=20, ge=1)
    objective: str | list[str] | None = None
    objective_on_test: bool = False
    prune: bool = False
    prune_jobs: int = Field(default=5, ge=1)
    prune_epochs: int = Field(default=1, ge=0)
    resume: str | None = None


class Settings(_Strict):
    """The top-level keys of ``conf/config.yaml``; the comments there explain them."""

    name: Annotated[str, AfterValidator(_name)]
    seed: int = Field(ge=0, lt=2**32)
    split_seed: int | None = Field(ge=0, lt=2**32)
    split_version: Literal[1, 2, 3] = 1  # runs of before this key have none, and keep their splits
    max_epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    accumulate: int = Field(ge=1)
    precision: Annotated[PRECISION, BeforeValidator(_precision)]
    gradient_clip: float | None = Field(gt=0)
    monitor: str
    early_stopping: EarlyStop | None
    save_top_k: int = Field(ge=1)
    selection: Literal["holdout", "official", "split_valid"]
    valid_fraction: float = Field(gt=0, lt=1)
    fold: Annotated[str | None, BeforeValidator(_fold)]
    hash_ids: Annotated[str, Field(min_length=1)] | None = None  # runs of before this key have none
    unit: Literal["study", "image"]
    cache: Annotated[str, BeforeValidator(_cache)]
    save_train_predictions: bool
    bootstrap: int = Field(ge=0)
    cases: int = Field(default=12, ge=0)  # runs of before this key have none
    readers: str | None = None  # runs of before this key have none
    log_every: int = Field(ge=1)
    num_workers: Literal["auto"] | Annotated[int, Field(ge=0)]
    resume: Annotated[str, Field(min_length=1)] | None
    upload: str | None = None  # runs of before this key have none
    fail_fast: bool = False  # runs of before this key have none
    checkpoint_every: Annotated[str | None, BeforeValidator(_checkpoint_every)] = None  # runs of before this key have none
    profiler: Annotated[Literal["simple", "pytorch", "xla"] | None, AfterValidator(_profiler)] = (
        None  # runs of before this key have none
    )
    evaluate: Evaluate = Evaluate()  # runs of before this key have none
    operating: Operating = Operating()  # runs of before this key have none
    image: Image
    head: Head


KEYED: Mapping[str, type[BaseModel]] = {kind.__name__: kind for kind in (EarlyStop, Image, Head, Evaluate, Operating)}


def sweep_of(config: dict[str, Any]) -> Sweep:
    """The keys ``sweep.*``.

    Raises:
        UserError: a value of the wrong type or out of range.
    """
    return _validated(Sweep, config, "sweep.")


def _validated(model: type[M], config: Mapping[str, Any], prefix: str = "") -> M:
    try:
        return model.model_validate(dict(config))
    except ValidationError as error:
        lines = []
        for item in error.errors():
            key = prefix + ".".join(str(part) for part in item["loc"] if not _is_type_name(part))
            if item["type"] == "extra_forbidden":
                known = list(model.model_fields)
                lines.append(f"{key}: there is no such key.{did_you_mean(key, known)}")
            else:
                message = item["msg"].replace("Input should be", "it should be").removeprefix("Value error, ")
                message = message.replace("be None", "be null")
                if item["type"] == "model_type":
                    message = f"it has keys of its own, as {key}.{next(iter(KEYED[item['ctx']['class_name']].model_fields))}=…"
                    message += f", or is null: {key}=null" if key == "early_stopping" else ""
                lines.append(f"{key}={as_typed(item['input'])}: {message}.")
        by_key: dict[str, str] = {}
        for line in lines:  # the choices of one key on one line
            start, _, rest = line.partition(": it should be ")
            by_key[start] = f"{by_key[start].rstrip('.')} or {rest}" if start in by_key and rest else line
        raise UserError("\n       ".join(by_key.values())) from None


def scoring_of(blank: Any, uncertain: Any) -> dict[str, str]:
    """What labels count as, given as keys of their own; None: as they do unless told.

    Raises:
        UserError: a value that it cannot have.
    """
    given = {k: v for k, v in (("blank", blank), ("uncertain", uncertain)) if v is not None}
    return _validated(Evaluate, given).model_dump()


def rules_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The rules of :class:`Operating`, those of them that are given; the others are as they are unless told.

    Raises:
        UserError: a value that it cannot have.
    """
    return _validated(Operating, given).model_dump()


def several(key: str, value: Any) -> list[str]:
    """One path or name, or several, as texts.

    Raises:
        UserError: there is none.
    """
    items = list(value) if OmegaConf.is_list(value) else [value]
    if any(not isinstance(item, str | int | float) for item in items):
        raise UserError(f"{key}={'null' if value is None else value}: it is one, or several: {key}=[<a>,<b>].")
    return [str(item) for item in items]


def _is_type_name(part: int | str) -> bool:
    return (
        isinstance(part, int) or part in ("int", "float", "str", "constrained-int") or str(part).startswith(("literal", "list"))
    )


def parse_fold(fold: str) -> tuple[int, int]:
    """(k, n) of ``k/n``.

    Raises:
        UserError: it is not of that form, or not 1 <= k <= n, n >= 2.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", str(fold))
    k, n = (int(g) for g in match.groups()) if match else (0, 0)
    if not (n >= 2 and 1 <= k <= n):
        raise UserError(f"fold={fold}: it is k/n with 1 <= k <= n and n >= 2, for example fold=1/5.")
    return k, n


def parse_interval(every: str | None) -> tuple[int | None, float | None]:
    """(steps, seconds) of ``<n> steps``, ``<n> minutes`` or None; one of them at most is set.

    Raises:
        ValueError: it is not of that form.
    """
    if every is None:
        return None, None
    match = re.fullmatch(r"([\d.]+) *(steps?|min|minutes?)", every)
    if not match or match[1].count(".") > 1 or float(match[1]) <= 0 or (match[2].startswith("step") and "." in match[1]):
        raise ValueError("it is '<n> steps' or '<n> minutes', for example checkpoint_every='500 steps'; null: at epochs' ends")
    return (int(match[1]), None) if match[2].startswith("step") else (None, float(match[1]) * 60)


def check_config(cfg: DictConfig) -> Settings:
    """Settings of a composed configuration, which has no other keys than these, the groups and the dataset's own.

    Raises:
        UserError: a value of the wrong type or out of range, or a key that does not exist.
    """
    folders = config_folders()
    groups = {p.name for folder in folders for p in folder.iterdir() if p.is_dir()}
    datasets = [path for folder in folders for path in (folder / "dataset").glob("*.yaml")]
    own = {key for path in datasets for key in re.findall(r"^(\w+):", path.read_text(encoding="utf-8"), re.M)}
    known = [*Settings.model_fields, *sorted(groups | own)]
    for name in map(str, cfg):
        if name not in known:
            raise UserError(f"there is no key {name}.{did_you_mean(name, known)}")
    for name in GROUPS:
        if not OmegaConf.is_dict(node := cfg.get(name)):
            choices = sorted({path.stem for folder in folders for path in (folder / name).glob("*.yaml")})
            raise UserError(f"{name}={as_typed(node)}: it is one of {', '.join(choices)}.")
    if cfg.get("sweep"):
        sweep_of(OmegaConf.to_container(cfg.sweep, resolve=True))  # type: ignore[arg-type]
    values = OmegaConf.to_container(OmegaConf.create({k: v for k, v in cfg.items() if k in Settings.model_fields}), resolve=True)
    return _validated(Settings, values)  # type: ignore[arg-type]


def config_folders() -> list[Path]:
    """The shipped YAML files' folder, and those given by ``--config-dir``."""
    sources = HydraConfig.get().runtime.config_sources if HydraConfig.initialized() else []
    given = [Path(s.path) for s in sources if s.schema == "file" and Path(s.path).is_dir()]
    return [conf_dir(), *(p for p in given if p != conf_dir())]


def mode_of(monitor: str) -> str:
    """``min`` for a loss, ``max`` for every other metric."""
    return "min" if monitor.endswith("loss") else "max"
