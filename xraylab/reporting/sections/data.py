"""The data: studies, patients and labels of each split."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from xraylab.reporting.model_card import OF_LABELS, OF_SPLITS, data_rows
from xraylab.reporting.sections import Context, Section


def data(c: Context) -> str:
    """Two tables beside each other."""
    rows, counts = data_rows(c.evaluation)
    return f"<h2>Data</h2><div class=beside>{_plain(OF_SPLITS, rows)}{_plain(OF_LABELS, counts)}</div>"


def _plain(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = ["".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows]
    return f"<table><tr>{''.join(f'<th>{h}</th>' for h in head)}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


SECTION = Section(30, data)
