"""How the training went."""

from __future__ import annotations

import pandas as pd

from xraylab.reporting.figures import export
from xraylab.reporting.figures.layout import spaced
from xraylab.reporting.sections import Context, Section
from xraylab.run import Run

HEAD = "<h2>Training</h2>"


def training(c: Context) -> str:
    """Loss and validation AUROC by epoch."""
    if not Run(c.directory).history_file.is_file():
        return ""
    from matplotlib.figure import Figure

    history = pd.read_csv(Run(c.directory).history_file)
    if history.empty:
        return f"{HEAD}<p>No epoch was finished.</p>"
    figure = Figure(figsize=(10.5, 3.6))
    loss, score = spaced(figure, 1, 2, (0.65, 0.1, 0.55, 0.7), 0.75)
    epochs = history["epoch"] + 1
    for column in ("train/loss", "valid/loss"):
        loss.plot(epochs, history[column], marker=".", label=column)
    aurocs = [c for c in history.columns if c.endswith("/auroc")]
    for column in aurocs if len(aurocs) > 2 else aurocs[:1]:
        score.plot(epochs, history[column], marker=".", label=column)
    loss.set(xlabel="epoch", title="Loss")
    score.set(xlabel="epoch", title="Validation AUROC")
    for axes in (loss, score):
        axes.legend(fontsize=8)
    return HEAD + export.drawn(figure, c.directory / "figures" / "training.png", c.synthetic)


SECTION = Section(60, training)
