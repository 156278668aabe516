"""What was run: its data, command, checkpoint and loss."""

from __future__ import annotations

from xraylab.evaluation.ensembles.combination import Combination
from xraylab.reporting.frame import render
from xraylab.reporting.model_card import coefficient_rows, model_summary
from xraylab.reporting.sections import Context, Section


def about(c: Context) -> str:
    """What was run, evaluated and combined, in paragraphs; and the coefficients of a stack."""
    return render(
        "about.html",
        evaluation=c.evaluation,
        command=c.environment["command"],
        summary=model_summary(c.directory),
        combination=Combination.of_record(c.evaluation["combination"]) if "combination" in c.evaluation else None,
        coefficients=coefficient_rows(c.evaluation),
    )


SECTION = Section(20, about)
