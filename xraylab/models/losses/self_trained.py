"""Self-training: a first model's probabilities are the targets of uncertain labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from xraylab.errors import UserError, listed
from xraylab.models.losses.uncertain_labels import ADAPTED, Uncertainty

if TYPE_CHECKING:
    import pandas as pd

    from xraylab.data.study_table import StudyTable


class SelfTrained(Uncertainty):
    """Binary cross-entropy with a first model's probabilities as targets of uncertain labels (Irvin et al. 2019, section 3.1).

    Args:
        first: the first model's run, with ``predictions/train.csv``; None: it is trained first, ignoring uncertain labels, in
            ``first/`` of the run.
        options: of :class:`Uncertainty`, but u; the class balance counts uncertain labels as half positive.

    >>> import pandas as pd
    >>> from xraylab.data import StudyTable
    >>> frame = pd.DataFrame({"id": ["s1", "s2"], "split": "train", "edema": [1.0, -1.0]})
    >>> loss = SelfTrained()
    >>> loss.build(num_labels=1)
    >>> loss.attach(StudyTable(frame, ("edema",), None, "mine"), pd.DataFrame({"id": ["s2", "s1"], "p_edema": [0.7, 0.9]}))
    >>> loss.targets(torch.tensor([[-1.0]]), rows=torch.tensor([1]))[0]
    tensor([[0.7000]])
    """

    targets_by_study = True

    def __init__(self, first: str | None = None, **options: Any) -> None:
        if "u" in options or options.get("w") == ADAPTED:
            raise UserError("loss=selftrained: the first model gives the targets u; loss.w is a number, or one by finding.")
        super().__init__(**options)
        self.save_hyperparameters()
        self.hparams.pop("u")
        self.first, self.given = first, "the first model's probability"

    def predictions(self) -> Path | None:
        """The first model's table of the training studies.

        Raises:
            UserError: there is none.
        """
        if self.first is None:
            return None
        path = Path(self.first) / "predictions" / "train.csv"
        if not path.is_file():
            raise UserError(
                f"loss.first={self.first}: there is no {path}. Train that run with save_train_predictions=true, or leave "
                "loss.first=null, and it is trained first."
            )
        return path

    def attach(self, units: StudyTable, predictions: pd.DataFrame | None = None) -> None:
        """Take the first model's probabilities of the training studies.

        Raises:
            UserError: they are of other findings, or do not have every study with an uncertain label.
        """
        if predictions is None:
            return
        path, table = self.predictions(), predictions.set_index("id")
        columns = [f"p_{label}" for label in units.labels]
        if missing := [c for c in columns if c not in table]:
            raise UserError(f"{path}: no column {listed(missing)}: the first model was trained for other findings.")
        ids = units.frame["id"]
        needed = (units.label_values() == -1).any(1) & (units.frame["split"] == "train").to_numpy() & ~ids.isin(table.index)
        if needed.any():
            raise UserError(
                f"{path}: {int(needed.sum())} training studies with uncertain labels are not in it: {listed(ids[needed])}. "
                "The first model must be trained on the same split."
            )
        self._rows = torch.from_numpy(table[columns].reindex(ids).to_numpy(np.float32, copy=True)).nan_to_num(0.5)
