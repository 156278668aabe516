"""What was wrong with the data and was left out."""

from __future__ import annotations

import html

from xraylab.reporting.sections import Context, Section


def skipped(c: Context) -> str:
    """Kinds of faults, with counts and names."""
    found = c.evaluation.get("skipped") or {}
    items = [f"<li>{len(v)} {html.escape(k)}: {html.escape(', '.join(v[:50]))}</li>" for k, v in found.items()]
    return f"<h2>Skipped</h2><ul>{''.join(items)}</ul>" if items else ""


SECTION = Section(50, skipped)
