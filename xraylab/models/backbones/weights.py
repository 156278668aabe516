"""Pretrained weights: from a file, the local cache or the network; or a stop within seconds, never random weights."""

from __future__ import annotations

import difflib
import sys
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from xraylab.errors import UserError, listed
from xraylab.run import FOREIGN

# timm and huggingface_hub take a second, and are imported where they are needed: other backbones do without

T = TypeVar("T")
PROBE_SECONDS = 5.0
# what a file and a model need not have in common, beside a classifier: counts that nothing is computed from, of torch and of
# a profiler; a second classifier that helps in training only
COUNTERS, COMPANIONS = ("num_batches_tracked", "total_ops", "total_params"), ("AuxLogits.",)
WHOLE = (
    "It is a state dict (.pth, .safetensors) with every parameter and batch statistic of the backbone under its own name, as "
    "torch.save(model.state_dict(), ...) writes it, or a file in which one such is beside other things; a classifier may be "
    "there, or not."
)


def check_choice(pretrained: object) -> None:
    """Refuse what is neither true, false nor a path.

    Raises:
        UserError: it is something else, or a file that does not exist.
    """
    if isinstance(pretrained, str):
        existing(pretrained)
    elif not isinstance(pretrained, bool):
        raise UserError(f"backbone.pretrained={pretrained}: it is true, false or a file of weights.")


def existing(path: str) -> str:
    """The path of a file that exists.

    Raises:
        UserError: it does not, or is of another framework.
    """
    if path.lower().endswith(FOREIGN):
        raise UserError(f"backbone.pretrained={path}: weights of other frameworks are out of scope. It is a file of torch.")
    if not Path(path).expanduser().is_file():
        raise UserError(f"backbone.pretrained={path}: there is no such file. It is true, false or a file of weights.")
    return str(Path(path).expanduser())


def load_file(model: nn.Module, path: str, heads: Sequence[str] = ()) -> None:
    """Load the whole weights of a model from a file.

    Args:
        heads: modules that the file may leave out, and the model then does without.

    Raises:
        UserError: the file is not a state dict, or not of this model.
    """
    model.load_state_dict(_whole(model, _read(path), path, type(model).__name__, heads), strict=False)


