"""The run directory: claimed once, written beside and renamed, described by what was run."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from xraylab.errors import UserError

PACKAGES = (
    "xraylab", "torch", "torchvision", "pytorch-lightning", "hydra-core", "omegaconf", "timm", "torchmetrics",
    "albumentations", "opencv-python-headless", "numpy", "pandas", "scikit-learn", "wandb", "tensorboard",
)  # fmt: skip


def new_run_dir(name: str, resume: str | None = None) -> str:
    """``outputs/<name>/<date_time>``, created here and so never shared by two runs; or the run to resume."""
    if resume:
        return str(run_of(resume))
    parent = Path("outputs") / str(name)
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for k in range(1, 1000):
        path = parent / (stamp if k == 1 else f"{stamp}_{k}")
        try:
            path.mkdir(parents=True)
            return str(path)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"cannot create the run directory {path.absolute()}: {error.strerror}.") from error
    raise UserError(f"cannot find a free name for a run in {parent.absolute()}")


def run_of(path: str | Path) -> Path:
    """The run directory that ``path`` names: itself, the one a checkpoint lies in, or a copy of the one at a URL.

    Raises:
        UserError: there is none.
    """
    from xraylab.remote import fetch_run, is_url

    given = fetch_run(str(path)) if is_url(path) else Path(path)
    for candidate in (given, *list(given.parents)[:2]) if given.is_file() else (given,):
        if (candidate / "config.yaml").is_file():
            return candidate
    if (first := given / "first" / "environment.json").is_file():
        words = shlex.join(w for w in json.loads(first.read_text())["overrides"] if not w.startswith("hydra.run.dir="))
        raise UserError(
            f"{given}: it was stopped while its first model was trained. Go on with the command that began it:\n"
            f"  python -m xraylab.train {words} {shlex.quote(f'hydra.run.dir={given}')}"
        )
    found = sorted(p.parent for p in Path("outputs").glob("*/*/config.yaml")) if Path("outputs").is_dir() else []
    newest = f" The newest run here is {max(found, key=lambda p: p.stat().st_mtime)}." if found else ""
    raise UserError(f"{given} is not a run directory: it has no config.yaml.{newest}")


def short_names(places: Sequence[Path]) -> list[str]:
    """The ends of the paths that tell them apart."""
    full = [p.resolve().parts for p in places]
    depth = 1
    while len({parts[-depth:] for parts in full}) < len(full):
        depth += 1
    return ["/".join(parts[-depth:]) for parts in full]


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` that becomes ``path`` when the block ends well, and vanishes when not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file as a whole or not at all."""
    with beside(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON (no NaN) as a whole or not at all."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def environment(seed: int, overrides: list[str], command: str = "train") -> dict[str, Any]:
    """What a reader needs to repeat a run: versions, machine, seed, command, git state."""
    import torch

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return {
        "versions": {"python": platform.python_version(), **versions},
        "machine": {
            "system": platform.platform(),
            # torch 2.9, which torch_xla needs, cannot tell
            "processor": getattr(torch.cpu, "get_capabilities", dict[str, Any])().get("cpu_name", platform.processor()),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpus": gpus,
        },
        "seed": seed,
        "command": f"python -m xraylab.{command} {shlex.join(overrides)}".strip(),
        "overrides": overrides,
        "directory": os.getcwd(),
        "git": git_state(Path(__file__).parent),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "argv": sys.argv,
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and whether the work tree differs from it; None outside a checkout of xraylab."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        if not (Path(git("rev-parse", "--show-toplevel")) / "conf").is_dir():
            return None
        return {"commit": git("rev-parse", "HEAD"), "modified": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
