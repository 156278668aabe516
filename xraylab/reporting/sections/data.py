"""The data: studies, patients and labels of each split."""

from __future__ import annotations

from xraylab.reporting.frame import table
from xraylab.reporting.model_card import OF_LABELS, OF_SPLITS, data_rows
from xraylab.reporting.sections import Context, Section


def data(c: Context) -> str:
    """Two tables beside each other."""
    rows, counts = data_rows(c.evaluation)
    return f"<h2>Data</h2><div class=beside>{table(OF_SPLITS, rows)}{table(OF_LABELS, counts)}</div>"


SECTION = Section(30, data)
