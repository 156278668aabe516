"""Members of an ensemble: runs and prediction tables."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from xraylab.config.instantiate import plain
from xraylab.config.settings import rules_of
from xraylab.data.study_table import SYNTHETIC
from xraylab.errors import UserError, did_you_mean, listed
from xraylab.evaluation.evaluate_tables import EvaluateOptions
from xraylab.evaluation.operating_points import Rules
from xraylab.evaluation.predictions import CERTAIN, SELECTED_ON, PredictionTable, Scoring
from xraylab.evaluation.result import Evaluation, all_selected_on
from xraylab.run import Run, read_config, read_record, run_of, short_names

log = logging.getLogger(__name__)

METHODS = ("stack", "mean", "vote", "own")
SPLITS = ("valid", "test")


@dataclass(frozen=True)
class Member:
    """A run, or a table of predictions."""

    name: str
    path: Path
    tables: dict[str, pd.DataFrame]  # by file name, as in a run's predictions
    evaluation: Evaluation | None  # None of a table
    config: DictConfig | None  # None of a table
    synthetic: bool = False

    @property
    def scoring(self) -> Scoring:
        """How its labels were scored; of a table, which was not, certain ones only."""
        return Scoring.of(self.evaluation) if self.evaluation is not None else CERTAIN


def operating_rules(members: Sequence[Member], given: Mapping[str, float] | None = None) -> Rules:
    """The rules of the operating points: as given, else as in all members; where they differ, the standard ones, and it is said.

    A run's are those of its settings, with what its last evaluation was asked for; tables have none.

    Args:
        given: those that are asked for.

    Raises:
        UserError: a value that it cannot have.
    """
    given, of_runs = given or {}, []
    for member in members:
        if member.evaluation is not None and member.config is not None:
            anew = member.evaluation.get("evaluated", {}).get("options", {})
            asked = {k: anew[k] for k in ("sensitivity", "specificity") if k in anew}
            of_runs.append(rules_of({**plain(OmegaConf.select(member.config, "operating") or {}), **asked}))
    standard = rules_of({})
    common = dict(of_runs[0] if of_runs else standard)
    for key in [k for k in common if k not in given and any(of[k] != common[k] for of in of_runs)]:
        common[key] = standard[key]
        values = listed(dict.fromkeys(str(of[key]) for of in of_runs))
        log.warning("members have different operating.%s (%s): taken is %s.", key, values, standard[key])
    return Rules(**rules_of({**common, **given}))


def same_scoring(scored: Sequence[Scoring], names: Sequence[str]) -> Scoring:
    """What blank and uncertain labels count as in all evaluations, whose names these are.

    Raises:
        UserError: not the same.
    """
    if not scored:
        return CERTAIN
    for name, other in zip(names, scored, strict=True):
        if other != scored[0]:
            raise UserError(f"runs {names[0]} and {name} score labels otherwise: {scored[0]}; {other}")
    return scored[0]


def read_members(paths: Sequence[str], columns: Mapping[str, str], needed: Collection[str] = SPLITS) -> list[Member]:
    """The runs and tables of these paths.

    Args:
        columns: of tables, see :meth:`xraylab.evaluation.predictions.PredictionTable.read`.
        needed: the splits of runs that are combined or fitted on, see :func:`member_of_run`.

    Raises:
        UserError: there are fewer than two, one is there twice, or cannot be read.
    """
    if len(paths) < 2:
        raise UserError(f"runs={listed(paths)}: a combination has two members or more: runs=[<a>,<b>].")
    places = [Path(p) if str(p).lower().endswith(".csv") else run_of(p) for p in paths]
    twice = sorted({str(p) for p in places if [q.resolve() for q in places].count(p.resolve()) > 1})
    if twice:
        raise UserError(f"runs: {listed(twice)} is there twice. Name each member once.")
    return [
        _of_table(path, name, columns) if path.suffix.lower() == ".csv" else member_of_run(path, name, needed)
        for path, name in zip(places, short_names(places), strict=True)
    ]


def member_of_run(path: Path, name: str, needed: Collection[str] = SPLITS) -> Member:
    """A finished run as a member.

    Args:
        needed: splits whose tables are combined or fitted on. Those of the others only show whether a study or a patient is in
            two splits; one that cannot be read is left out, and that is said.

    Raises:
        UserError: its evaluation, settings or a table of a needed split cannot be read.
    """
    evaluation: Any = read_record(Run(path).evaluation_file, "data", "selection", "splits")
    splits = dict.fromkeys(("train", *SPLITS, *evaluation["splits"]))
    config = read_config(path)
    tables = {}
    for split, unit in itertools.product(splits, ("study", "image")):
        if (file := Run(path).predictions(split, unit)).is_file():
            try:
                tables[file.name] = PredictionTable.read(file).frame.drop(columns="data", errors="ignore")
            except UserError as error:
                if split in needed:
                    raise
                log.warning(
                    "%s. It is not needed; whether its studies are in another split too is not checked.", str(error).rstrip(".")
                )
    return Member(name, path, tables, evaluation, config, evaluation["data"] == SYNTHETIC)


def _of_table(path: Path, name: str, columns: Mapping[str, str]) -> Member:
    table = PredictionTable.read(path, columns).frame
    end = "_images.csv" if "image" in table else ".csv"
    synthetic, table = "data" in table, table.drop(columns="data", errors="ignore")
    parts = {f"{split}{end}": part.reset_index(drop=True) for split, part in table.groupby("split", sort=False)}
    return Member(name, path, parts, None, None, synthetic)


def scoring_of_members(runs: Sequence[Member], given: Mapping[str, str]) -> Scoring:
    """What labels count as: as given, else as in all runs; where a run was scored otherwise, that is said.

    Raises:
        UserError: runs were scored otherwise than each other in what is not given.
    """
    try:
        scoring = same_scoring([replace(m.scoring, **given) for m in runs], [m.name for m in runs])
    except UserError as error:
        raise UserError(f"{error}. Say what counts: blank=ignore|negative uncertain=ignore|negative|positive") from None
    scoring = replace(scoring, **given)
    if other := [m.name for m in runs if m.scoring != scoring]:
        log.warning("scored with %s, and %s otherwise: their own numbers are of other labels.", scoring, listed(other))
    return scoring


def common_files(members: Sequence[Member], splits: Sequence[str], asked: bool) -> list[str]:
    """The tables to combine: those of these splits that all members have.

    Raises:
        UserError: a member has a split and another has not, or there is none.
    """
    out = []
    for split in splits:
        file = f"{split}.csv"
        lacking = [m.name for m in members if file not in m.tables]
        if lacking and (asked or len(lacking) < len(members)):
            having = [m.name for m in members if file in m.tables]
            other = f", as {listed(having)} have" if having else ""
            shared = [f[:-4] for f in members[0].tables if f[:-4] in SPLITS and all(f in m.tables for m in members)]
            more = f" What all have is splits=[{','.join(shared)}]." if shared else " They share no split."
            raise UserError(f"there are no predictions of {split} of {listed(lacking)}{other}.{more}")
        out += [f for f in (file, f"{split}_images.csv") if all(f in m.tables for m in members)]
    if not out:
        raise UserError(f"members have no predictions of {' or '.join(splits)}. There are: {listed(members[0].tables)}.")
    return out


def other_splits(files: Sequence[str]) -> str:
    """What to do where members share one split only, as a sentence; nothing where there is one."""
    more = [f.removesuffix(".csv") for f in files if not f.endswith("_images.csv")]
    return f" Where members share one split only, name it, as splits=[{more[-1]}]." if len(more) > 1 else ""


def how_to_evaluate(
    members: Sequence[Member], splits: set[str], bootstrap: int | None, seed: int | None
) -> dict[str, EvaluateOptions]:  # fmt: skip
    """How each split is evaluated, see :func:`xraylab.evaluation.evaluate_tables.evaluate_tables`."""
    out = {}
    for split in sorted(splits):
        found = [m.evaluation["splits"][split] for m in members if m.evaluation is not None and split in m.evaluation["splits"]]
        resamples, drawn = (found[0]["bootstrap"]["resamples"], found[0]["bootstrap"]["seed"]) if found else (1000, 0)
        told = [*(r["selected_on"] for r in found), *[None] * (len(found) < len(members)), *[True] * (split in SELECTED_ON)]
        asked = (resamples if bootstrap is None else bootstrap, drawn if seed is None else seed)
        out[split] = EvaluateOptions(all_selected_on(told), *asked, any("exclusive" in r for r in found))
    return out


def group_of(member: Member, own: str | None) -> str:
    if not own:
        raise UserError("own must be given: the key of the members' settings that names the group of each, as own=body_part.")
    if member.config is None:
        raise UserError(f"method=own: {member.path} is a table, whose settings are not known. Combine runs.")
    value = OmegaConf.select(member.config, own)
    if value is None:
        known = [str(k) for k in member.config]
        raise UserError(f"own={own}: {member.path} has no such setting.{did_you_mean(own, known)}")
    return str(value)


def same_data(members: Sequence[Member]) -> str:
    """What the members' studies are of; the names of tables where no run says it.

    Raises:
        UserError: runs are of other data.
    """
    said = {m.name: m.evaluation["data"] for m in members if m.evaluation}
    if len(set(said.values())) > 1:
        raise UserError(f"runs are of other data: {', '.join(f'{name}: {data}' for name, data in said.items())}.")
    if any(m.synthetic for m in members):
        return SYNTHETIC
    return next(iter(said.values()), ", ".join(m.path.name for m in members))


def described(members: Sequence[Member], scoring: Scoring) -> list[str]:
    """Members' names, with those of their settings, as typed, that not all have, and how they were scored if otherwise."""
    typed: list[list[str]] = []
    for member in members:
        if member.evaluation is None:
            typed.append([])
            continue
        run, own, asked = Run(member.path), asdict(member.scoring), asdict(scoring)
        if not run.environment.get("finished", True):
            log.warning("%s was stopped before its end; it is combined as it is.", member.path)
        words = [w for w in run.words if not w.startswith("hydra.")]
        typed.append(words + [f"scored there with {k} {v}" for k, v in own.items() if v != asked[k]])
    shared = set(typed[0]).intersection(*typed)
    own_words = [" ".join(w for w in of if w not in shared) for of in typed]
    return [f"{m.name} ({w})" if w else m.name for m, w in zip(members, own_words, strict=True)]
