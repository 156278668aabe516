"""The run directory: claimed once, written beside and renamed, described by what was run."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from xraylab.errors import UserError, listed
from xraylab.system.classes import with_todays_names
from xraylab.system.command_line import command_line, word
from xraylab.system.files import CannotWrite, write_text

log = logging.getLogger(__name__)
LOCK = ".lock"  # of a run directory, held by the process that writes there
BEGUN = ".begun.yaml"  # what was asked for, as composed; is there from a run's first moment on
FOREIGN = (".h5", ".hdf5", ".keras", ".pb", ".onnx", ".tflite", ".params", ".caffemodel")  # weights of other frameworks


@dataclass(frozen=True)
class Run:
    """A run directory: what lies in it, where, and how far it is.

    Attributes:
        directory: of the run.

    >>> run = Run.open("outputs/mrnet/2026-01-31_12-00-00")     # doctest: +SKIP
    >>> run.evaluation["splits"]["test"]["n"], run.finished     # doctest: +SKIP
    (120, True)
    """

    directory: Path

    @classmethod
    def open(cls, path: str | Path, begun: bool = False) -> Run:
        """The run that a path or URL names, see :func:`run_of`."""
        return cls(run_of(path, begun))

    @property
    def config_file(self) -> Path:
        """The settings, YAML."""
        return self.directory / "config.yaml"

    @property
    def environment_file(self) -> Path:
        """What was run with what, where, and whether it came to its end; JSON."""
        return self.directory / "environment.json"

    @property
    def evaluation_file(self) -> Path:
        """Metrics of every split; JSON."""
        return self.directory / "evaluation.json"

    @property
    def history_file(self) -> Path:
        """A row an epoch; CSV."""
        return self.directory / "history.csv"

    def predictions(self, split: str, unit: str = "study") -> Path:
        """The prediction table of a split, by study or by image; CSV."""
        return self.directory / "predictions" / f"{split}{'_images' * (unit == 'image')}.csv"

    def checkpoint(self, name: str = "best") -> Path:
        """A checkpoint by its name, ``best`` or ``last``."""
        return self.directory / "checkpoints" / f"{name}.ckpt"

    @property
    def config(self) -> DictConfig:
        """The settings, see :func:`read_config`."""
        return read_config(self.directory)

    @property
    def evaluation(self) -> Any:
        """The content of ``evaluation.json``, as :class:`xraylab.evaluation.result.Evaluation` has it.

        Raises:
            UserError: it is not there, or damaged.
        """
        return read_record(self.evaluation_file, "splits")

    @property
    def environment(self) -> dict[str, Any]:
        """The content of ``environment.json``; empty where there is none yet.

        Raises:
            UserError: it is damaged.
        """
        return read_record(self.environment_file) if self.environment_file.is_file() else {}

    @property
    def words(self) -> list[str]:
        """The overrides that it was begun by; a resumed run's own are ``resume=...``."""
        environment = self.environment
        first = [*environment.get("sessions_before", []), environment][0]
        return [str(word) for word in first.get("overrides", [])]

    @property
    def finished(self) -> bool:
        """Whether it came to its end."""
        return bool(self.environment.get("finished"))


def new_run_dir(
    name: str, resume: str | None = None, config: Mapping[str, Any] | None = None, above: Path = Path("outputs")
) -> str:  # fmt: skip
    """``<above>/<name>/<date_time>``, created here and so never shared by two runs; or the run to resume.

    Args:
        resume: a run, or ``auto``: the last unfinished one of this configuration that no process works on, if there is one.
        config: as composed, for ``auto``.
        above: the folder of all of them.
    """
    if resume == "auto":
        resume = _last_unfinished(Path("outputs") / str(name), config or {})
    if resume:
        return str(run_of(resume, begun=True))
    parent = above / str(name)
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for k in range(1, 1000):
        path = parent / (stamp if k == 1 else f"{stamp}_{k}")
        try:
            path.mkdir(parents=True)
            return str(path)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"cannot create the run directory {path.absolute()}: {error.strerror}.") from error
    raise UserError(f"cannot find a free name for a run in {parent.absolute()}")


def _last_unfinished(parent: Path, config: Mapping[str, Any]) -> str | None:
    for path in sorted(parent.glob(f"*/{BEGUN}"), key=lambda path: path.stat().st_mtime, reverse=True):
        if differing(config, read_begun(path.parent)["config"]) or is_finished(path.parent):
            continue
        if holder := holder_of(path.parent):
            log.warning("resume=auto: %s is of this configuration, and is being trained by %s.", path.parent, holder)
            continue
        return str(path.parent)
    return None


