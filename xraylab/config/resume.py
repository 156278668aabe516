"""What may change in a run that goes on."""

from __future__ import annotations

from pathlib import Path

from xraylab.errors import UserError
from xraylab.system.command_line import command_line, word


def existing_run(resume: str) -> tuple[Path, Path | None]:
    """The run to resume, and the checkpoint to go on from: the one named, else its last; None: it is to be started again.

    Raises:
        UserError: there is no run, or it has no checkpoint and is too old to be started again; or it is finished, and its last
            is gone.
    """
    from xraylab.run import BEGUN, is_finished, run_of

    run = run_of(resume, begun=True)
    if resume.endswith(".ckpt"):
        return run, run / "checkpoints" / Path(resume).name
    last = run / "checkpoints" / "last.ckpt"
    if last.is_file():
        return run, last
    if others := sorted((run / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime):
        if is_finished(run):
            words = "\n".join(f"  {command_line('train', [word('resume', path)])}" for path in reversed(others))
            raise UserError(f"resume={resume}: {last} is gone. Another may be gone on from; what came after it is lost:\n{words}")
        return run, others[-1]  # it ended while its first last.ckpt was written
    if (run / BEGUN).is_file():
        return run, None
    raise UserError(f"resume={resume}: {run} has no checkpoints/last.ckpt: it ended before its first epoch. Start it anew.")
