"""Help, written from the comments of the configuration's files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from xraylab.config.messages import choices_of, keys_of_datasets
from xraylab.system.paths import conf_dir


def help_text(config: str, usage: str) -> str:
    """Usage, then every group with its choices and every key with its default, from the comments in ``conf/``."""
    text = (conf_dir() / f"{config}.yaml").read_text(encoding="utf-8")
    if "- config" in text:
        text = (conf_dir() / "config.yaml").read_text(encoding="utf-8") + text.split("_self_", 1)[1]
    with_data = re.search(r"^  - dataset:", text, re.M) is not None
    text = re.sub(r"^hydra:\n(?:(?:[ ].*)?\n)*", "", text, flags=re.M)
    groups = re.findall(r"^  - (\w+): (\w+) *#? *(.*)$", text, re.M)
    lines = [usage.strip(), "", *(["Groups: group=choice", ""] if groups else [])]
    for group, default, about in groups:
        lines.append(f"  {group} ({default}): {about}")
        width = max(16, *map(len, choices_of(group))) + 2
        for choice in choices_of(group):
            first = re.search(r"^# (?!@package)(.*)$", (conf_dir() / group / f"{choice}.yaml").read_text(encoding="utf-8"), re.M)
            lines.append(f"      {choice:<{width}}{first.group(1) if first else ''}")
    lines += [*([""] if groups else []), "Keys: key=value", ""]
    lines += [f"  {name + '=' + value:<40} {about}".rstrip() for name, value, about in described_keys(text) if value or about]
    for dataset, keys in keys_of_datasets().items():
        source = (conf_dir() / "dataset" / f"{dataset}.yaml").read_text(encoding="utf-8")
        for key, value, about in described_keys(source):
            if key.split(".")[0] in keys and with_data:
                lines.append(f"  {key + '=' + value:<40} dataset={dataset}: {about}".rstrip())
        own = re.findall(r"^  (\w+): ([^#\n$]*?) +# (.*)$", source.partition("\ndataset:\n")[2], re.M)
        for key, value, about in own if with_data else []:
            if key not in ("sample", "embedded"):
                lines.append(f"  {f'dataset.{key}={value}':<40} dataset={dataset}: {about}".rstrip())
    lines += ["", "--cfg job prints the composed configuration and stops. -m runs every combination of comma-separated values."]
    here, folder = Path.cwd(), conf_dir()
    lines.append(f"The YAML files: {f'./{folder.relative_to(here)}' if folder.is_relative_to(here) else folder}")
    return "\n".join(lines)


def described_keys(text: str, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Name (``early_stopping.patience``), default and comment of every key of a YAML file of ``conf/``.

    >>> list(described_keys("head:  # of the network\\n  hidden: []  # widths"))
    [('head', '', 'of the network'), ('head.hidden', '[]', 'widths')]
    >>> list(described_keys("transforms:\\n  - p: 0.5  # of a flip\\n  - p: 1.0", prefix="augmentation."))[1:]
    [('augmentation.transforms.0.p', '0.5', 'of a flip'), ('augmentation.transforms.1.p', '1.0', '')]
    """
    path: list[str] = []
    keys = re.findall(r"^( *)(- )?([\w.]+):[ ]*([^#\n]*?)[ ]*(?:# (.*(?:\n +# .*)*))?$", text, re.M)
    for indent, dash, key, value, about in keys:
        depth = len(indent + dash) // 2
        if dash:  # the next item of a list
            number = path[depth - 1] if len(path) >= depth else "-1"
            path[depth - 1 :] = [str(int(number) + 1)]
        path[depth:] = [key]
        if path[0] not in ("defaults", "hydra"):
            yield prefix + ".".join(path), value, re.sub(r"\n +# ", " ", about)
