"""A run's model card: what is known is written, what is not is marked to be filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from xraylab.data.study_table import SYNTHETIC
from xraylab.evaluation.ensembles.combination import IN_SAMPLE, Combination
from xraylab.evaluation.metrics import COUNTS
from xraylab.evaluation.result import Evaluation, choices, in_sample, last_split
from xraylab.reporting.frame import render
from xraylab.run import Run, read_config
from xraylab.system.files import write_text

CARD = "MODEL_CARD.md"
BLANK = "[to be filled]"
UNKNOWN = "not known"
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


def write_card(directory: Path) -> Path:
    """Write ``MODEL_CARD.md`` of a run directory from its evaluation, configuration and environment.

    What people wrote into the sections of ``OWN`` of an earlier card stays.
    """
    path, run, place = directory / CARD, Run(directory), directory.absolute()
    kept = _own_sections(path.read_text(encoding="utf-8")) if path.is_file() else {}
    blanks = {title: "\n".join(f"- {question}: {BLANK}" for question in asked) for title, asked in OWN.items()}
    evaluation: Evaluation = run.evaluation
    settings: Any = OmegaConf.to_container(read_config(directory)) if run.config_file.is_file() else {}
    card = render(
        "model_card.md", place=f"{place.parent.name}/{place.name}", synthetic=evaluation["data"] == SYNTHETIC,
        own={title: kept.get(title) or blank for title, blank in blanks.items()}, blank=BLANK, unknown=UNKNOWN,
        evaluation=evaluation, last=last_split(evaluation)[0], limits=limits(evaluation), data=data_tables(evaluation),
        model=[*model_summary(directory), *_model(evaluation, settings)], coefficients=coefficient_rows(evaluation),
        settings=settings, made=_made(run.environment, evaluation.get("evaluated", {})),
    )  # fmt: skip
    write_text(path, card)
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
    if False not in held:
        known = "is known to be" if None in held else "is"
        found.append(f"No split {known} held out from all choices: how well the model does on new studies is not known.")
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


def model_summary(directory: Path) -> list[str]:
    """The first lines of a run's ``model_summary.txt``; nothing of a combination, which has none."""
    path = directory / "model_summary.txt"
    return path.read_text(encoding="utf-8").splitlines()[:2] if path.is_file() else []


def _model(evaluation: Evaluation, settings: Mapping[str, Any]) -> list[str]:
    """The parts of a model, its checkpoint, and how a combination joins its members."""
    lines = []
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
    if "combination" in evaluation:
        made = Combination.of_record(evaluation["combination"])
        lines += [f"method {made.method}: {WAYS[made.method]}", *made.said()]
        if made.groups:
            lines.append(f"groups: {', '.join(f'{g} by {name}' for g, name in zip(made.groups, made.names, strict=True))}")
        if made.chosen:
            found = [f"{label} by {of['member']}" for label, of in made.chosen.items()]
            lines.append(f"chosen by the AUROC of valid: {', '.join(found)}")
    return lines


def coefficient_rows(evaluation: Evaluation) -> list[list[Any]]:
    """Of each finding of a stack: the coefficients of the members' logits, the intercept, n and positives."""
    return [
        [label, *(f"{x:.3f}" for x in (*v["coefficients"].values(), v["intercept"])), v["n"], v["positives"]]
        for label, v in (evaluation.get("combination", {}).get("labels") or {}).items()
        if v["coefficients"] is not None
    ]


def data_tables(evaluation: Evaluation) -> list[tuple[list[str], list[list[Any]]]]:
    """Two tables, a head and rows: of each split, and of its labels; of train too where it is known."""
    rows, counts = [], []
    if train := evaluation.get("trained_on"):
        rows.append(["train", train["n"], UNKNOWN if train["patients"] is None else train["patients"], "trained on"])
        counts += [["train", label, *(of[k] for k in COUNTS)] for label, of in train.get("labels", {}).items()]
    for split, r in evaluation["splits"].items():
        rows.append([split, r["n"], UNKNOWN if r["patients"] is None else r["patients"], choices(r["selected_on"])])
        counts += [[split, label, *(m[c]["value"] for c in COUNTS)] for label, m in r["labels"].items()]
    head = ["split", "finding", "positive", "negative", "uncertain", "blank"]
    return [(["split", "studies", "patients", "use"], rows), (head, counts)]


def _made(record: Mapping[str, Any], evaluated: Mapping[str, Any]) -> list[str]:
    """Commands, seed, versions and commit."""
    versions, git = record.get("versions", {}), record.get("git")
    lines = [
        _code(record["command"]) if "command" in record else "",
        f"seed {record['seed']}" if "seed" in record else "",
        ", ".join(f"{k} {versions[k]}" for k in ("xraylab", "python", "torch") if k in versions),
        f"evaluated anew: {_code(evaluated['command'])}" if record and evaluated else "",
        f"commit {git['commit']}{', with changes' if git['modified'] else ''}" if git else "",
    ]
    return [line for line in lines if line]


def _code(text: str) -> str:
    """A text in Markdown, letter by letter."""
    marks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{marks}{text}{marks}"


def _own_sections(text: str) -> dict[str, str]:
    found = re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    return {title.strip(): body.strip() for title, body in found if title.strip() in OWN}
