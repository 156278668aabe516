"""A run's model card: what is known is written, what is not is marked to be filled in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from xraylab.data.study_table import SYNTHETIC
from xraylab.evaluation.ensembles.combination import IN_SAMPLE, Combination
from xraylab.evaluation.metrics import COUNTS, METRICS, how_intervals, number, numbers, without_interval
from xraylab.evaluation.operating_points import threshold_text, trivial
from xraylab.evaluation.result import Evaluation, SplitResult, choices, in_sample, last_split
from xraylab.run import Run, read_config
from xraylab.system.files import write_text

CARD = "MODEL_CARD.md"
BLANK = "[to be filled]"
UNKNOWN = "not known"  # the selection of tables that no run says it of
FEW = 20  # positives or negatives, below which a result is called uncertain
OWN = {  # sections that people write, with what they are asked
    "Intended use": ["What for", "By whom", "On which patients and devices", "What it must not be used for"],
    "Further limits": ["Sites, devices and patients that are missing", "Known failures"],
    "Licence": ["Of the data", "Of the weights"],
}
WAYS = {  # of joining members
    "stack": "a logistic regression a finding on the members' logits",
    "mean": "the mean of the members' probabilities",
    "vote": "the share of members that call a finding positive",
    "own": "each study by the member of its group",
    "best": "each finding by one member",
    "union": "the mean of those members that have the study",
}
OF_SPLITS = ["split", "studies", "patients", "use"]
OF_LABELS = ["split", "finding", "positive", "negative", "uncertain", "blank"]


def write_card(directory: Path) -> Path:
    """Write ``MODEL_CARD.md`` of a run directory from its evaluation, configuration and environment.

    What people wrote into the sections of ``OWN`` of an earlier card stays.
    """
    path = directory / CARD
    kept = _own_sections(path.read_text(encoding="utf-8")) if path.is_file() else {}
    blanks = {title: "\n".join(f"- {question}: {BLANK}" for question in asked) for title, asked in OWN.items()}
    own = {title: kept.get(title) or blank for title, blank in blanks.items()}
    evaluation = Run(directory).evaluation
    record = _json(Run(directory).environment_file)
    config = Run(directory).config_file
    settings: dict[str, Any] = OmegaConf.to_container(read_config(directory)) if config.is_file() else {}  # type: ignore[assignment]
    summary = directory / "model_summary.txt"
    lines = summary.read_text(encoding="utf-8").splitlines()[:2] if summary.is_file() else []
    sections = {
        "Intended use": own["Intended use"],
        "Model": _model(evaluation, settings, lines),
        "Data": _data(evaluation),
        "Preprocessing": _preprocessing(settings),
        "Results": _results(evaluation),
        "Operating points": _operating(evaluation),
        "Calibration": _calibration(evaluation),
        "Subgroups": _subgroups(evaluation),
        "Known limits": "\n".join(f"- {limit}" for limit in limits(evaluation)),
        "Further limits": own["Further limits"],
        "Licence": own["Licence"],
        "How it was made": _made(record, evaluation.get("evaluated", {})),
    }
    warning = "**Synthetic sample: every number here is about drawings and means nothing for patients.**\n\n"
    head = (
        f"# Model card: {directory.absolute().parent.name}/{directory.absolute().name}\n\n"
        f"{warning if evaluation['data'] == SYNTHETIC else ''}"
        f"Written from the run, again at every evaluation. What is written under {', '.join(OWN)} is kept.\n"
    )
    body = "\n\n".join(f"## {title}\n\n{text.strip() or 'Not known.'}" for title, text in sections.items())
    write_text(path, f"{head}\n{body}\n")
    return path


def limits(evaluation: Evaluation) -> list[str]:
    """What is known to limit a result, a sentence each."""
    found = []
    if evaluation["data"] == SYNTHETIC:
        found.append("The data is a synthetic sample.")
    splits = evaluation["splits"]
    for split, result in splits.items():
        if result["selected_on"]:
            found.append(f"{split}: choices were made on these studies, so its results are too good.")
        if result["patients"] is None:
            found.append(f"{split}: patients are not known, so one may be in two splits; intervals are over studies.")
        if result["selected_on"] is None:
            found.append(f"{split}: it is not known whether choices were made on these studies, or models trained on them.")
    if in_sample(evaluation):
        found.append(f"The combination was {IN_SAMPLE}.")
    held = [r["selected_on"] for r in splits.values()]
    if False not in held and None in held:
        found.append("No split is known to be held out from all choices: how well the model does on new studies is not known.")
    elif False not in held:
        found.append("No split is held out from all choices: how well the model does on new studies is not known.")
    if evaluation.get("selection", UNKNOWN) == UNKNOWN:
        found.append("Of which data the studies are, and how well the model does elsewhere, is not known.")
    else:
        found.append("All splits are of one data set: how well the model does elsewhere is not known.")
    for split, result in splits.items():
        few, undefined = [], []
        for label, m in result["labels"].items():
            if m["auroc"]["value"] is None:
                undefined.append(f"{label} ({m['auroc']['reason']})")
                continue
            positives, negatives = (m[kind]["value"] or 0 for kind in ("positives", "negatives"))
            if min(positives, negatives) < FEW:
                few.append(f"{label} ({positives} positive, {negatives} negative)")
        if undefined:
            found.append(f"{split}: the AUROC is undefined for {', '.join(undefined)}.")
        if few:
            found.append(f"{split}: fewer than {FEW} positive or negative studies, so little is known of {', '.join(few)}.")
        uncertain = sum(m["uncertain"]["value"] or 0 for m in result["labels"].values())
        how = evaluation.get("scored", {}).get("uncertain", "ignore")
        if uncertain:
            found.append(f"{split}: {uncertain} labels are uncertain; they are scored as: {how}.")
    for kind, names in evaluation.get("skipped", {}).items():
        found.append(f"Left out of the data: {len(names)} {kind}.")
    return found


def _model(evaluation: Evaluation, settings: Mapping[str, Any], summary: Sequence[str]) -> str:
    lines = list(summary)
    for group in ("backbone", "pool", "loss"):
        node = settings.get(group)
        if isinstance(node, dict):
            values = ", ".join(f"{k} {v}" for k, v in node.items() if k != "_target_" and not isinstance(v, dict | list))
            lines.append(f"{group}: {str(node.get('_target_')).rsplit('.', 1)[-1]}{f' ({values})' if values else ''}")
    if of := evaluation.get("checkpoint"):
        lines.append(f"checkpoint: {of['file']}, epoch {of['epoch'] + 1}, chosen by {of['monitor']}")
        lines += [f"weights: {of['weights']}"] if "averaged" in of.get("weights", "") else []
    if evaluation.get("members"):
        lines.append(f"joined from: {', '.join(map(str, evaluation['members']))}")
    if "combination" not in evaluation:
        return _list(lines)
    return "\n\n".join(part for part in (_list([*lines, *_joined(evaluation)]), _coefficients(evaluation)) if part)


def _joined(evaluation: Evaluation) -> list[str]:
    """How a combination joins its members."""
    made = Combination.of_record(evaluation["combination"])
    lines = [f"method {made.method}: {WAYS[made.method]}", *made.said()]
    if made.groups:
        lines.append(f"groups: {', '.join(f'{g} by {name}' for g, name in zip(made.groups, made.names, strict=True))}")
    if made.chosen:
        found = [f"{label} by {of['member']}" for label, of in made.chosen.items()]
        lines.append(f"chosen by the AUROC of valid: {', '.join(found)}")
    return lines


def _coefficients(evaluation: Evaluation) -> str:
    """Those of a stack, of the members' logits; empty where nothing was fitted."""
    labels = Combination.of_record(evaluation["combination"]).labels or {}
    rows = [
        [label, *(f"{x:.3f}" for x in (*v["coefficients"].values(), v["intercept"])), v["n"], v["positives"]]
        for label, v in labels.items()
        if v["coefficients"] is not None
    ]
    return _table(["coefficients", *evaluation["members"], "intercept", "n", "positives"], rows) if rows else ""


