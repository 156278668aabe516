"""Two machines train one run, and one of them is lost: ``python experiments/multinode/two_hosts.py`` (as root, on Linux).

The machines are two network namespaces of this one, joined by a cable of their own; each runs torchrun.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch

from xraylab.data.synthetic.knee import write_mrnet

SETTINGS = [
    "dataset=mrnet", "backbone=cnn", "backbone.layers=2", "backbone.filters=8", "backbone.batch_norm=false", "image.size=32",
    "batch_size=3", "accumulate=2", "optimizer=sgd", "optimizer.lr=1e-3", "early_stopping=null", "precision=32",
    "num_workers=0", "bootstrap=0", "cases=0",
]  # fmt: skip
ADDRESS = ("10.213.77.1", "10.213.77.2")
AT_ONCE = 30.0  # seconds within which the end of a machine's processes must be noticed
SILENT = 0.5  # minutes of accelerator.timeout where the cable is cut


class Hosts:
    """Two network namespaces and a cable."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = [f"xl{os.getpid()}{end}" for end in "ab"]

    def __enter__(self) -> Hosts:
        for name in self.names:
            ip("netns", "add", name)
        ip("link", "add", self.names[0], "type", "veth", "peer", "name", self.names[1])
        for name, address in zip(self.names, ADDRESS, strict=True):
            ip("link", "set", name, "netns", name)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", name)
            ip("-n", name, "link", "set", name, "up")
            ip("-n", name, "link", "set", "lo", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for host, name in enumerate(self.names):
            self.kill(host)
            ip("netns", "del", name)

    def pids(self, host: int) -> list[int]:
        return [int(p) for p in ip("netns", "pids", self.names[host]).split()]

    def kill(self, host: int) -> None:
        """Kill -9 everything that runs there."""
        for pid in self.pids(host):
            os.kill(pid, signal.SIGKILL)

    def cut(self) -> None:
        """Pull the cable out."""
        ip("-n", self.names[0], "link", "set", self.names[0], "down")

    def train(self, host: int, *overrides: str) -> subprocess.Popen[str]:
        words = [
            "ip", "netns", "exec", self.names[host], sys.executable, "-m", "torch.distributed.run", "--nnodes=2",
            "--nproc-per-node=1", f"--node-rank={host}", f"--master-addr={ADDRESS[0]}", "--master-port=29400",
            "-m", "xraylab.train", *SETTINGS, "accelerator=multinode", *overrides,
        ]  # fmt: skip
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": self.names[host], "OMP_NUM_THREADS": "1"}
        with (self.folder / f"host{host}.log").open("w") as file:
            return subprocess.Popen(words, cwd=self.folder, env=environment, stdout=file, stderr=subprocess.STDOUT, text=True)

    def log(self, host: int) -> str:
        return (self.folder / f"host{host}.log").read_text()


def ip(*words: str) -> str:
    """Run the command of that name."""
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def largest_difference(one: Path, two: Path) -> tuple[float, float]:
    """Of weights, and of the probabilities in both tables, whose rows must be the same."""
    a, b = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in (one, two))
    weights = max(float((a[k].double() - b[k].double()).abs().max()) for k in a)
    apart = 0.0
    for split in ("valid", "test"):
        a, b = (pd.read_csv(run / "predictions" / f"{split}.csv", dtype={"id": str}) for run in (one, two))
        if a["id"].tolist() != b["id"].tolist():
            raise SystemExit(f"{split}: other studies, or in another order")
        apart = max(apart, float((a["p_acl"] - b["p_acl"]).abs().max()))
    return weights, apart


def alone(folder: Path, *overrides: str) -> None:
    """Train in one process."""
    words = [sys.executable, "-m", "xraylab.train", *overrides]
    subprocess.run(words, cwd=folder, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})


def lose(hosts: Hosts, run: Path, lost: int, how: str, *overrides: str) -> tuple[float, str]:
    """Train until there is a checkpoint, lose a machine, and wait for the other; seconds, and what it said."""
    both = [hosts.train(host, "max_epochs=500", f"hydra.run.dir={run}", *overrides) for host in (0, 1)]
    while not (run / "history.csv").exists():
        if any(process.poll() is not None for process in both):
            raise SystemExit(f"it ended before it was to:\n{hosts.log(0)}\n{hosts.log(1)}")
        time.sleep(0.1)
    time.sleep(0.5)
    began = time.monotonic()
    if how == "kill":
        hosts.kill(lost)
    else:
        hosts.cut()
    both[1 - lost].wait(300)
    seconds = time.monotonic() - began
    hosts.kill(lost)
    both[lost].wait(30)
    said = [line for line in hosts.log(1 - lost).splitlines() if "another process" in line or "resume=" in line]
    return seconds, "\n".join(said)


def main() -> int:
    """Print what was seen; 1 where something was not as promised."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="leave out the loss of the first machine and of the cable")
    quick = parser.parse_args().quick
    if os.geteuid() != 0 or shutil.which("ip") is None:
        print("skipped: network namespaces need root and the command ip")
        return 0
    folder = Path(tempfile.mkdtemp(prefix="two-hosts-"))
    wrong = 0
    try:
        write_mrnet(folder / "MRNet-v1.0", train=40, valid=30, slices=(2, 4))
        data = f"dataset.root={folder / 'MRNet-v1.0'}"
        alone(folder, *SETTINGS, data, "max_epochs=2", "hydra.run.dir=one")
        with Hosts(folder) as hosts:
            both = [hosts.train(host, data, "max_epochs=2", f"hydra.run.dir={folder / 'two'}") for host in (0, 1)]
            if [process.wait(300) for process in both] != [0, 0]:
                raise SystemExit(hosts.log(0) + hosts.log(1))
            weights, apart = largest_difference(folder / "one", folder / "two")
            print(f"two machines against one process: weights differ by {weights:.1e}, probabilities by {apart:.1e}")
            wrong += weights > 1e-5 or apart > 1e-5
            for lost, how in [(1, "kill")] if quick else [(1, "kill"), (0, "kill"), (1, "cut")]:
                run = folder / f"{how}{lost}"
                timeout = [f"accelerator.timeout={SILENT}"] if how == "cut" else []
                seconds, said = lose(hosts, run, lost, how, data, *timeout)
                limit = SILENT * 60 + AT_ONCE if how == "cut" else AT_ONCE
                what = {"kill": f"all processes of machine {lost} killed (-9)", "cut": "the cable cut"}[how]
                print(f"{what}: machine {1 - lost} ended after {seconds:.0f} s (at most {limit:.0f}), saying\n{said}")
                wrong += seconds > limit or f"resume={run}" not in said
                done = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] + 1
                alone(folder, f"resume={run}", f"max_epochs={done + 1}", "accelerator=cpu")
                alone(folder, *SETTINGS, data, f"max_epochs={done + 1}", f"hydra.run.dir={run}-whole")
                weights, apart = largest_difference(folder / f"{run.name}-whole", run)
                print(
                    f"  resumed after epoch {done} by one process, against a run that lost nothing: weights differ by "
                    f"{weights:.1e}, probabilities by {apart:.1e}"
                )
                wrong += weights > 1e-5 or apart > 1e-5
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
