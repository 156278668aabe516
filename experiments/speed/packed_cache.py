"""How much faster the packed cache is than decoding: ``python experiments/speed/packed_cache.py [--images <folder>]``."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from xraylab.data.cache.build import pack_table
from xraylab.data.images.source import FileSource, ImageSource
from xraylab.data.preprocessing import prepare
from xraylab.data.study_table import StudyTable

PROMISE = 20.0  # times as many images a second
FORMATS = {"PNG": (".png",), "JPEG": (".jpg", ".jpeg")}
CACHE_READS = 20_000  # in one timing, at least


def main() -> int:
    """Print a line a format; 1 where one is below the promise, else 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, help="a folder of PNG or JPEG files; without it, 512x512 ones are drawn")
    parser.add_argument("--n", type=int, default=400, help="files of each format, at most")
    parser.add_argument("--size", type=int, default=224, help="pixels that images are resized to")
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"{cores} cores, load {os.getloadavg()[0]:.2f}; OpenCV {cv2.__version__}; one thread reads, in random order, one image")
    print("at a time; all files and the cache are in memory, in the page cache (warm); what is read is the reader's own copy")
    ratios: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, suffixes in FORMATS.items():
            root = asked.images or draw(Path(folder) / name, asked.n, suffixes[0])
            files = sorted(p for p in root.rglob("*") if p.suffix.lower() in suffixes and not p.name.startswith("."))
            if len(files) > asked.n:
                files = [files[i] for i in np.random.default_rng(0).permutation(len(files))[: asked.n]]
            if files:
                ratios.append(compare(name, root, files, Path(folder) / "cache", asked.size, asked.repeats))
    if not ratios:
        sys.exit(f"{asked.images}: there are no PNG or JPEG files.")
    kept = min(ratios) >= PROMISE
    print(f"the promise is {PROMISE:.0f} times as many: {'kept' if kept else 'NOT kept'}")
    return 0 if kept else 1


def compare(name: str, root: Path, files: list[Path], cache: Path, size: int, repeats: int) -> float:
    """Print images/s by decoding and from the cache; the median over the repeats of their ratio."""
    references = [str(p.relative_to(root)) for p in files]
    frame = pd.DataFrame({"id": references, "patient": "", "group": name, "split": "train", "label": np.float32(0)})
    frame["images"] = pd.Series([(r,) for r in references], dtype=object)
    table = StudyTable(frame, ("label",), FileSource(root), "speed", patients_known=False)
    packed = pack_table(table, cache, size, False, "skip")
    studies = packed.frame["images"].tolist()
    for study in studies:  # warms both, and they must be the same
        assert np.array_equal(prepare(table.source.read(study), size), prepare(packed.source.read(study)))

    decoded, cached = [], []
    for repeat in range(repeats):
        decoded.append(rate(table.source, studies, size, 1, repeat))
        cached.append(rate(packed.source, studies, None, -(-CACHE_READS // len(studies)), repeat))
    ratios = [c / d for c, d in zip(cached, decoded, strict=True)]
    shapes = [table.source.shape(study[0])[1:] for study in studies]
    sizes = " to ".join(f"{h}x{w}" for h, w in dict.fromkeys([min(shapes), max(shapes)]))
    kilobytes = statistics.mean((root / study[0]).stat().st_size for study in studies) / 1e3
    megabytes = sum(packed.source.read(study).nbytes for study in studies) / 1e6
    print(
        f"{name}: n={len(studies)}, {sizes} pixels, {kilobytes:.0f} kB a file. Decode and resize to {size}: "
        f"{statistics.median(decoded):,.0f} images/s; from the cache "
        f"({megabytes:.0f} MB): {statistics.median(cached):,.0f} images/s; "
        f"{statistics.median(ratios):.0f} times as many (median of {', '.join(f'{r:.0f}' for r in ratios)})"
    )
    return statistics.median(ratios)


def rate(source: ImageSource, studies: Sequence[tuple[str, ...]], size: int | None, rounds: int, seed: int) -> float:
    """Images a second, as a dataset reads them."""
    rng = np.random.default_rng(seed)
    order = [studies[i] for _ in range(rounds) for i in rng.permutation(len(studies))]
    start = time.perf_counter()
    for study in order:
        prepare(source.read(study), size)
    return len(order) / (time.perf_counter() - start)


def draw(root: Path, n: int, suffix: str) -> Path:
    """Grey pictures of smooth shapes, fine structure and noise, as X-rays have, for without them files would be too small."""
    root.mkdir()
    for number in range(n):
        rng = np.random.default_rng(number)
        picture = np.zeros((512, 512), np.float32)
        for cells, strength in ((6, 45.0), (24, 14.0), (96, 5.0)):
            picture += cv2.resize(
                rng.normal(0, strength, (cells, cells)).astype(np.float32), (512, 512), None, 0, 0, cv2.INTER_CUBIC
            )
        picture += rng.normal(110, 1.2, picture.shape).astype(np.float32)
        assert cv2.imwrite(str(root / f"{number:04d}{suffix}"), picture.clip(0, 255).astype(np.uint8))
    return root


if __name__ == "__main__":
    sys.exit(main())
