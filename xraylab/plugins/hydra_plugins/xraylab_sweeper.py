"""Where Hydra looks for plugins, and takes them from nowhere else."""

from xraylab.sweeper import JobSweeper


class XraylabSweeper(JobSweeper):
    """See :class:`xraylab.sweeper.JobSweeper`."""
