"""What was run: its data, command, checkpoint and loss."""

from __future__ import annotations

import html

from xraylab.evaluation.ensembles.combination import Combination
from xraylab.reporting.frame import table
from xraylab.reporting.sections import Context, Section
from xraylab.reporting.summary import evaluated_of, moved


def about(c: Context) -> str:
    """What was run, evaluated and combined, in paragraphs."""
    evaluation = c.evaluation
    summary = c.directory / "model_summary.txt"  # a combination has none
    model = "; ".join(summary.read_text(encoding="utf-8").splitlines()[:2]) + "." if summary.is_file() else ""
    parts = [
        "<h2>What was run</h2>",
        f"<p>Data: <b>{_e(evaluation['data'])}</b>, selection {_e(evaluation['selection'])}. {_e(model)}</p>",
        f"<pre>{_e(c.environment['command'])}</pre>",
    ]
    if anew := evaluation.get("evaluated"):
        said = ", ".join(f"{key}={value}" for key, value in anew["options"].items()) or "no other settings than the run's"
        parts.append(f"<p>Evaluated anew, with {_e(said)}:</p><pre>{_e(anew['command'])}</pre>")
    chosen = ""
    if "checkpoint" in evaluation:
        chosen = f", step {evaluation['checkpoint']['step']}, chosen by {evaluation['checkpoint']['monitor']}"
    parts.append(f"<p>Evaluated: {_e(evaluated_of(evaluation) + chosen)}.</p>")
    if "combination" in evaluation:
        parts += _combination(c)
    if policy := evaluation.get("loss", {}).get("policy"):
        parts.append(f"<p>Loss: {_e(policy)}.</p>")
    return "".join([*parts, *(f"<p><b>{_sentence(line)}</b></p>" for line in moved(evaluation))])


def _combination(c: Context) -> list[str]:
    """How a combination was made, and the coefficients of a stack."""
    combination = Combination.of_record(c.evaluation["combination"])
    style = " class=sample" if combination.in_sample else ""
    parts = [f"<p{style}>{_sentence(line)}</p>" for line in combination.said()]
    parts += [f"<p>No {_e(file)}, for {_e(reason)}.</p>" for file, reason in c.evaluation.get("left_out", {}).items()]
    fitted = {la: (v, of) for la, v in (combination.labels or {}).items() if (of := v["coefficients"]) is not None}
    if fitted:
        head = ["", *c.evaluation["members"], "intercept", "n", "positives"]
        rows = [
            [label, *(f"{x:.3f}" for x in (*coefficients.values(), v["intercept"])), v["n"], v["positives"]]
            for label, (v, coefficients) in fitted.items()
        ]
        parts.append(f"<h3>Coefficients of the members' logits</h3>{table(head, rows)}")
    return parts


def _sentence(line: str) -> str:
    return f"{_e(line[0].upper() + line[1:])}."


def _e(text: object) -> str:
    return html.escape(str(text))


SECTION = Section(20, about)
