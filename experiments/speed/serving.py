"""How long a served study takes beside predicting it: ``python experiments/speed/serving.py --run <run> --input <file>``."""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import torch

from xraylab.inference.inputs import find_studies
from xraylab.inference.predictor import predict
from xraylab.serving.served_run import ServedRun
from xraylab.serving.server import serving
from xraylab.training.fit import silence_lightning


def main() -> None:
    """Print latencies, their ratio in pairs, and throughput."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="a run directory, a combination or a checkpoint")
    parser.add_argument("--input", type=Path, required=True, help="a file that is a study")
    parser.add_argument("--pairs", type=int, default=15, help="at least 5")
    parser.add_argument("--visitors", type=int, default=4, help="at once, for the throughput")
    asked = parser.parse_args()
    silence_lightning()
    logging.disable(logging.INFO)
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(f"{cores} cores, {torch.get_num_threads()} threads, load {load:.2f}; torch {torch.__version__}")
    served = ServedRun(asked.run)
    files = find_studies(str(asked.input))
    content = asked.input.read_bytes()
    with serving(served) as url:

        def ask(**data: str) -> None:
            sent = [("files", (asked.input.name, content))]
            httpx.post(f"{url}/api/predict", files=sent, data=data, timeout=600).raise_for_status()

        ways: dict[str, Callable[[], object]] = {
            "predict, model loaded": lambda: predict(asked.run, files, served.options),
            "served": ask,
            "served with pictures": lambda: ask(pictures="true"),
        }
        for way in ways.values():
            way()
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(max(asked.pairs, 5)):
            for name, way in ways.items():
                began = time.perf_counter()
                way()
                times[name].append(time.perf_counter() - began)
        base = times["predict, model loaded"]
        for name, of in times.items():
            ratios = [a / b for a, b in zip(of, base, strict=True)]
            low, high = min(ratios), max(ratios)
            print(f"{name}: median {statistics.median(of) * 1e3:.0f} ms, {statistics.median(ratios):.2f}x ({low:.2f}-{high:.2f})")
        count = 4 * asked.visitors
        began = time.perf_counter()
        with ThreadPoolExecutor(asked.visitors) as pool:
            list(pool.map(lambda _: ask(), range(count)))
        print(f"{asked.visitors} visitors at once: {count / (time.perf_counter() - began):.2f} studies/s")


if __name__ == "__main__":
    main()
