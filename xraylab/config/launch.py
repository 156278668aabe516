"""From the command line to a job: composition by Hydra, help and errors in words, exit codes.

Nothing here imports torch, so that help and mistakes answer at once.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from xraylab.config.help import help_text
from xraylab.config.messages import choices, every_key, in_words
from xraylab.errors import EXIT_RESUMABLE, EXIT_USER, Lost, Pruned, Stopped, UserError
from xraylab.run import BEGUN, LOCK, Run, holder_of, new_run_dir
from xraylab.system.command_line import checked, require_recordable, value_of, word
from xraylab.system.paths import conf_dir
from xraylab.system.processes import launched, sweep_words
from xraylab.system.signals import SignalReceived, raise_on_signals

NOTHING_KEPT = "stopped before there was anything to keep; the same command begins it again."


def launch(
    config: str, job: Callable[[DictConfig], None], usage: str, rewrite: Callable[[list[str]], list[str]] | None = None
) -> None:
    """Compose ``conf/<config>.yaml`` with the overrides in ``sys.argv``, run the job, exit with its code.

    Args:
        rewrite: what becomes of the words of the command line before they are composed.

    Exit codes: 0 done, 2 the user's mistake, 75 stopped and can be resumed, 1 anything else.
    """
    if {"-h", "--help"} & set(sys.argv[1:]):
        _show(help_text(config, usage))
        return
    sys.argv[1:] = _flags_first(sys.argv[1:])
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # exceptions reach us instead of Hydra's own report
    escape_unprintable()
    OmegaConf.register_new_resolver("run_dir", _run_dir, replace=True)
    try:
        sys.argv[1:] = checked(sys.argv[1:], choices())
        require_recordable(os.getcwd())
        _check_processes(config)
    except UserError as error:
        exit_with(error)
    errors: list[Exception] = []

    def guarded(cfg: DictConfig) -> None:
        escape_unprintable()  # in whatever process
        alone = HydraConfig.get().mode is RunMode.RUN
        try:
            job(normalised(cfg))
        except (UserError, Stopped, Lost, Pruned, MissingMandatoryValue) as error:
            if not alone:
                if not isinstance(error, Stopped | MissingMandatoryValue):  # the sweep says how to go on, and which key it is
                    print(error if isinstance(error, Pruned) else f"error: {error}", file=sys.stderr)
                raise  # to the sweeper, from whatever process
            errors.append(error)  # or Hydra prints a line of its own above the message
            _remove_if_empty(Path(HydraConfig.get().runtime.output_dir))
        except Exception:
            if not alone:
                logging.getLogger(__name__).exception("the job failed")  # into its log; the sweep goes on
            raise

    try:
        sys.argv[1:] = sys.argv[1:] if rewrite is None else rewrite(sys.argv[1:])
        with raise_on_signals() if config == "config" else contextlib.nullcontext():
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config)(guarded)()
        if errors:
            raise errors[0]
    except (UserError, Stopped, Lost) as error:
        exit_with(error)
    except (HydraException, OmegaConfBaseException, ValueError, OSError) as error:
        if (said := _users_mistake(error, config)) is None:
            raise
        exit_with(UserError(said))
    except KeyboardInterrupt as error:
        for path in _claimed.values():
            _remove_if_empty(Path(path))
        if not isinstance(error, SignalReceived):
            sys.exit("interrupted before there was anything to keep")
        exit_with(Stopped("" if launched().rank else f"{error}: {NOTHING_KEPT}"))


def _flags_first(words: list[str]) -> list[str]:
    """The words of a command line as Hydra takes them: flags first, for argparse wants overrides in one piece."""
    flags = [a for a in words if re.match(r"(-m|--multirun|--[\w-]+=.*)$", a)]
    return [*flags, *(a for a in words if a not in flags)]


def _show(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # of a pager that was left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _users_mistake(error: Exception, config: str) -> str | None:
    """What Hydra or the system raised for what was typed, in words; None: it is not that."""
    if isinstance(error, HydraException | OmegaConfBaseException):
        return in_words(error, config)
    if isinstance(error, OSError):
        typed = [str(value_of(a)) for a in sys.argv[1:] if a.startswith(("hydra.run.dir=", "hydra.sweep.dir="))]
        if not (typed and error.filename and Path(os.path.abspath(typed[-1])).is_relative_to(os.path.abspath(error.filename))):
            return None
        return f"cannot create the run directory {typed[-1]}: {error.strerror}: {error.filename}."
    if str(error).startswith("Only one of --run"):
        return "-m (--multirun), --cfg and --info are not for one command: --cfg shows a single job."
    return None


def escape_unprintable() -> None:
    """Let streams write characters that they cannot encode as escapes, or lines are lost; log files are UTF-8 and have all."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    for handler in logging.root.handlers:
        if isinstance(handler, logging.FileHandler) and isinstance(handler.stream, io.TextIOWrapper):
            handler.stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def normalised(cfg: DictConfig) -> DictConfig:
    """A composed configuration of any command, with ``~`` at the beginning of paths written out.

    Raises:
        UserError: None where null is meant, a change of the working directory, or a folder that cannot be recorded.
    """
    values = OmegaConf.to_container(cfg, resolve=False)
    for key, value in every_key(values):
        if value == "None":
            raise UserError(f"{key}=None: None is Python's; what is not there is written null here.")
    here = HydraConfig.get()
    if here.job.chdir:
        os.chdir(here.runtime.cwd)
        raise UserError(
            "hydra.job.chdir=true: the paths given are meant from the folder where the command was given. Leave it out: "
            "what a run writes lies in its own directory all the same."
        )
    if here.mode is RunMode.RUN:
        require_recordable(here.runtime.output_dir)
    home = _expand_home(values)
    return cfg if home == values else OmegaConf.create(home, flags=cfg._metadata.flags)


