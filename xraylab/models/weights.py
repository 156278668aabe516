"""Pretrained weights: from a file, the local cache or the network; or a stop within seconds, never random weights."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import nn

from xraylab.errors import UserError, listed
from xraylab.run import FOREIGN

T = TypeVar("T")
PROBE_SECONDS = 5.0


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


def load_file(model: nn.Module, path: str) -> None:
    """Load a whole state dict into a model.

    Raises:
        UserError: the file is not a state dict, or not of this model.
    """
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file as load_safetensors

            state: Mapping[str, Any] = load_safetensors(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state = state.get("state_dict", state) if isinstance(state, Mapping) else {}
        missing, unexpected = model.load_state_dict(state, strict=False)
    except Exception as error:  # whatever a broken file makes the readers raise
        raise UserError(f"backbone.pretrained={path}: cannot be loaded: {_first_line(error)}") from error
    if missing or unexpected:
        raise UserError(
            f"backbone.pretrained={path}: weights of another model; "
            f"missing {len(missing)} ({listed(missing, 3)}), unexpected {len(unexpected)} ({listed(unexpected, 3)})."
        )


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


def require_all_loaded(model: nn.Module, make: Callable[[], nn.Module], path: str) -> None:
    """Check that a file filled a model: timm leaves at random, and says nothing of, what a file does not have.

    What was loaded is the same in a model made again after another seed; what was not, is not.

    Raises:
        UserError: some kernels are random.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.initial_seed() + 1)
        again = dict(make().named_parameters())
    random = [n for n, p in model.named_parameters() if p.ndim > 1 and not torch.equal(p, again[n])]
    if random:
        raise UserError(
            f"backbone.pretrained={path}: weights of another model; {len(random)} kernels are not in it ({listed(random, 3)})."
        )


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
        if pretrained is False:
            raise UserError(f"backbone {name}: {_first_line(error)}") from error
        raise UserError(f"backbone {name}: pretrained={pretrained} cannot be loaded: {_first_line(error)}") from error


def _require(url: str, what: str, cache: str) -> None:
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE and url.startswith(constants.ENDPOINT)
    reason = "the environment says HF_HUB_OFFLINE" if offline else None
    try:
        if reason is None:
            request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "xraylab"})
            urllib.request.urlopen(request, timeout=PROBE_SECONDS).close()
    except urllib.error.HTTPError as error:
        reason = f"{error.code} {error.reason}"
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "reason", error))
    if reason is not None:
        raise UserError(
            f"{what}: its pretrained weights are not on this machine and cannot be fetched ({reason}).\n"
            f"  from   {url}\n  cache  {cache}\n"
            "Go on with backbone.pretrained=<file of weights>, or with backbone.pretrained=false for random weights."
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