def data_rows(evaluation: Evaluation) -> tuple[list[list[Any]], list[list[Any]]]:
    """Rows of :data:`OF_SPLITS` and of :data:`OF_LABELS`, of train too where it is known."""
    rows, counts = [], []
    train = evaluation.get("trained_on")
    if train:
        rows.append(["train", train["n"], "not known" if train["patients"] is None else train["patients"], "trained on"])
        counts += [["train", label, *(of[k] for k in COUNTS)] for label, of in train.get("labels", {}).items()]
    for split, r in evaluation["splits"].items():
        patients = "not known" if r["patients"] is None else r["patients"]
        rows.append([split, r["n"], patients, choices(r["selected_on"])])
        counts += [[split, la, *(m[c]["value"] for c in COUNTS)] for la, m in r["labels"].items()]
    return rows, counts


def _data(evaluation: Evaluation) -> str:
    rows, counts = data_rows(evaluation)
    scored = evaluation.get("scored", {})
    said = "".join(f" {k.capitalize()} labels: {v} in validation and test." for k, v in scored.items())
    return (
        f"{evaluation['data']}; splits by selection {evaluation.get('selection', UNKNOWN)}.{said}\n\n"
        f"{_table(OF_SPLITS, rows)}\n\n{_table(OF_LABELS, counts)}"
    )


def _preprocessing(settings: Mapping[str, Any]) -> str:
    image = settings.get("image")
    if not isinstance(image, dict):
        return ""
    size = f"resized to {image['size']} x {image['size']} pixels" if image.get("size") else "as large as they are"
    lines = [f"images are {size}"]
    if image.get("rescale"):
        lines.append("each volume, or view, is stretched to the full range 0-255")
    for key in ("mean", "std"):
        lines.append(f"{key}: {'of the backbone' if image.get(key) is None else image[key]}, on the scale 0-255")
    lines.append(
        f"trained by {settings.get('unit', 'study')}, with {'random changes' if _augmented(settings) else 'no random changes'}"
    )
    return _list(lines)


