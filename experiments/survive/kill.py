"""Kill a training run again and again, and show that it ends as one that was never killed.

  python experiments/survive/kill.py [--kills 12] [--seed 0] [--out FOLDER] [override ...]

One run trains without a break. Another, of the same command, is killed (SIGKILL, its readers too) at random points: while it
starts, within epochs, at their ends, while a checkpoint is being written, while it evaluates; and goes on by ``resume=<run>``
each time. Then both must have the same weights, optimiser, averages and schedule in last.ckpt and best.ckpt, bit for bit, and the
same tables, history (but times) and evaluation. Exits with 1 where they differ.

Every session is a process of its own, forked from this one after its imports and before any work, so that it starts at once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import xraylab.training.session  # noqa: F401  for the sessions
from xraylab.data.synthetic.knee import write_mrnet
from xraylab.train import main as train

MRNET = [
    "dataset=mrnet", "task=[acl,abnormal]", "backbone=resnet18", "backbone.pretrained=false", "image.size=32", "precision=32",
    "+backbone.kwargs.channels=[16,16,32,32]", "head.hidden=[16]", "head.dropout=0.5", "augmentation=mrnet", "optimizer.lr=1e-3",
    "scheduler.patience=0", "batch_size=2", "accumulate=2", "max_epochs=6", "num_workers=1", "bootstrap=20", "cases=0",
    "callbacks=ema", "callbacks.ema.decay=0.9", "early_stopping.patience=3", "save_top_k=2", "checkpoint_every=2 steps",
]  # fmt: skip
KINDS = ["starting", "training", "training", "training", "writing", "writing"]
TIMES = ["seconds", "studies_per_s", "images_per_s"]


def begin(words: list[str], log: Path) -> int:
    """A process that runs ``python -m xraylab.train <words>``."""
    if child := os.fork():
        return child
    code = 1
    try:
        os.setsid()
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        torch.set_num_threads(1)
        sys.argv = ["xraylab.train", *words]
        train()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(child: int) -> int | None:
    """The exit code of a process, if it ended."""
    pid, status = os.waitpid(child, os.WNOHANG)
    return None if pid == 0 else os.waitstatus_to_exitcode(status)


def point(run: Path, kind: str, rng: random.Random) -> tuple[str, Callable[[], bool]]:
    """A random point to kill at: in words, and what tells that it is reached."""
    began = time.monotonic()
    if kind == "starting":
        limit = rng.uniform(0, 3)
        return f"after {limit:.2f} s", lambda: time.monotonic() - began > limit
    if kind == "evaluating":
        started = time.time()
        tables = [run / "predictions" / "valid.csv", run / "operating_points.json"]
        return "while it evaluates", lambda: any(t.exists() and t.stat().st_mtime > started for t in tables)
    last, count = run / "checkpoints" / "last.ckpt", rng.randint(1, 4)
    seen: set[Any] = set() if kind == "writing" else {last.stat().st_mtime_ns if last.exists() else 0}
    wait = rng.uniform(0, 0.1) if kind == "training" else 0

    def reached() -> bool:
        if kind == "writing":
            files = [file.stat().st_ino for file in run.glob("checkpoints/.*.partial") if file.exists()]
            seen.update(files)
            return bool(files) and len(seen) >= count
        if last.exists():
            seen.add(last.stat().st_mtime_ns)
        if len(seen) <= count:
            return False
        time.sleep(wait)
        return True

    if kind == "writing":
        return f"while its checkpoint {count} is written", reached
    return f"{wait * 1000:.0f} ms after its checkpoint {count}", reached


def progress(run: Path) -> str:
    """How far a killed run is by its last checkpoint."""
    last = run / "checkpoints" / "last.ckpt"
    if not last.exists():
        return "no checkpoint yet"
    saved = torch.load(last, weights_only=True)
    batch = saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["processed"]
    return f"last.ckpt: epoch {saved['epoch'] + 1}, batch {batch}, step {saved['global_step']}"


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two checkpoints differ."""
    if isinstance(a, torch.Tensor):
        return [] if isinstance(b, torch.Tensor) and torch.equal(a, b) else [where]
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return [f"{where} keys"]
        return [d for key in a for d in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{where}/{i}")]
    return [] if a == b else [where]


def compare(whole: Path, killed: Path) -> list[str]:
    """What differs between two runs, beside their folders and times."""
    found = []
    for name in sorted({p.name for run in (whole, killed) for p in run.glob("checkpoints/*.ckpt")}):
        parts = []
        for run in (whole, killed):
            saved = torch.load(run / "checkpoints" / name, weights_only=True)
            kept = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "xraylab", "epoch", "global_step")
            early = {k: v for k, v in saved["callbacks"].items() if k.startswith("EarlyStopping")}
            parts.append({**{k: saved[k] for k in kept if k in saved}, "early stopping": early})
        found += [f"{name}{where}" for where in differences(*parts)]
    for file in ("predictions/valid.csv", "predictions/test.csv", "evaluation.json", "operating_points.json"):
        if (whole / file).read_bytes() != (killed / file).read_bytes():
            found.append(file)
    one, two = (pd.read_csv(run / "history.csv").drop(columns=TIMES) for run in (whole, killed))
    if not one.equals(two):
        found.append("history.csv")
    if not json.loads((killed / "environment.json").read_text())["finished"]:
        found.append("environment.json: not finished")
    return found + [f"left behind: {path}" for path in killed.rglob("*.partial")]


