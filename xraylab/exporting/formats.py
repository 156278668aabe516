"""The two formats: how a program is written to a file with what is said of it, and how such a file is run."""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xraylab.errors import UserError, listed
from xraylab.exporting import FORMATS
from xraylab.exporting.program import StudyProgram

ONNX, TORCH = FORMATS
NEEDED: dict[str, tuple[str, ...]] = {ONNX: ("onnx", "onnxscript", "onnxruntime"), TORCH: ()}
OUTPUTS = ("probabilities", "logits")
EXAMPLE = (70, 90)  # height and width of the pictures that a program is traced with, as no other size in it
Ask = Callable[[Mapping[str, np.ndarray]], np.ndarray]  # pictures by input to probabilities


def require_extra(kind: str) -> None:
    """Refuse a format whose packages are not installed.

    Raises:
        UserError: some are not.
    """
    if missing := [name for name in NEEDED[kind] if importlib.util.find_spec(name) is None]:
        raise UserError(f"format={kind} needs {listed(missing)}: pip install 'xraylab[export]'.")


def traced(program: StudyProgram, shapes: Sequence[tuple[int, ...]]) -> torch.export.ExportedProgram:
    """The program as a graph whose number of pictures is free, and their height and width too where the network takes any.

    Args:
        shapes: of an example of each input, (N,H,W) or (N,H,W,3), N at least 2.

    Raises:
        UserError: the network cannot be a graph, or its number of pictures would be fixed.
    """
    free = dict.fromkeys(range(3), torch.export.Dim.AUTO)
    examples = tuple(torch.zeros(shape, dtype=torch.uint8) for shape in shapes)
    try:
        with quiet(), torch.no_grad():
            found = torch.export.export(program.eval(), examples, dynamic_shapes=((free,) * len(examples),), strict=False)
    except UserError:
        raise
    except Exception as error:  # of many kinds, whatever in a network is not for a graph
        raise UserError(f"this network cannot be exported: torch.export says: {_first_line(error)}") from error
    for shape in input_shapes(found):
        if isinstance(shape[0], int):
            raise UserError(f"this network cannot be exported: it would take {shape[0]} pictures, and no other number of them.")
    return found


def input_shapes(graph: torch.export.ExportedProgram) -> list[tuple[int | None, ...]]:
    """Shapes of the inputs; None: any."""
    named = {node.name: node for node in graph.graph.nodes if node.op == "placeholder"}
    values = [named[name].meta["val"] for name in graph.graph_signature.user_inputs]
    return [tuple(size if isinstance(size, int) else None for size in value.shape) for value in values]


def write(kind: str, graph: torch.export.ExportedProgram, path: Path, inputs: Sequence[str], about: Mapping[str, Any]) -> None:
    """Write a file.

    Args:
        kind: ``onnx`` or ``torch_export``.
        inputs: their names.
        about: what is said of it, each value as JSON.

    Raises:
        UserError: the network has an operation that the format has not.
    """
    said = {key: json.dumps(value, ensure_ascii=False, allow_nan=False) for key, value in about.items()}
    if kind == TORCH:
        with path.open("wb") as file:
            torch.export.save(graph, file, extra_files=said)
        return
    outputs = OUTPUTS[: len(graph.graph_signature.user_outputs)]
    axes = [
        {axis: name for axis, (size, name) in enumerate(zip(shape[:3], axis_names(of, len(inputs)), strict=True)) if size is None}
        for of, shape in zip(inputs, input_shapes(graph), strict=True)
    ]
    try:
        with quiet():
            made: Any = torch.onnx.export(
                graph, input_names=list(inputs), output_names=list(outputs), dynamo=True, external_data=False, verbose=False
            )
    except Exception as error:  # of many kinds, whatever has no operator there
        said_there = _first_line(error)
        raise UserError(
            f"this network cannot be written as ONNX: torch.onnx says: {said_there}; format=torch_export may."
        ) from error
    model = made.model_proto
    for value, names in zip(model.graph.input, axes, strict=True):
        for axis, name in names.items():
            value.type.tensor_type.shape.dim[axis].dim_param = name
    for key, text in said.items():
        model.metadata_props.add(key=key, value=text)
    path.write_bytes(model.SerializeToString())


def axis_names(name: str, inputs: int) -> tuple[str, str, str]:
    """Names of the first three axes of an input."""
    end = "" if inputs == 1 else f"_{name.removeprefix('images_')}"
    return f"pictures{end}", f"height{end}", f"width{end}"


def opened(kind: str, path: Path, inputs: Sequence[str]) -> Ask:
    """What runs a file as another program does.

    Args:
        inputs: their names, in order.
    """
    if kind == ONNX:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return lambda pictures: session.run([OUTPUTS[0]], dict(pictures))[0]
    with path.open("rb") as file:
        module = torch.export.load(file).module()

    def run(pictures: Mapping[str, np.ndarray]) -> np.ndarray:
        with torch.no_grad():
            return module(*(torch.from_numpy(np.ascontiguousarray(pictures[name])) for name in inputs))[0].numpy()

    return run


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


@contextmanager
def quiet() -> Iterator[None]:
    """A context without what torch says of its own inside."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # its loggers, and those of onnx_ir and onnxscript, speak of every constant
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
