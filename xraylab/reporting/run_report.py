"""A run's report: one HTML file that opens anywhere, made from what lies in the run directory."""

from __future__ import annotations

from pathlib import Path

from xraylab.data.study_table import SYNTHETIC
from xraylab.reporting.frame import framed
from xraylab.reporting.model_card import write_card
from xraylab.reporting.sections import Context, sections
from xraylab.reporting.summary import answer, caveats
from xraylab.run import Run, read_record
from xraylab.system.files import write_text


def write_report(directory: Path) -> Path:
    """Write ``report.html`` and ``MODEL_CARD.md`` of a run directory from its evaluation, tables, history and configuration."""
    evaluation = read_record(Run(directory).evaluation_file, "data", "selection", "splits")
    environment = read_record(Run(directory).environment_file, "command")
    context = Context(directory, evaluation, environment, evaluation["data"] == SYNTHETIC)
    body = "\n".join(section.html(context) for section in sections())
    place = directory.absolute()
    page = framed(place.parent.name, place.name, body, context.synthetic, answer=answer(evaluation), caveats=caveats(evaluation))
    write_text(directory / "report.html", page)
    write_card(directory)
    return directory / "report.html"
