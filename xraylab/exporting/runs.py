"""The models behind a run, which may be a combination of combinations, and what each of them sees of a study."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from xraylab.data.datasets.mrnet import PLANES
from xraylab.errors import UserError
from xraylab.evaluation.ensembles.combination import Combination, read_combination
from xraylab.exporting.program import Combined, Model, StudyProgram, require_of_pictures
from xraylab.exporting.resizing import fixed_point
from xraylab.inference.predictor import Predicted, joined, member_run
from xraylab.run import home_of, read_config
from xraylab.training.checkpoints import checkpoint_named
from xraylab.training.study_module import StudyModule, load_module

IMAGES = "images"  # the input of a run whose studies are of one kind of picture


@dataclass(frozen=True)
class Leaf:
    """A model of its own.

    Attributes:
        run: its directory, or a checkpoint.
        module: of the checkpoint.
        sees: the planes that it sees, in the order of its parts; an empty name: studies have no planes.
    """

    run: Path
    module: StudyModule
    sees: tuple[str, ...]


@dataclass(frozen=True)
class Joined:
    """A combination and its members.

    Attributes:
        run: its directory.
        combination: what is done with their probabilities.
        members: in its order.
    """

    run: Path
    combination: Combination
    members: tuple[Leaf | Joined, ...]


Models = Leaf | Joined


def models_of(run: Path, checkpoint: str = "best") -> Models:
    """Load the models behind a run.

    Args:
        run: its directory, also of a combination, or a checkpoint file.
        checkpoint: ``best``, ``last`` or a file; of a combination ``best``.

    Raises:
        UserError: there is no such checkpoint, or the combination looks at more than a study's pictures.
    """
    if found := read_combination(run) if run.is_dir() else None:
        combination, paths = found
        if checkpoint != "best":
            raise UserError(f"checkpoint={checkpoint}: {run} is a combination, of its members' best checkpoints. Leave it out.")
        require_of_pictures(combination, run)
        return Joined(run, combination, tuple(models_of(member_run(run, path)) for path in paths))
    module = load_module(checkpoint_named(run, checkpoint))
    home = home_of(run)
    plane = OmegaConf.select(read_config(home), "plane") if home is not None else None
    return Leaf(run, module, module.net.parts or (plane if plane in PLANES else "",))


def leaves(models: Models) -> Iterator[Leaf]:
    """The models at the ends."""
    if isinstance(models, Leaf):
        yield models
    else:
        for member in models.members:
            yield from leaves(member)


def combinations(models: Models) -> Iterator[Joined]:
    """All combinations among them."""
    if isinstance(models, Joined):
        yield models
        for member in models.members:
            yield from combinations(member)


def inputs_of(models: Models) -> dict[str, str]:
    """What is seen, to the name of the input that brings it.

    Raises:
        UserError: models read the same pictures in different ways, so that one input cannot be of all.
    """
    read: dict[str, tuple[Leaf, tuple[object, ...]]] = {}
    for leaf in leaves(models):
        way = (leaf.module.images["channels"], leaf.module.images["bits"])
        for name in leaf.sees:
            other, before = read.setdefault(name, (leaf, way))
            if way != before:
                raise UserError(
                    f"{other.run} and {leaf.run} read the same pictures in different ways (channels, bits: {before}, {way}), and "
                    "the file has one input for both. Export each on its own."
                )
    return {name: IMAGES if len(read) == 1 or not name else f"{IMAGES}_{name}" for name in read}


def program_of(models: Models, inputs: Sequence[str], temperatures: Mapping[str, float]) -> StudyProgram:
    """The models as one network.

    Args:
        inputs: what is seen, in order.
        temperatures: by label; empty: none is applied.

    Raises:
        UserError: members have other labels, or a temperature or stack is asked for what has no log-odds.
    """
    steps = fixed_point()

    def network(of: Models) -> Model | Combined:
        if isinstance(of, Leaf):
            return Model(of.module, [inputs.index(name) for name in of.sees], steps)
        return Combined(of.combination, [network(member) for member in of.members])

    return StudyProgram(network(models), temperatures).eval()


def predicted(models: Models, of_leaf: Callable[[Leaf], Predicted]) -> Predicted:
    """What they predict together, of what each of them predicts, joined as ``xraylab.predict`` joins it."""
    if isinstance(models, Leaf):
        return of_leaf(models)
    return joined(models.combination, [predicted(member, of_leaf) for member in models.members])
