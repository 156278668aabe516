"""Figures as files, and as parts of a page; those of synthetic data are marked."""

from __future__ import annotations

import html
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xraylab.data.study_table import SYNTHETIC
from xraylab.system.files import beside

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def drawn(figure: Any, path: Path, synthetic: bool) -> str:
    """A matplotlib figure as an HTML element of its own, and written as PNG besides."""
    element = svg(figure, synthetic)
    save_figure(figure, path, synthetic)
    return element


def save_figure(figure: Any, path: Path, synthetic: bool) -> None:
    """Write a matplotlib figure as PNG."""
    if synthetic:
        mark(figure)
    with beside(path) as partial:
        figure.savefig(partial, format="png", metadata={"Description": SYNTHETIC if synthetic else ""})


def svg(figure: Any, synthetic: bool) -> str:
    """A matplotlib figure as an HTML element of its own, with its titles for those who cannot see it."""
    if synthetic:
        mark(figure)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    markup = re.sub(r"^.*?(?=<svg)", "", text.getvalue(), count=1, flags=re.S)
    markup = re.sub(r"<metadata>.*?</metadata>", "", markup, flags=re.S)
    # ids are unique within a figure only
    unique = f"f{np.random.default_rng().integers(1 << 40):x}"
    markup = re.sub(r'\bid="', f'id="{unique}', markup)
    markup = re.sub(r'(href="|url\()#', rf"\1#{unique}", markup)
    titles = [figure.get_suptitle(), *(axes.get_title() for axes in figure.axes)]
    label = html.escape(" ".join(", ".join(filter(None, titles)).split()), quote=True)
    markup = markup.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    return f"<figure>{markup}</figure>"


def mark(figure: Figure) -> None:
    """Say on a figure that it is of synthetic data, once."""
    title = figure.get_suptitle()
    if not title.startswith(SYNTHETIC):
        figure.suptitle(f"{SYNTHETIC}: {title}" if title else SYNTHETIC, color="#b07d00")