def _expand_home(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _expand_home(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_expand_home(value) for value in node]
    return os.path.expanduser(node) if isinstance(node, str) and node.startswith("~/") else node


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Context for importing torch and what goes with it, without the garbage collector, which took a quarter of the time."""
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


_claimed: dict[tuple[str, str | None], str] = {}


def _run_dir(name: str, resume: str | None, *, _root_: DictConfig) -> str:
    # merging configs resolves it too; only a job that begins claims a directory, and once
    if not HydraConfig.initialized():
        return ""
    if (name, resume) not in _claimed:
        config = OmegaConf.to_container(_root_) if resume == "auto" else None
        _claimed[name, resume] = new_run_dir(name, resume, config)  # type: ignore[arg-type]
    return _claimed[name, resume]


def _remove_if_empty(directory: Path) -> None:
    """Delete the directory of a run that never began: nothing in it but an empty or a short log."""
    if Run(directory).config_file.exists() or directory.resolve() == Path.cwd().resolve() or holder_of(directory):
        return
    if not (directory / BEGUN).exists():
        for name in ("xraylab.log", LOCK):
            (directory / name).unlink(missing_ok=True)
    ours = [directory, *directory.parents[:2]] if directory.parts[-3:-2] == ("outputs",) else [directory]
    with contextlib.suppress(OSError):  # until one holds something
        for folder in ours:
            folder.rmdir()


def _check_processes(config: str) -> None:
    """Refuse commands that are one process; give the others of a training a place for what Hydra writes of them.

    Raises:
        UserError: the command is one process, or a sweep.
    """
    here = launched()
    if here.world == 1:
        return
    if config != "config":
        raise UserError(f"{here.launcher} started {here.world} processes, but this is one: start it without {here.launcher}.")
    if {"-m", "--multirun"} & set(sys.argv[1:]):
        raise UserError(sweep_words(here))
    if here.rank:
        folder = tempfile.mkdtemp(prefix="xraylab-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        sys.argv.append(word("hydra.run.dir", folder))  # the first's is that of the run


def exit_with(error: UserError | Stopped | Lost) -> NoReturn:
    """Print an error, unless another process has, and exit with its code."""
    # from a reading process it comes with that process's traceback before it
    text = str(error).rsplit("xraylab.errors.UserError: ", 1)[-1].rstrip()
    if text:
        print(text if isinstance(error, Stopped) else f"error: {text}", file=sys.stderr)
    sys.exit(EXIT_USER if isinstance(error, UserError) else EXIT_RESUMABLE if isinstance(error, Stopped) else 1)
