"""How Sphinx builds these pages: ``make docs``. The configuration's reference is written from ``conf/`` at each build."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import yaml
from sphinx.application import Sphinx

from xraylab.config.help import described_keys
from xraylab.config.messages import every_key
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

COMMANDS = (
    "config", "evaluate", "predict", "explain", "serve", "export", "combine", "report", "check", "describe", "prepare", "sample",
)  # fmt: skip
EMBEDDED = {"dataset.embedded.settings.": "", "dataset.embedded.sample.": "dataset.sample."}  # changes of other keys

HEAD = """# Configuration

Written from the comments of the YAML files in `conf/`, which `--help` shows too. A key is set as `key=value`, a group as
`group=choice`; `+key=value` adds an argument that a choice does not name. `???` must be given.
"""


def rows(path: Path) -> list[tuple[str, str, str]]:
    """Key as it is typed, default and comment, of a YAML file."""
    text = path.read_text(encoding="utf-8")
    whole = path.parent == conf_dir() or "@package _global_" in text
    found = []
    for name, value, about in described_keys(text, "" if whole else f"{path.parent.name}."):
        parts = dict(every_key(yaml.safe_load(value), f"{name}.")) if whole and re.fullmatch(r"{.+}", value) else {}
        if parts and (len(parts) == 1 or not about):  # else the comment is of all of them together
            found += [
                (key, yaml.safe_dump(part, default_flow_style=True).splitlines()[0], about)
                for key, part in parts.items()
                if not isinstance(part, dict)
            ]
        elif not name.endswith("_partial_"):
            found.append((name, value, about))
    return found


def comments() -> dict[str, str]:
    """Key -> its comment, where it is first explained: for choices that do not explain it again."""
    known: dict[str, str] = {}
    for path in (conf_dir() / "config.yaml", conf_dir() / "loss" / "weighted_bce.yaml", *sorted(conf_dir().glob("*/*.yaml"))):
        if path.parent.name in ("experiment", "sweep"):  # which say why a value is what it is
            continue
        for name, _, about in rows(path):
            if about:
                known.setdefault(name, about)
    return known


def meaning(name: str, value: str, found: dict[str, tuple[str, str]], known: dict[str, str]) -> str:
    """What a key means: its comment, or that of the same key elsewhere, or whose argument it is."""
    if found[name][1]:
        return escaped(found[name][1])
    if value.startswith("${"):
        return f"as `{value[2:-1]}`"
    if name.endswith("_target_"):
        return f"the class, {{py:obj}}`{value}`"
    usual = next((other + name.removeprefix(start) for start, other in EMBEDDED.items() if name.startswith(start)), name)
    if usual in known:
        return escaped(known[usual])
    parents = [name.rsplit(".", k)[0] for k in range(1, name.count(".") + 1)]
    for parent in parents:
        if f"{parent}._target_" in found:
            return f"argument of `{found[parent + '._target_'][0]}`"
        if found.get(parent, ("", ""))[1]:
            return escaped(found[parent][1])
    return f"argument of the class of `{parents[-1]}`" if parents else ""


def table(path: Path, known: dict[str, str]) -> list[str]:
    """The keys of a YAML file as a table: name, default, meaning."""
    found = {name: (value, about) for name, value, about in rows(path)}
    shown = [name for name, (value, about) in found.items() if value or about]
    cells = [f"| `{n}` | {f'`{found[n][0]}`' if found[n][0] else ''} | {meaning(n, found[n][0], found, known)} |" for n in shown]
    return ["| key | default | meaning |", "|---|---|---|", *cells, ""] if cells else []


def escaped(text: str) -> str:
    """Text in a cell of a Markdown table."""
    return re.sub(r"([|*<>\[\]$])", r"\\\1", text)


def configuration() -> str:
    """Every key of every group and command, from the comments of ``conf/``."""
    lines, known = [HEAD], comments()
    for command in COMMANDS:
        path = conf_dir() / f"{command}.yaml"
        text = path.read_text(encoding="utf-8")
        name = "train" if command == "config" else command
        more = " It takes the groups and keys of `train` too." if "- config" in text else ""
        lines += [f"## {name}", "", f"`python -m xraylab.{name}`, from `conf/{path.name}`.{more}", ""]
        if command == "config":
            lines += ["| group | default | what it chooses |", "|---|---|---|"]
            groups = re.findall(r"^  - (\w+): (\w+) *#? *(.*)$", text, re.M)
            lines += [f"| [{g}](#group-{g}) | `{default}` | {escaped(about)} |" for g, default, about in groups] + [""]
        lines += table(path, known)
    for group in sorted(p for p in conf_dir().iterdir() if p.is_dir()):
        lines += [f"(group-{group.name})=", f"## Group {group.name}", ""]
        for path in sorted(group.glob("*.yaml")):
            about = re.findall(r"^# (?!@package)(.*)$", path.read_text(encoding="utf-8"), re.M)
            lines += [f"### {group.name}={path.stem}", "", *map(escaped, about), ""]
            lines += [f"From `conf/{group.name}/{path.name}`.", "", *table(path, known)]
    return "\n".join(lines) + "\n"


def setup(app: Sphinx) -> None:
    """Write the generated page before Sphinx looks for pages."""
    page = Path(__file__).parent / "reference" / "configuration.md"
    if not page.is_file() or page.read_text(encoding="utf-8") != configuration():
        page.write_text(configuration(), encoding="utf-8")
