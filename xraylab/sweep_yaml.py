"""``python -m xraylab.sweep_yaml``: a sweep as a file for W&B, whose agents then run its jobs."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from xraylab.config.messages import choices, in_words
from xraylab.errors import EXIT_USER, UserError
from xraylab.sweeps.wandb_file import sweep_file
from xraylab.system.command_line import checked, value_of
from xraylab.system.files import write_text

USAGE = """
xraylab.sweep_yaml: write a sweep as a file for W&B, whose agents run its jobs, on as many machines as there are agents.

  python -m xraylab.sweep_yaml sweep=backbones experiment=mura_paper dataset.root=/data/MURA-v1.1
  python -m xraylab.sweep_yaml sweep.method=tpe 'optimizer.lr=tag(log,interval(1e-6,1e-3))' batch_size=1,4,16
  python -m xraylab.sweep_yaml 'seed=range(5)' output=seeds.yaml    the file's name; without it, sweep.yaml

It takes the words of a sweep of xraylab.train (python -m xraylab.train --help). sweep.method=grid and random are those of W&B,
tpe is its bayes; sweep.prune=true is its hyperband; sweep.trials limits the runs. Then: wandb sweep sweep.yaml, and the agent
as it says. Exit codes: 0 done, 2 a mistake in what was asked.
"""


def main() -> None:
    """The entry point."""
    words = sys.argv[1:]
    if {"-h", "--help"} & set(words):
        print(USAGE.strip())
        return
    try:
        words = checked([word for word in words if word not in ("-m", "--multirun")], choices())
        if flags := [word for word in words if word.startswith("-")]:
            raise UserError(f"{flags[0]}: it takes the words of a sweep and no flags. --help tells more.")
        path = Path(([str(value_of(word)) for word in words if word.startswith("output=")] or ["sweep.yaml"])[-1])
        text = OmegaConf.to_yaml(OmegaConf.create(sweep_file([word for word in words if not word.startswith("output=")])))
        if path.exists():
            raise UserError(f"{path} is there already. Name another file (output=…), or delete it.")
        write_text(path, text)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER)
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {in_words(error, 'config')}", file=sys.stderr)
        sys.exit(EXIT_USER)
    print(f"{path} is written. Next:\n  wandb sweep {shlex.quote(str(path))}")


if __name__ == "__main__":
    main()
