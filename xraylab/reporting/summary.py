"""A finished evaluation as text, for a terminal, and the sentences that pages and cards share with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from xraylab.data.integrity import aligned_rows
from xraylab.data.study_table import SYNTHETIC
from xraylab.evaluation.ensembles.combination import IN_SAMPLE
from xraylab.evaluation.metrics import METRICS, number, numbers, without_interval
from xraylab.evaluation.operating_points import trivial
from xraylab.evaluation.predictions import CERTAIN, Scoring
from xraylab.evaluation.result import by_unit, choices, in_sample, last_split, with_macro

if TYPE_CHECKING:
    from xraylab.evaluation.result import Evaluation, LabelCalibration, OperatingPoint, SplitResult


def answer(evaluation: Evaluation) -> str:
    """The sentence that a page opens with: the main number, its interval, of how many studies, and what was chosen on them."""
    split, result = last_split(evaluation)
    labels = result["labels"]
    label = next(iter(labels)) if len(labels) == 1 else None
    m = labels[label]["auroc"] if label else result["macro"]["auroc"]
    what = label or f"{len(m['labels'])} findings, their mean"
    if m["value"] is None:
        return f"The AUROC of {label or 'every finding'} is undefined in {split}: {m['reason']}."
    if m["low"] is not None:
        bounds = f"95% interval {m['low']:.3f} to {m['high']:.3f}"
    else:
        bounds = m["reason"] or "no interval was asked for"
    positive = f", {labels[label]['positives']['value']} of them positive" if label else ""
    of = f"{m['n']} {units(result)} of {split}{positive}"
    sample = "Synthetic sample: " * (evaluation["data"] == SYNTHETIC)
    return f"{sample}AUROC of {what}: {m['value']:.3f} ({bounds}), in {of}; {choices(result['selected_on'])}."


def closing_table(evaluation: Evaluation, directory: Path, took: str) -> str:
    """The result in a few lines of text, and where everything lies."""
    lines = ["", answer(evaluation), f"{evaluation['data']}: {evaluated_of(evaluation)}"]
    lines += [f"  {line}" for line in (*caveats(evaluation), *moved(evaluation))]
    for split, result in by_unit(evaluation):
        over = result["bootstrap"]["over"]
        intervals = f"; 95% intervals over {over}" if result["bootstrap"]["resamples"] else ""
        note = {True: "selected on", False: "held out", None: choices(None)}[result["selected_on"]]
        lines.append(f"  {split} ({note}), by {result['unit']}: {result['n']} {units(result)}{intervals}")
        if len(result["labels"]) > 3 and result["unit"] == "image":
            lines[-1] += f": macro AUROC {number(result['macro']['auroc'])}; more in report.html"
            continue
        if "exclusive" in result:
            found = " and ".join(f"{name} {number(m)}" for name, m in result["exclusive"].items())
            lines.append(f"    {found} of the likeliest class; by class, one against the rest:")
        rows: list[tuple[str, ...]] = [("", *(m.title for m in METRICS.values()))]
        labels = with_macro(result)
        rows += [(name, *numbers(metrics)) for name, metrics in labels.items()]
        if len(result["groups"]) > 1 and len(result["labels"]) == 1 and result["unit"] == "study":
            for group, part in result["groups"].items():
                (metrics,) = part["labels"].values()
                rows.append((f"  {group} (n {part['n']})", *numbers(metrics)))
        lines += [f"    {line}" for line in aligned_rows(rows, [0])]
        points = result.get("operating_points", {})
        notes = (*macro_notes(result), *trivial(points), *tie_notes(result), *without_interval(labels))
        lines += [f"    {line}" for line in notes]
    skipped = sum(map(len, evaluation.get("skipped", {}).values()))
    if skipped:
        lines.append(f"  skipped: {skipped} faults, named in evaluation.json")
    lines += [f"  in {took}; everything is in {directory}", f"  read {directory / 'report.html'}"]
    return "\n".join(lines)


def evaluated_of(evaluation: Evaluation) -> str:
    """What predicted: a checkpoint, a combination of models, or a table that says no more."""
    if "checkpoint" in evaluation:
        of = evaluation["checkpoint"]
        averaged = f", weights {of['weights']}" if "averaged" in of.get("weights", "") else ""
        return f"{of['file']}, epoch {of['epoch'] + 1}{averaged}"
    if "combination" in evaluation:
        return f"{evaluation['combination']['method']} of {', '.join(evaluation['members'])}"
    return evaluation["table"]


def moved(evaluation: Evaluation) -> list[str]:
    """What the loss learned or adapted by the evaluated checkpoint."""
    lines = []
    for name, how in (("u", "learned"), ("w", "adapted")):
        values = [f"{key[2:]} {v:.3f}" for key, v in evaluation.get("loss", {}).items() if key.startswith(f"{name}/")]
        lines += [f"{name} of uncertain labels, {how}: {', '.join(values)}"] if values else []
    return lines


def units(result: SplitResult) -> str:
    """What a result counts: studies or images."""
    return "images" if result["unit"] == "image" else "studies"


def caveats(evaluation: Evaluation) -> list[str]:
    """What to know before any number is read: what is scored besides certain labels; whether a stack judges its own fit."""
    return [*scoring(evaluation), *([IN_SAMPLE] if in_sample(evaluation) else [])]


def scoring(evaluation: Evaluation) -> list[str]:
    """What labels that are not certain count as, in words; nothing where they are ignored."""
    words = {"blank": "labels that are not mentioned", "uncertain": "uncertain labels"}
    scored = asdict(Scoring.of(evaluation))
    said = [f"{words[kind]} are scored as {value}" for kind, value in scored.items() if value != getattr(CERTAIN, kind)]
    return [" and ".join(said)] if said else []


def macro_notes(result: SplitResult) -> list[str]:
    """Which findings each mean is over, and why others are not; nothing of a single one."""
    labels, macro = result["labels"], result["macro"]
    if len(labels) == 1:
        return []
    alike: dict[tuple[str, ...], list[str]] = {}
    for metric in (m for m in METRICS if m in macro):
        alike.setdefault(tuple(macro[metric]["labels"]), []).append(metric)
    notes = []
    for kept, metrics in alike.items():
        which = "" if len(alike) == 1 else f" of {', '.join(m.replace('_', ' ') for m in metrics)}"
        out = [f"{name} ({labels[name][metrics[0]]['reason']})" for name in labels if name not in kept]
        notes.append(f"macro{which} over {len(kept)} of {len(labels)} findings" + f", without {', '.join(out)}" * bool(out))
    return notes


def tie_notes(result: SplitResult) -> list[str]:
    """Where studies of both classes have a probability of exactly 0 or 1, whose order is lost: what that may do to a number."""
    notes = []
    for label, tied in result.get("ties", {}).items():
        at = (("0", tied["0"]), ("1", tied["1"]))
        found = [f"{p} positive and {n} negative {units(result)} are exactly {value}" for value, (p, n) in at if p and n]
        low, high = tied["auroc"]
        notes.append(
            f"ties: probabilities of {label} of {' and '.join(found)}, and there is no logit_{label}: they rank as equal. AUROC "
            f"{number(result['labels'][label]['auroc'])} would lie from {low:.3f} to {high:.3f} were their order known, and "
            "average precision depends on it too"
        )
    return notes


def rules(points: Mapping[str, OperatingPoint]) -> str:
    """What operating points were chosen for, in words."""
    return "; ".join(f"{name}: {point['rule']}" for name, point in points.items())


def chosen_on(points: Mapping[str, OperatingPoint]) -> str | None:
    """The split that operating points were chosen on; None where none was."""
    return next((point["chosen_on"] for point in points.values() if point["chosen_on"]), None)


def after_temperature(found: LabelCalibration) -> list[str]:
    """A finding's temperature, and its ECE and Brier score with it; dashes where there is none."""
    t, after = found["temperature"]["value"], found["after"]
    return ["-" if t is None else f"{t:.3f}", *([number(after["ece"]), number(after["brier"])] if after else ["-", "-"])]


def exclusive_note(result: SplitResult) -> str:
    """How often the likeliest class is the true one, in words, without a full stop."""
    accuracy, kappa = result["exclusive"]["accuracy"], result["exclusive"]["kappa"]
    return f"The likeliest class: accuracy {number(accuracy)}, kappa {number(kappa)}, n {accuracy['n']}"
