"""The record of a run's surroundings, by which it can be repeated: versions, machine, command, git state."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from contextlib import suppress
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from xraylab.system.command_line import alone, command_line, flags
from xraylab.system.processes import cores

PACKAGES = (
    "xraylab", "torch", "torchvision", "pytorch-lightning", "hydra-core", "omegaconf", "timm", "torchmetrics",
    "albumentations", "opencv-python-headless", "numpy", "pandas", "scikit-learn", "wandb", "tensorboard",
)  # fmt: skip


def environment(seed: int, overrides: list[str], command: str = "train") -> dict[str, Any]:
    """The content of ``environment.json``: versions, machine, seed, command, git state."""
    import torch  # which takes seconds, and commands that fail before it do without

    versions = {}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return {
        "versions": {"python": platform.python_version(), **versions},
        "machine": {
            "system": platform.platform(),
            # torch 2.9, which torch_xla needs, cannot tell
            "processor": getattr(torch.cpu, "get_capabilities", dict[str, Any])().get("cpu_name", platform.processor()),
            "cores": cores(),
            "threads": torch.get_num_threads(),
            "gpus": gpus,
        },
        "seed": seed,
        "command": command_line(command, [*flags(), *alone(overrides)]),
        "overrides": overrides,
        "directory": os.getcwd(),
        "git": git_state(Path(__file__).parent),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "argv": sys.argv,
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and whether the work tree differs from it; None outside a checkout of xraylab."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, encoding="utf-8", errors="replace", timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        if not (Path(git("rev-parse", "--show-toplevel")) / "conf").is_dir():
            return None
        return {"commit": git("rev-parse", "HEAD"), "modified": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
