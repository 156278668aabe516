"""What dashboards get of a run at its end, and of what is made of runs' tables; see :mod:`xraylab.training.loggers.wandb`.

``wandb.json`` in a run directory says which W&B run it is: ``id, project, entity, group, offline``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from xraylab.config.settings import mode_of
from xraylab.data.study_table import SYNTHETIC
from xraylab.evaluation.metrics import ABSENT, METRICS
from xraylab.evaluation.objective import said_of
from xraylab.evaluation.predictions import THRESHOLD
from xraylab.evaluation.probabilities import logit
from xraylab.evaluation.result import Evaluation, by_unit, in_sample
from xraylab.run import Run
from xraylab.training.loggers.record import read_record, tags_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pytorch_lightning.loggers import Logger

    from xraylab.training.loggers.wandb import Wandb

COLUMNS = ("picture", "id", "finding", "prediction", "probability", "truth", "right", "confidence", "what")
ACROSS = 6  # pictures in a row of a sheet


def send_results(loggers: Sequence[Logger], evaluation: Evaluation, directory: Path) -> None:
    """Send what a run ends with to its loggers: the metrics by study of the checkpoint that was evaluated, curves, pictures.

    ``test/<label>/<metric>`` and ``test/macro/<metric>``, with ``test/n``, and 0 or 1 as ``test/selected_on`` (none where it is
    not known), ``in_sample`` and ``synthetic``; those of valid, which also have a history, as ``best/valid/...``;
    pictures as ``test/roc``, ``test/pr``, ``test/confusion``, ``test/calibration`` and, by image, ``test/roc_images``; the
    cases, most confident mistakes first, as ``test/cases``: to W&B a table, to others one picture. To W&B also the best value of
    every metric of the history, the checkpoint and the tables; of a job of a sweep, as ``not_comparable``, with which jobs before
    it its objective cannot be compared.

    Args:
        evaluation: the content of ``evaluation.json``.
        directory: of the run, with ``figures``.
    """
    from pytorch_lightning.loggers import TensorBoardLogger

    from xraylab.training.loggers.base import Unfailing
    from xraylab.training.loggers.wandb import Wandb

    checkpoint = evaluation.get("checkpoint", {"step": 0})
    step = int(checkpoint["step"])
    metrics = _final_metrics(evaluation)
    figures = [p for split in evaluation["splits"] for p in sorted((directory / "figures").glob(f"{split}_*.png"))]
    pictures = {path.stem.replace("_", "/", 1): path for path in figures}
    cases = ranked_cases(directory)

    def send(logger: Logger) -> None:
        if isinstance(logger, Wandb):
            for key, path in pictures.items():
                logger.log_image(key, [str(path)])
            if cases is not None:
                logger.log_metrics({f"{cases['split'].iloc[0]}/cases": _wandb_table(cases)})
            if logger.artifacts:
                _log_artifacts(logger, evaluation, directory)
            about = {f"best/{k}": checkpoint[k] for k in ("epoch", "step", "weights") if k in checkpoint}
            if (why := said_of(directory)) is not None:
                about["not_comparable"] = why
            logger.summarise({**best_values(directory), **metrics, **about})
            return
        logger.log_metrics(metrics, step)
        for key, path in pictures.items():
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(key, _pixels(path), step, dataformats="HWC")
            elif hasattr(logger, "log_image"):
                logger.log_image(key, [str(path)])
        if cases is not None and isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(f"{cases['split'].iloc[0]}/cases", sheet(cases), step)

    for logger in loggers:
        if isinstance(logger, Unfailing):
            logger.safely(lambda logger=logger: send(logger))  # type: ignore[misc]
        else:
            send(logger)


def _final_metrics(evaluation: Evaluation) -> dict[str, Any]:
    """The numbers of :func:`send_results`, by key."""
    metrics = {
        f"{'best/' * (split == 'valid')}{split}/{name}/{metric}": values[metric]["value"]
        for split, result in by_unit(evaluation)
        for name, values in {**result["labels"], "macro": result["macro"]}.items()
        for metric in METRICS
        if result["unit"] == "study" and values.get(metric, ABSENT)["value"] is not None
    }
    for split, result in evaluation["splits"].items():  # what the numbers are of
        about_split = {"n": result["n"], "selected_on": result["selected_on"]}
        metrics |= {f"{'best/' * (split == 'valid')}{split}/{k}": int(v) for k, v in about_split.items() if v is not None}
    metrics["in_sample"] = int(in_sample(evaluation))
    metrics["synthetic"] = int(evaluation["data"] == SYNTHETIC)
    return metrics


def best_values(directory: Path) -> dict[str, dict[str, float]]:
    """The best value of every metric in ``history.csv``, of all sessions of a run: ``{"valid/loss": {"min": 0.4}, …}``."""
    path = Run(directory).history_file
    history = pd.read_csv(path) if path.is_file() else pd.DataFrame()
    names = [c for c in map(str, history) if (c.startswith("valid/") or c == "train/loss") and history[c].notna().any()]
    return {name: {mode_of(name): float(getattr(history[name], mode_of(name))())} for name in names}


def ranked_cases(directory: Path) -> pd.DataFrame | None:
    """``figures/cases/cases.csv`` for a dashboard: mistakes first, each kind by falling confidence; None where there is none.

    Returns:
        Columns ``COLUMNS``, ``logit``, ``split`` and ``data``; picture is a path, confidence the probability of what was called.
    """
    from xraylab.inference.cases import FOLDER

    path = directory / FOLDER / "cases.csv"
    if not path.is_file():
        return None
    cases = pd.read_csv(path, dtype={"id": str, "picture": str, "what": str, "label": str}, keep_default_na=False)
    if cases.empty:
        return None
    called = cases["p"] >= THRESHOLD
    words = {True: "positive", False: "negative"}
    logits = cases["logit"] if "logit" in cases else logit(cases["p"].to_numpy())  # cases of before have none
    out = cases.rename(columns={"label": "finding", "p": "probability"}).assign(
        picture=[str(directory / FOLDER / name) for name in cases["picture"]],
        prediction=called.map(words),
        truth=(cases["y"] == 1).map(words),
        right=called == (cases["y"] == 1),
        confidence=cases["p"].where(called, 1 - cases["p"]),
        logit=logits,
    )
    order = out.assign(distance=out["logit"].abs()).sort_values(["right", "distance"], ascending=[True, False], kind="stable")
    return order.drop(columns="distance").reset_index(drop=True)


def sheet(cases: pd.DataFrame) -> Figure:
    """The cases' pictures in reading order, each with what was called of it and what is true.

    Args:
        cases: of :func:`ranked_cases`.
    """
    from matplotlib.figure import Figure
    from matplotlib.image import imread

    from xraylab.reporting.figures.layout import spaced

    rows = -(-len(cases) // ACROSS)
    figure = Figure(figsize=(2.0 * ACROSS, 2.5 * rows + 0.4))
    grid = spaced(figure, rows, ACROSS, (0.05, 0.05, 0.05, 0.95), 0.08, 0.55)
    for axes in grid:
        axes.set_axis_off()
    for axes, case in zip(grid, cases.to_dict("records"), strict=False):
        axes.imshow(imread(case["picture"]), cmap="gray", vmin=0, vmax=1)
        axes.set_title(
            f"{case['finding']}: p {case['probability']:.3f}\ntruth {case['truth']}\n{case['id']}",
            fontsize=7, color="#1a7f37" if case["right"] else "#cf222e",
        )  # fmt: skip
    figure.suptitle(f"{cases['split'].iloc[0]}: {cases['data'].iloc[0]}, most confident mistakes first", fontsize=9)
    return figure


def record_made(
    directory: Path, evaluation: Evaluation, config: Mapping[str, Any], members: Sequence[Path], job_type: str
) -> None:  # fmt: skip
    """Log what was made of runs' tables as a W&B run of its own that uses theirs; nothing unless all of them were logged.

    Args:
        directory: a run directory without a model, that of a combination or an ensemble.
        evaluation: the content of its ``evaluation.json``.
        config: what was asked for.
        members: run directories.
        job_type: ``combine`` or ``ensemble``.
    """
    found = [read_record(m) for m in members]
    records = [r for r in found if r is not None]
    if not records or len(records) < len(found):
        return
    group = records[0]["group"] if len({r["group"] for r in records}) == 1 else None
    used = [_tables(r["id"], m) for r, m in zip(records, members, strict=True)]
    _record({**records[0], "group": group}, job_type, evaluation, config, directory, used)


def record_evaluation(directory: Path, evaluation: Evaluation, config: Mapping[str, Any], checkpoint: Path) -> None:
    """Log a repeated evaluation as a W&B run of its own that uses the run's model; nothing unless the run was logged."""
    record = read_record(directory)
    if record is not None:
        _record(record, "evaluate", evaluation, config, directory, [_model(record["id"], directory, checkpoint)])