def _augmented(settings: Mapping[str, Any]) -> bool:
    node = settings.get("augmentation")
    return isinstance(node, dict) and bool(node.get("transforms"))


def _results(evaluation: Evaluation) -> str:
    parts = []
    for split, r in evaluation["splits"].items():
        rows = [[label, m["auroc"]["n"], *numbers(m)] for label, m in r["labels"].items()]
        if len(r["labels"]) > 1:
            rows.append(["macro", r["macro"]["auroc"]["n"], *numbers(r["macro"])])
        called = f"called positive at or above (>=) {r['threshold']}"
        note = f"{split}, by {r['unit']}; {choices(r['selected_on'])}; {called}; {how_intervals(r)}:"
        parts.append(f"{note}\n\n{_table(['finding', 'n', *(k.replace('_', ' ') for k in METRICS)], rows)}")
        parts += [f"{'; '.join(lacking)}." for lacking in [without_interval({**r["labels"], "macro": r["macro"]})] if lacking]
        if "exclusive" in r:
            parts.append(f"{exclusive_note(r)}.")
    return "\n\n".join(parts)


def exclusive_note(result: SplitResult) -> str:
    """How often the likeliest class is the true one, in words, without a full stop."""
    accuracy, kappa = result["exclusive"]["accuracy"], result["exclusive"]["kappa"]
    return f"The likeliest class: accuracy {number(accuracy)}, kappa {number(kappa)}, n {accuracy['n']}"


def _operating(evaluation: Evaluation) -> str:
    split, result = last_split(evaluation)
    points = result.get("operating_points")
    if not points:
        return ""
    shown = ("sensitivity", "specificity", "ppv", "npv", "kappa")
    rows = [
        [label, name, threshold_text(f["threshold"]), *(number(f[k]) for k in shown), f["kappa"]["n"]]
        for name, point in points.items()
        for label, f in point["labels"].items()
    ]
    rules = "; ".join(f"{name}: {point['rule']}" for name, point in points.items())
    chosen = {str(p["chosen_on"]) for p in points.values() if p["chosen_on"]}
    where = f"chosen on {', '.join(sorted(chosen))}" if chosen else "not chosen"
    note = " On the studies that chose them, the numbers of chosen thresholds are too good." if split in chosen else ""
    note += "".join(f" Trivial: {line}." for line in trivial(points))
    said = f"{split}, called positive at or above (>=) the threshold; thresholds {where}"
    return f"{said}. {rules}.{note}\n\n{_table(['finding', 'point', 'threshold', *shown, 'n'], rows)}"


def _calibration(evaluation: Evaluation) -> str:
    split, result = last_split(evaluation)
    block = result.get("calibration")
    if not block:
        return ""
    rows = []
    for label, f in block["labels"].items():
        t, after = f["temperature"]["value"], f["after"]
        changed = [number(after["ece"]), number(after["brier"])] if after else ["-", "-"]
        rows.append([label, number(f["ece"]), number(f["brier"]), "-" if t is None else f"{t:.3f}", *changed, f["n"]])
    head = ["finding", "ECE", "Brier", "temperature", "ECE after", "Brier after", "n"]
    where = block["chosen_on"] or "nothing: there is no validation split"
    note = " On the studies that it was fitted on, what is after is too good." if split == block["chosen_on"] else ""
    about = f"{split}, ECE over {block['bins']} bins of equal width; temperature of {where}.{note}"
    return f"{about}\n\n{_table(head, rows)}"


def _subgroups(evaluation: Evaluation) -> str:
    split, result = last_split(evaluation)
    if len(result["groups"]) < 2:
        return f"One group only: {', '.join(result['groups'])}. Age, sex and site: {BLANK}"
    rows = [
        [group, label, m["auroc"]["n"], *(number(m[k]) for k in ("auroc", "kappa", "sensitivity", "specificity"))]
        for group, part in result["groups"].items()
        for label, m in part["labels"].items()
    ]
    return f"{split}:\n\n{_table(['group', 'finding', 'n', 'AUROC', 'kappa', 'sensitivity', 'specificity'], rows)}"


def _made(record: Mapping[str, Any], evaluated: Mapping[str, Any]) -> str:
    if not record:
        return ""
    versions = record.get("versions", {})
    git = record.get("git")
    lines = [_code(record["command"]) if "command" in record else "", f"seed {record['seed']}" if "seed" in record else ""]
    lines.append(", ".join(f"{k} {versions[k]}" for k in ("xraylab", "python", "torch") if k in versions))
    lines.append(f"evaluated anew: {_code(evaluated['command'])}" if evaluated else "")
    if git:
        lines.append(f"commit {git['commit']}{', with changes' if git['modified'] else ''}")
    return _list(line for line in lines if line)


def _code(text: str) -> str:
    """A text in Markdown, letter by letter."""
    marks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{marks}{text}{marks}"


def _own_sections(text: str) -> dict[str, str]:
    found = re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    return {title.strip(): body.strip() for title, body in found if title.strip() in OWN}


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    cells = [[str(c).replace("|", r"\|") for c in row] for row in (head, *rows)]
    cells.insert(1, ["---"] * len(head))
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content