def differing(config: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Top-level keys by which two composed configurations differ, beside where a run goes and whether it goes on.

    Args:
        config: as composed now.
        other: of a run, whose splits are its own where it is of before ``split_version``.
    """
    skipped = ["hydra", "resume", *(["split_version"] if "split_version" not in other else [])]
    keys = [k for k in dict.fromkeys([*config, *other]) if k not in skipped]
    return [k for k in keys if config.get(k, "absent") != other.get(k, "absent")]


def how_it_went(directory: Path) -> dict[str, Any]:
    """``environment.json`` of a run that may not have come to write it.

    Raises:
        UserError: it is damaged.
    """
    record = directory / "environment.json"
    then = "Delete it to go on; what it says of earlier sessions is lost."
    return read_record(record, then=then) if record.is_file() else {}


def is_finished(directory: Path) -> bool:
    """Whether a run came to its end."""
    return bool(how_it_went(directory).get("finished"))


def write_begun(directory: Path, config: Mapping[str, Any], typed: Sequence[str]) -> None:
    """Keep what was asked for, before anything is done about it: a run that is killed early is started again from it."""
    write_text(directory / BEGUN, OmegaConf.to_yaml(OmegaConf.create({"typed": list(typed), "config": dict(config)})))


def read_begun(directory: Path) -> dict[str, Any]:
    """``typed`` and ``config`` of a run.

    Raises:
        UserError: they cannot be read.
    """
    path = directory / BEGUN
    try:
        content = with_todays_names(OmegaConf.to_container(OmegaConf.load(path)))
        return {key: content[key] for key in ("typed", "config")}
    except (OSError, ValueError, TypeError, KeyError, YAMLError, OmegaConfBaseException) as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: cannot be read ({why}). Delete it to go on with a run that has checkpoints.") from error


@contextmanager
def claimed(directory: Path, key: str = "hydra.run.dir") -> Iterator[None]:
    """Hold a run directory; the lock vanishes with its process, however that ends.

    What a killed process left half-written is removed.

    Raises:
        UserError: another process holds it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise CannotWrite(f"cannot write in the run directory {directory}: {error.strerror}.") from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process alone: children do not inherit it
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                log.warning("%s: this file system has no locks (%s): see to it that one process trains there.", directory, error)
            else:
                raise UserError(
                    f"{directory}: another process works there: {_holder(file)}. Wait for its end, or stop it, or name another "
                    f"{key}."
                ) from None
        if os.fstat(file.fileno()).st_nlink == 0:
            raise UserError(f"{directory}: another process has just ended there. Try again.")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M:%S}")
        file.flush()
        for folder in (directory, *(f for f in directory.iterdir() if f.is_dir() and not (f / LOCK).exists())):
            for partial in folder.glob(".*.partial"):
                partial.unlink(missing_ok=True)
        yield


def holder_of(directory: Path) -> str | None:
    """The process that works on a run, in words; None where there is none."""
    try:
        with (directory / LOCK).open("a+", encoding="utf-8") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                return _holder(file) if error.errno in (errno.EACCES, errno.EAGAIN) else None
    except OSError:
        pass
    return None


def _holder(file: Any) -> str:
    file.seek(0)
    return file.read().strip() or "a process that has just begun"


def run_of(path: str | Path, begun: bool = False) -> Path:
    """The run directory that ``path`` names: itself, the one a checkpoint lies in, or a copy of the one at a URL.

    Args:
        begun: one that has no more than begun will do.

    Raises:
        UserError: there is none.
    """
    from xraylab.system.remote import fetch_run, is_url  # fsspec, which every command would wait for

    refuse_foreign(path)
    given = fetch_run(str(path)) if is_url(path) else Path(path).expanduser()
    for candidate in (given, *list(given.parents)[:2]) if given.is_file() else (given,):
        if (candidate / "config.yaml").is_file() or (begun and (candidate / BEGUN).is_file()):
            return candidate
    if (given / BEGUN).is_file():
        raise UserError(
            f"{given}: it was stopped before its training began. Go on with:\n  {command_line('train', [word('resume', given)])}"
        )
    if given.is_dir() and {p.name for p in given.iterdir()} <= {LOCK, "xraylab.log"}:
        raise UserError(
            f"{given}: stopped before there was anything to keep. Delete it, and give the command that began it again."
        )
    found = sorted(p.parent for p in Path("outputs").glob("*/*/config.yaml")) if Path("outputs").is_dir() else []
    newest = f" The newest run here is {max(found, key=lambda p: p.stat().st_mtime)}." if found else ""
    raise UserError(f"{given} is not a run directory: it has no config.yaml.{newest}")


def home_of(run: Path) -> Path | None:
    """The run directory, of itself or of a checkpoint in it; None: a checkpoint on its own."""
    return next((p for p in (run, *run.absolute().parents[:2]) if Run(p).config_file.is_file()), None)


def refuse_foreign(path: str | Path) -> None:
    """Refuse what is no run but a file of another framework.

    Raises:
        UserError: it is.
    """
    if str(path).lower().endswith(FOREIGN):
        raise UserError(
            f"{path}: weights of other frameworks are out of scope. Give a run or a .ckpt of xraylab; a table of predictions of "
            "the other model can be evaluated and compared all the same."
        )


def read_record(path: Path, *keys: str, then: str = "Finish that run, or leave it out.") -> Any:
    """A record that a run left, as ``evaluation.json``.

    Args:
        keys: that it has to have.
        then: what to do where it has not.

    Raises:
        UserError: it is not there, damaged, or lacks one of the keys.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        missing = [key for key in keys if not isinstance(content, dict) or key not in content]
        why = f"it has no {listed(missing)}" if missing else ""
    except FileNotFoundError:
        why = "there is none: the run did not come to its end"
    except (OSError, ValueError) as error:
        why = str(error)
    if why:
        raise UserError(f"{path.parent}: no {path.name} that can be read ({why}). {then}")
    return dict(content)


def read_config(run: Path) -> DictConfig:
    """The settings of a run, ``config.yaml``.

    Raises:
        UserError: it is not there, or damaged.
    """
    path = run / "config.yaml"
    try:
        config = OmegaConf.load(path)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]}). Mend it, or leave that run out.") from error
    if not isinstance(config, DictConfig):
        raise UserError(f"{path}: cannot be read (no settings are in it). Mend it, or leave that run out.")
    return OmegaConf.create(with_todays_names(OmegaConf.to_container(config)))


def short_names(places: Sequence[Path]) -> list[str]:
    """The ends of the paths that tell them apart."""
    full = [p.resolve().parts for p in places]
    depth = 1
    while len({parts[-depth:] for parts in full}) < len(full):
        depth += 1
    return ["/".join(parts[-depth:]) for parts in full]
