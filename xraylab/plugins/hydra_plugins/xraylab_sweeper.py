"""Where Hydra looks for plugins, and takes them from nowhere else."""

from xraylab.sweeps.sweeper import JobSweeper


class XraylabSweeper(JobSweeper):
    """See :class:`xraylab.sweeps.sweeper.JobSweeper`."""
