"""How Sphinx builds these pages: ``make docs``. The configuration's reference is written from ``conf/`` at each build."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

from sphinx.application import Sphinx

from xraylab.config.help import described_keys
from xraylab.system.paths import conf_dir

project = "xraylab"
release = version = importlib.metadata.version("xraylab")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "xraylab"
html_static_path = ["_static"]
html_show_sphinx = False
html_copy_source = False
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_use_rtype = False
nitpicky = False

COMMANDS = ("config", "evaluate", "predict", "combine", "report", "check", "describe", "prepare", "sample")


HEAD = """# Configuration

Written from the comments of the YAML files in `conf/`, which `--help` shows too. A key is set as `key=value`, a group as
`group=choice`; `+key=value` adds an argument that a choice does not name.
"""


def table(text: str) -> list[str]:
    """The keys of a YAML file as a table: name, default, meaning."""
    rows = [(name, value, about) for name, value, about in described_keys(text) if value or about]
    if not rows:
        return []
    cells = [f"| `{name}` | {f'`{value}`' if value else ''} | {escaped(about)} |" for name, value, about in rows]
    return ["| key | default | meaning |", "|---|---|---|", *cells, ""]


def escaped(text: str) -> str:
    """Text in a cell of a Markdown table."""
    return re.sub(r"([|*<>\[\]$])", r"\\\1", text)


def configuration() -> str:
    """Every key of every group and command, from the comments of ``conf/``."""
    lines = [HEAD]
    for command in COMMANDS:
        text = (conf_dir() / f"{command}.yaml").read_text(encoding="utf-8")
        lines += [f"## {'train' if command == 'config' else command}", ""]
        if command == "config":
            lines += ["`python -m xraylab.train`: one default per group, then the keys that belong to no group.", ""]
            lines += ["| group | default | what it chooses |", "|---|---|---|"]
            groups = re.findall(r"^  - (\w+): (\w+) *#? *(.*)$", text, re.M)
            lines += [f"| [{g}](#group-{g}) | `{default}` | {escaped(about)} |" for g, default, about in groups] + [""]
        lines += table(text)
    for group in sorted(p for p in conf_dir().iterdir() if p.is_dir()):
        lines += [f"(group-{group.name})=", f"## Group {group.name}", ""]
        for path in sorted(group.glob("*.yaml")):
            text = path.read_text(encoding="utf-8")
            about = map(escaped, re.findall(r"^# (?!@package)(.*)$", text, re.M))
            lines += [f"### {group.name}={path.stem}", "", *about, "", *table(text)]
    return "\n".join(lines) + "\n"


def setup(app: Sphinx) -> None:
    """Write the generated page before Sphinx looks for pages."""
    page = Path(__file__).parent / "reference" / "configuration.md"
    if not page.is_file() or page.read_text(encoding="utf-8") != configuration():
        page.write_text(configuration(), encoding="utf-8")