def from_file(name: str, make: Callable[[], nn.Module], path: str) -> nn.Module:
    """What timm makes and fills from a file, adapted to the model, but not in part: timm leaves at random what is not in it.

    Raises:
        UserError: the file is not a state dict, or not of this model.
    """
    from timm.models import _builder

    plain, plainly_read = nn.Module.load_state_dict, _builder.load_state_dict

    def load(model: nn.Module, state: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        heads = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
        return plain(model, _whole(model, state, path, name, (heads,) if isinstance(heads, str) else heads), strict=False)

    nn.Module.load_state_dict = load  # type: ignore[assignment]  # the one place that sees what timm made of the file
    _builder.load_state_dict = _tensors  # type: ignore[assignment]
    try:
        return make()
    except UserError:
        raise
    except Exception as error:  # whatever a broken file makes the readers raise
        words = f"backbone.pretrained={path}: cannot be loaded into {name}: {_first_line(error).split('. ')[0]}."
        grey = "inconsistent with input_size" in words  # timm adapts weights of colour images alone
        raise UserError(f"{words}\n{'Set backbone.in_chans to what its first layer takes.' if grey else WHOLE}") from error
    finally:
        nn.Module.load_state_dict = plain  # type: ignore[method-assign]
        _builder.load_state_dict = plainly_read


def _read(path: str) -> dict[str, Any]:
    """As :func:`_tensors`. Raises UserError: it is no file of weights."""
    try:
        return _tensors(path)
    except Exception as error:  # whatever a broken file makes the readers raise
        reason = _first_line(error).split(". ")[0]
        raise UserError(f"backbone.pretrained={path}: cannot be loaded: {reason}.\n{WHOLE}") from error


def _tensors(path: str) -> dict[str, Any]:
    """What a file of weights holds under which names: its state dict, or the one value of it that is one."""
    from timm.models import clean_state_dict, load_state_dict

    state = dict(load_state_dict(path))  # which knows some names of such values
    inner = [v for v in state.values() if isinstance(v, Mapping) and v and all(isinstance(t, Tensor) for t in v.values())]
    return dict(clean_state_dict(dict(inner[0]))) if len(inner) == 1 else state


def _whole(model: nn.Module, state: Mapping[str, Any], path: str, name: str, heads: Sequence[str]) -> dict[str, Tensor]:
    """Those of a state dict's tensors that are the model's, which are all that it has.

    Args:
        heads: modules that may be in one and not in the other.

    Raises:
        UserError: some are not there, have another shape or type, are not numbers, or no variances, or there are others; or
            none was trained.
    """
    own, given = model.state_dict(), {k: v for k, v in state.items() if isinstance(v, Tensor)}

    def needed(key: str) -> bool:
        return not (key.endswith(COUNTERS) or key.startswith(COMPANIONS) or key.startswith(tuple(f"{head}." for head in heads)))

    def fits(key: str) -> bool:
        a, b = given[key], own[key]
        return a.shape == b.shape and a.is_floating_point() == b.is_floating_point()

    both = [k for k in own if k in given]
    wanted = [k for k in own if needed(k)]
    missing, surplus = [k for k in wanted if k not in given], [k for k in given if k not in own and needed(k)]
    other = [k for k in both if needed(k) and not fits(k)]
    broken = [k for k in both if needed(k) and not given[k].isfinite().all()]
    negative = [k for k in both if k.endswith("running_var") and (given[k] < 0).any()]
    if not (missing or surplus or other or broken or negative):
        if all(given[k].unique().numel() < 2 for k in wanted if given[k].ndim > 1):
            raise UserError(f"backbone.pretrained={path}: no trained network: every kernel in it is of one value.\n{WHOLE}")
        return {k: given[k] for k in both if fits(k)}
    shapes = [f"{k} {_kind(given[k])}, not {_kind(own[k])}" for k in other]
    rows = {"missing": missing, "of another kind": shapes, "not numbers": broken, "below zero": negative, "surplus": surplus}
    lines = [f"  {what:<16} {len(keys)}: {listed(keys, 3)}" for what, keys in rows.items() if keys]
    if missing and surplus:
        near = [k for k in surplus if k.endswith(f".{missing[0]}")] or difflib.get_close_matches(missing[0], surplus, 1)
        lines += [f"  {'nearest':<16} {missing[0]}: {key}" for key in near[:1]]
    with suppress(UserError):
        lines.append(f"  {'the file begins':<16} {listed(_read(path), 4)}")
    what = "\n".join(lines)
    raise UserError(
        f"backbone.pretrained={path}: weights of another model than {name}, which has {len(wanted)} tensors, or not all.\n"
        f"{what}\n{WHOLE}"
    )


def _kind(tensor: Tensor) -> str:
    return f"({','.join(map(str, tensor.shape))})" + f" {tensor.dtype}".replace("torch.", "") * (not tensor.is_floating_point())


def torchvision_weights(choice: Any, name: str) -> Mapping[str, Any]:
    """State dict of published torchvision weights.

    Raises:
        UserError: they are neither in the local cache nor to be had.
    """
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(choice.url).name
    if not cached.is_file():
        _require(choice.url, f"backbone={name}", str(cached))
    return or_stop(name, True, lambda: choice.get_state_dict(progress=True, check_hash=not cached.is_file()))


def import_timm() -> ModuleType:
    """timm, but not W&B, which it imports wherever that is installed, for a function that is not used here."""
    absent = "wandb" not in sys.modules
    if absent:
        sys.modules["wandb"] = None  # type: ignore[assignment]
    try:
        import timm
    finally:
        if absent:
            del sys.modules["wandb"]
    return timm


def require_timm_weights(name: str) -> None:
    """Check that timm's published weights are in the local cache or can be reached.

    Raises:
        UserError: there are none for this model, or they are out of reach.
    """
    from timm.models import get_pretrained_cfg

    cfg = get_pretrained_cfg(name)
    if cfg is None or not (cfg.hf_hub_id or cfg.url or cfg.file):
        raise UserError(
            f"backbone.pretrained=true: timm publishes no weights for {name}. Set backbone.pretrained=false or a file."
        )
    if cfg.hf_hub_id:
        from huggingface_hub import constants, try_to_load_from_cache

        files = [getattr(cfg, "hf_hub_filename", None) or "model.safetensors", "pytorch_model.bin"]
        if any(isinstance(try_to_load_from_cache(cfg.hf_hub_id, f), str) for f in files):
            return
        _require(f"{constants.ENDPOINT}/{cfg.hf_hub_id}/resolve/main/{files[0]}", f"backbone {name}", constants.HF_HUB_CACHE)
    elif isinstance(cfg.url, str) and not (Path(torch.hub.get_dir()) / "checkpoints" / Path(cfg.url).name).is_file():
        _require(cfg.url, f"backbone {name}", str(Path(torch.hub.get_dir()) / "checkpoints"))


def or_stop(name: str, pretrained: object, make: Callable[[], T]) -> T:
    """The result of ``make``; when weights were wanted, its failure becomes a message.

    Raises:
        UserError: it failed.
    """
    try:
        return make()
    except UserError:
        raise
    except Exception as error:
        what = "" if pretrained is False else f"pretrained={pretrained} cannot be loaded: "
        raise UserError(f"backbone {name}: {what}{_first_line(error)}") from error


def _require(url: str, what: str, cache: str) -> None:
    from huggingface_hub import constants

    try:
        if constants.HF_HUB_OFFLINE and url.startswith(constants.ENDPOINT):
            raise ValueError("the environment says HF_HUB_OFFLINE")
        request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "xraylab"})
        urllib.request.urlopen(request, timeout=PROBE_SECONDS).close()
        return
    except urllib.error.HTTPError as error:
        reason = f"{error.code} {error.reason}"
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "reason", error))
    raise UserError(
        f"{what}: its pretrained weights are not on this machine and cannot be fetched ({reason}).\n"
        f"  from   {url}\n  cache  {cache}\n"
        "Go on with backbone.pretrained=<file of weights>, or with backbone.pretrained=false for random weights."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
