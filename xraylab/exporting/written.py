"""Writing a run as one file, whole or not at all, once it says what xraylab says."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import xraylab.exporting.parity as parity
from xraylab.data.study_table import SYNTHETIC
from xraylab.evaluation.result import Chosen
from xraylab.exporting.about import said
from xraylab.exporting.formats import EXAMPLE, input_shapes, opened, require_extra, traced, write
from xraylab.exporting.runs import inputs_of, leaves, models_of, program_of
from xraylab.system.files import beside

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes:
        parity: how far it is from xraylab.
        inputs: names of its inputs.
        size: bytes.
        synthetic: a model, or a study it was compared on, is of the synthetic sample.
    """

    parity: parity.Parity
    inputs: list[str]
    size: int
    synthetic: bool


def export(
    run: Path, kind: str, output: Path, temperatures: Mapping[str, float], chosen: Chosen, checkpoint: str = "best",
    root: str | None = None, studies: int = 8,
) -> Exported:  # fmt: skip
    """Write a run as one file and compare it with xraylab before it gets its name.

    Args:
        run: its directory, also of a combination, or a checkpoint.
        kind: one of :data:`xraylab.exporting.FORMATS`.
        temperatures: to apply, by label; empty: none.
        chosen: on validation, the content of ``operating_points.json``; empty: not known.
        checkpoint: ``best``, ``last`` or a file.
        root: where the run's own data is now; None: where the run found it.
        studies: of the run's own data that it is compared on, at most.

    Raises:
        UserError: a package is missing, the run cannot be one file, or a probability differs by more than 1e-4; nothing is left.
    """
    require_extra(kind)
    models = models_of(run, checkpoint)
    inputs = inputs_of(models)
    program = program_of(models, list(inputs), temperatures)
    own = parity.own_studies(models, root, checkpoint, studies)
    size = parity.own_size(models, own)
    if own is not None and size is not None:
        own = parity.of_size(own, size)
    asked = [*([own] if own is not None else []), parity.drawn_studies(models, size)]
    colour = {seen: leaf.module.images["channels"] == 3 for leaf in leaves(models) for seen in leaf.sees}
    examples = [(2 + k, *(size or EXAMPLE), *((3,) if colour[seen] else ())) for k, seen in enumerate(inputs)]
    log.info("tracing the network")
    graph = traced(program, examples)
    about = said(models, program, inputs, input_shapes(graph), temperatures, chosen)
    log.info("writing %s", kind)
    with beside(output) as partial:
        write(kind, graph, partial, list(inputs.values()), about)
        ask = opened(kind, partial, list(inputs.values()))
        log.info("comparing it with xraylab")
        found = parity.compared(ask, program.labels, inputs, temperatures, asked)
        parity.require_parity(found, output)
    of_sample = SYNTHETIC in {leaf.module.data for leaf in leaves(models)} or any(of.synthetic for of in asked)
    return Exported(found, list(inputs.values()), output.stat().st_size, of_sample)