def survive(out: Path, kills: int, seed: int, overrides: list[str]) -> list[str]:
    """Train, kill, compare; returns what differs."""
    rng = random.Random(seed)
    if not any(word.startswith("dataset.root=") for word in overrides):
        overrides = [*overrides, f"dataset.root={write_mrnet(out / 'MRNet-v1.0', train=40, valid=30, slices=(2, 4))}"]
    os.environ.setdefault("XRAYLAB_CACHE", str(out / "cache"))
    words, whole = [*MRNET, *overrides], out / "whole"
    began = time.monotonic()
    child = begin([*words, f"hydra.run.dir={whole}"], out / "whole.log")
    while (code := ended(child)) is None:
        time.sleep(0.01)
    seconds = time.monotonic() - began
    if code:
        return [f"the run that was not killed ended with {code}: see {out / 'whole.log'}"]
    steps = torch.load(whole / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    print(f"not killed: {len(pd.read_csv(whole / 'history.csv'))} epochs, {steps} steps, {seconds:.1f} s", flush=True)
    done = victims = 0
    while True:
        victims += 1
        killed, log = out / f"killed-{victims}", out / f"killed-{victims}.log"
        while True:
            begun = any((killed / name).exists() for name in (".begun.yaml", "config.yaml"))
            child = begin([f"resume={killed}"] if begun else [*words, f"hydra.run.dir={killed}"], log)
            kind = "starting" if done == 0 else "evaluating" if done == kills - 1 else rng.choice(KINDS)
            what, reached = point(killed, kind, rng)
            while (code := ended(child)) is None and not (done < kills and _safely(reached)):
                time.sleep(0.0005)
            if code is not None:
                break
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            done += 1
            print(f"kill {done:2d} of run {victims}: {what}; {progress(killed)}", flush=True)
        if code:
            return [f"a session ended with {code}: see {log}"]
        if found := compare(whole, killed):
            return found
        print(f"run {victims} is finished, and the same", flush=True)
        if done >= kills:
            return []


def _safely(reached: Callable[[], bool]) -> bool:
    try:
        return reached()
    except FileNotFoundError:  # renamed between two looks
        return False


def main() -> None:
    """The entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("override", nargs="*")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = (given.out or Path(folder)).absolute()
        out.mkdir(parents=True, exist_ok=True)
        if found := survive(out, given.kills, given.seed, given.override):
            sys.exit("DIFFERENT: " + ", ".join(found[:20]))
    print("the same: weights, optimiser, averages, schedule, tables, history and evaluation, bit for bit")


if __name__ == "__main__":
    main()
