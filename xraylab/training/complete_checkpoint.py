"""At the end of training: what the best checkpoint carries beside the model: what its training images look like, a self-test."""

from __future__ import annotations

import io
import logging
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from xraylab.evaluation.intervals import exact
from xraylab.models.distribution import Enough, TrainingDistribution, described, early_layer
from xraylab.run import Run
from xraylab.system.files import write_bytes
from xraylab.training.checkpoints import read_checkpoint
from xraylab.training.experiment import Experiment
from xraylab.training.self_test import outputs

log = logging.getLogger(__name__)

STUDIES = 400  # of a split, at most


def complete_checkpoint(experiment: Experiment, directory: Path) -> None:
    """Add to the best checkpoint, whose weights the experiment has, what its training images look like and a self-test."""
    file = Run(directory).checkpoint("best")
    if not file.is_file():
        return
    checkpoint = read_checkpoint(file)
    if (found := training_distribution(experiment)) is not None:
        checkpoint["xraylab"]["distribution"] = found.record()
    checkpoint["xraylab"]["self_test"] = outputs(experiment.module.cpu())
    content = io.BytesIO()
    torch.save(checkpoint, content)
    write_bytes(file, content.getbuffer())


def training_distribution(experiment: Experiment) -> TrainingDistribution | None:
    """What images of train look like to the network; None: it has no convolutions, or there are fewer than five patients."""
    started = time.monotonic()
    layer = early_layer(experiment.module.net.backbone)
    if layer is None:
        return None
    rows, train = _described(experiment, "train", layer)
    held_out = {split: _described(experiment, split, layer)[1] for split in ("valid", "test")}
    frame = experiment.table.frame.loc[rows]
    patients = frame["patient"].where(frame["patient"] != "", frame["id"]).tolist()
    found = TrainingDistribution.fit(layer, train, patients, held_out["valid"])
    if found is None:
        return None
    for split, studies in held_out.items():
        if n := len(studies):
            share = float(np.mean([found.of_study(x) > found.threshold for x in studies]))
            low, high = exact(share, n)
            found.refused[split] = {"value": share, "low": low, "high": high, "n": n, "reason": None}
    words = ", ".join(f"{m['value']:.1%} of {split} (n {m['n']})" for split, m in found.refused.items())
    log.info("unlike training images, as the checkpoint knows them: %s; %.1f s", words or "none", time.monotonic() - started)
    return found


def _described(experiment: Experiment, split: str, layer: str) -> tuple[np.ndarray, list[np.ndarray]]:
    """Rows of a seeded choice of a split's studies, and what the layer says of each one's images (I,2K)."""
    net, table = experiment.module.net, experiment.table
    rows = table.part(split).index.to_numpy()
    rows = np.sort(rows[np.random.default_rng(0).permutation(len(rows))[:STUDIES]])
    if not len(rows):
        return rows, []
    device = torch.device("cuda" if torch.cuda.is_available() and experiment.accelerator["accelerator"] != "cpu" else "cpu")
    net.eval().to(device)
    parts = max(len(net.parts), 1)
    kept: dict[int, np.ndarray] = {}
    with torch.no_grad(), described(net.backbone, layer, stop=True) as seen:
        for batch in experiment.data.loader(split, plain=True, rows=rows):
            images = batch.images[: batch.real]
            with suppress(Enough):
                net.features(images.to(device))
            assert seen.images is not None
            study, values = (batch.study[: batch.real] // parts).numpy(), seen.images.cpu().numpy()
            for k, row in enumerate(batch.rows.tolist()):
                kept[row] = values[study == k]
    return rows, [kept[row] for row in rows.tolist()]
