"""The data: studies, patients and labels of each split."""

from __future__ import annotations

from xraylab.reporting.frame import table
from xraylab.reporting.model_card import data_tables
from xraylab.reporting.sections import Context, Section


def data(c: Context) -> str:
    """Two tables beside each other."""
    tables = "".join(table(head, rows) for head, rows in data_tables(c.evaluation))
    return f"<h2>Data</h2><div class=beside>{tables}</div>"


SECTION = Section(30, data)