def _record(
    like: Mapping[str, Any], job_type: str, evaluation: Evaluation, config: Mapping[str, Any], directory: Path,
    used: Sequence[Any],
) -> None:  # fmt: skip
    """Log an evaluation as a run of its own, where the run of the record ``like`` was logged, that uses these artifacts."""
    from xraylab.training.loggers.wandb import Wandb, finish

    logger = Wandb(str(directory), like["offline"], project=like["project"], entity=like["entity"])
    logger.of_run(directory, job_type, like["group"], tags_of(evaluation["data"]))
    try:
        logger.log_hyperparams({"data": evaluation["data"], **config})
        for artifact in used:
            logger.safely(lambda artifact=artifact: logger.use(artifact))  # type: ignore[misc]
        send_results([logger], evaluation, directory)
    except BaseException as error:
        finish([logger], error)
        raise
    finish([logger])


def _log_artifacts(logger: Wandb, evaluation: Evaluation, directory: Path) -> None:
    """The checkpoint that was evaluated, and the tables."""
    run_id = logger.artifacts_of or logger.experiment.id
    checkpoint = evaluation.get("checkpoint")
    if checkpoint is not None and logger.artifacts_of is None:  # else an evaluation, which makes none
        artifact = _model(run_id, directory, directory / "checkpoints" / checkpoint["file"])
        artifact.metadata = {**checkpoint, "data": evaluation["data"]}
        logger.experiment.log_artifact(artifact, aliases=["latest", checkpoint["file"].removesuffix(".ckpt")])
    logger.experiment.log_artifact(_tables(run_id, directory))


def _model(run_id: str, directory: Path, checkpoint: Path) -> Any:
    import wandb

    artifact = wandb.Artifact(f"model-{run_id}", "model")
    artifact.add_file(str(checkpoint), checkpoint.name)
    artifact.add_file(str(Run(directory).config_file), "config.yaml")
    return artifact


def _tables(run_id: str, directory: Path) -> Any:
    import wandb

    artifact = wandb.Artifact(f"predictions-{run_id}", "predictions")
    for path in sorted((directory / "predictions").glob("*.csv")):
        artifact.add_file(str(path), f"predictions/{path.name}")
    for name in ("evaluation.json", "operating_points.json"):
        if (directory / name).is_file():
            artifact.add_file(str(directory / name), name)
    return artifact


def _wandb_table(cases: pd.DataFrame) -> Any:
    import wandb

    table = wandb.Table(columns=list(COLUMNS))
    for case in cases.to_dict("records"):
        table.add_data(wandb.Image(case["picture"]), *(case[c] for c in COLUMNS[1:]))
    return table


def _pixels(path: Path) -> Any:
    """uint8 (H,W,3)."""
    from matplotlib.image import imread

    return (imread(path)[..., :3] * 255).round().astype("uint8")
