"""Every setting of the run, and where it ran, folded."""

from __future__ import annotations

import html
import json

from xraylab.reporting.sections import Context, Section
from xraylab.run import Run


def configuration(c: Context) -> str:
    """``config.yaml`` and ``environment.json`` as they are."""
    config = Run(c.directory).config_file.read_text(encoding="utf-8")
    parts = {"config.yaml": config, "environment.json": json.dumps(c.environment, indent=2)}
    folded = [f"<details><summary>{k}</summary><pre>{html.escape(v)}</pre></details>" for k, v in parts.items()]
    return f"<h2>Configuration and environment</h2>{''.join(folded)}"


SECTION = Section(70, configuration)
