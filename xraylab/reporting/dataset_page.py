"""The page on a dataset: counts, labels, sizes and pictures."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from xraylab.data.integrity import STATES
from xraylab.data.study_table import SYNTHETIC
from xraylab.errors import listed
from xraylab.reporting.dataset_report import ALL, SIDE, Description
from xraylab.reporting.figures import export
from xraylab.reporting.frame import framed, picture
from xraylab.reporting.frame import table as html_table
from xraylab.system.files import write_text

SINGULAR = {"images": "image", "studies": "study", "patients": "patient"}
COLOURS = {"positive": "#b4442f", "negative": "#8aa4c0", "uncertain": "#d9a400", "blank": "#dfe3e8"}

BAR, WIDTH = "#4a6d94", 10.5

EXTRA_STYLE = """
.pictures figure{width:160px;margin:0 .8em 1em 0;vertical-align:top}.pictures img{width:150px;height:150px;object-fit:contain;
background:#000}.pictures figcaption{font-size:12px;line-height:1.3;color:#424a53;overflow-wrap:anywhere}
th.over{text-align:center;border-bottom:0}
.wide{font-size:12px}.wide td,.wide th{padding:.2em .4em}td:first-child{white-space:nowrap}
"""


def write(found: Description, directory: Path, path: Path, splits: str, command: str) -> None:
    """The CSVs and ``report.html``.

    Args:
        path: of the data.
        splits: how they were assigned.
        command: that was typed.
    """

    tables = {"counts": found.counts, "images_per_study": found.per_study, "image_sizes": found.sizes}
    if found.per_patient is not None:
        tables["studies_per_patient"] = found.per_patient
    for name, table in tables.items():
        marked = table.assign(data=SYNTHETIC) if found.table.synthetic else table
        write_text(directory / f"{name}.csv", marked.to_csv(index=False))
    name = found.table.name
    parts = [
        f"<p>Read from {html.escape(str(path.absolute()))}, split as training splits it with {html.escape(splits)}.</p>"
        f"<pre>{html.escape(command)}</pre>"
    ]
    parts += [*_skipped(found), *_counts(found), *_labels(found)]
    parts += ["<h2>Images per study</h2>", *_spread(found, found.per_study, "images", "studies")]
    if found.per_patient is not None:
        parts += ["<h2>Studies per patient</h2>", *_spread(found, found.per_patient, "studies", "patients")]
    parts += [*_sizes(found), *_gallery(found)]
    beside = f"{len(found.table.frame):,} studies"
    page = framed(name, beside, "\n".join(parts), found.table.synthetic, f"{name} described", _answer(found), style=EXTRA_STYLE)
    write_text(directory / "report.html", page)


def _answer(found: Description) -> str:
    """How much there is, and what is wrong with it, in a sentence."""
    images = f"{found.sized[1]:,} images"
    wrong = sum(map(len, found.skipped.values())) + len(found.blank)
    faults = f"{wrong:,} faults are named below" if wrong else "no faults were found in what was read"
    labels = f"{len(found.table.labels)} label{'s' * (len(found.table.labels) != 1)}"
    return f"{len(found.table.frame):,} studies, {images}, {labels}, in {listed(found.splits)}; {faults}."


def _skipped(found: Description) -> list[str]:
    items = [f"<li>{len(names):,} {html.escape(k)}: {html.escape(listed(names, 50))}</li>" for k, names in found.skipped.items()]
    skipped = ["<h2>Skipped</h2><ul>", *items, "</ul>"] if items else []
    what = f"{len(found.blank):,} of {found.looked:,} images that were read are of one value"
    return [*skipped, f"<p>{what}: {html.escape(listed(found.blank, 50))}</p>"] if found.blank else skipped


def _counts(found: Description) -> list[str]:
    columns = ["studies", *(["patients"] if found.table.patients_known else []), "images"]
    rows = [
        [group, *(_cell(found.count(split, group, column)) for split in found.splits for column in columns)]
        for group in found.groups
    ]
    note = "Each group in each split."
    if not found.table.patients_known:
        note += " Patients are not known, so one may be in two splits."
    elif len(rows) > 1:
        note += " A patient can be in several groups."
    return [f"<h2>Counts</h2><p class=n>{note}</p>", _two_heads("group", found.splits, columns, rows)]


def _labels(found: Description) -> list[str]:
    words = [
        word
        for word in STATES
        if word in ("positive", "negative") or any(found.counts[f"{label}_{word}"].any() for label in found.table.labels)
    ]
    rows = []
    for group in found.groups:
        for label in found.table.labels:
            cells = []
            for split in found.splits:
                values = {word: found.count(split, group, f"{label}_{word}") for word in words}
                positive, certain = values["positive"] or 0, (values["positive"] or 0) + (values["negative"] or 0)
                cells += [*map(_cell, values.values()), f"{positive / certain:.1%}" if certain else "-"]
            rows.append([f"{group}: {label}", *cells])
    note = "Studies by the value of a label; the share is of positive among positive and negative."
    if found.table.exclusive:
        note += " The labels are exclusive: a study has one."
    table = _two_heads("group: label", found.splits, [*words, "share"], rows)
    return [f"<h2>Labels</h2><p class=n>{note}</p>", table, _label_figure(found, words)]


def _label_figure(found: Description, words: Sequence[str]) -> str:
    """Stacked bars, a panel a split: by group for one label, else by label over all groups."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    labels, splits = found.table.labels, found.splits
    several = len(labels) > 1
    words = ["positive"] if found.table.exclusive else words
    group = found.groups[-1]
    bars = {label: (group, label) for label in labels} if several else {g: (g, labels[0]) for g in found.groups if g != ALL}
    figure = Figure(figsize=(WIDTH, 1.5 + 0.28 * len(bars)), layout="constrained")
    panels = figure.subplots(1, len(splits), sharey=True, squeeze=False)[0]
    for axes, split in zip(panels, splits, strict=True):
        left = [0] * len(bars)
        for word in words:
            n = [found.count(split, g, f"{label}_{word}") or 0 for g, label in bars.values()]
            axes.barh(list(bars), n, left=left, color=COLOURS[word], label=word if several else f"{labels[0]} {word}")
            left = [a + b for a, b in zip(left, n, strict=True)]
        axes.set(title=f"{split}, n = {_cell(found.count(split, group, 'studies'))} studies", xlabel="studies")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    handles, texts = panels[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside lower center", ncols=len(texts), frameon=False, fontsize=9)
    return export.svg(figure, found.table.synthetic)


def _spread(found: Description, table: pd.DataFrame, what: str, of: str) -> list[str]:
    """A table and a figure of how many ``what`` an ``of`` has, by split."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    numbers = table[what].tolist()
    if len(set(numbers)) == 1:
        return [f"<p>Each of the {table[of].sum():,} {of} has {numbers[0]} {SINGULAR[what] if numbers[0] == 1 else what}.</p>"]
    rows = []
    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    panels = figure.subplots(1, len(found.splits), sharex=True, squeeze=False)[0]
    for axes, split in zip(panels, found.splits, strict=True):
        part = table[table["split"] == split]
        rows.append([split, f"{part[of].sum():,}", *_statistics(part[what], part[of], 2)])
        axes.bar(part[what], part[of], width=0.9, color=BAR)
        axes.set(title=f"{split}, n = {part[of].sum():,} {of}", xlabel=f"{what} per {SINGULAR[of]}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(of)
    head = ["split", f"{of} (n)", "least", "median", "mean", "most"]
    return [html_table(head, rows), export.svg(figure, found.table.synthetic)]


def _statistics(values: pd.Series, counts: pd.Series, digits: int) -> list[str]:
    """Least, median, mean and most of values that are there so many times."""
    every = np.repeat(values.to_numpy(), counts.to_numpy())
    return [f"{every.min()}", f"{np.median(every):g}", f"{every.mean():.{digits}f}", f"{every.max()}"]


def _sizes(found: Description) -> list[str]:
    from matplotlib.figure import Figure

    measured, total = found.sized
    sizes = found.sizes.sort_values(["images", "height", "width"], ascending=[False, True, True])
    of = f"all {total:,} images" if measured == total else f"{measured:,} images, drawn at random from {total:,}"
    parts = ["<h2>Image sizes</h2>", f"<p class=n>Height x width in pixels of {of}, of all splits.</p>"]
    heights, widths, images = (sizes[column].tolist() for column in ("height", "width", "images"))
    if len(sizes) < 2:
        return [*parts, *(f"<p>Each is {h} x {w}.</p>" for h, w in zip(heights, widths, strict=True))]
    rows = [[side, *_statistics(sizes[side], sizes["images"], 1)] for side in ("height", "width")]
    parts.append(html_table(["", "least", "median", "mean", "most"], rows))
    top = [[f"{h} x {w}", f"{n:,}", f"{n / measured:.1%}"] for h, w, n in zip(heights, widths, images, strict=True)][:10]
    common = html_table(["size", f"images (of {measured:,})", "share"], top)
    parts.append(f"<div class=beside><div><p>The commonest of {len(sizes):,} sizes:</p>{common}</div>")
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.scatter(sizes["width"], sizes["height"], s=12 + 500 * sizes["images"] / measured, alpha=0.45, color=BAR, linewidths=0)
    axes.set(xlabel="width (pixels)", ylabel="height (pixels)", title=f"sizes of {measured:,} images; area: how many",
             aspect="equal", xlim=(0, None), ylim=(0, None))  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    return [*parts, export.svg(figure, found.table.synthetic), "</div>"]


def _gallery(found: Description) -> list[str]:
    if not found.pictures:
        return []
    what = "the first view" if found.table.views else "the middle slice"
    about = f"<p class=n>Training studies drawn at random, {what} of each, scaled to {SIDE} pixels.</p>"
    parts = ["<h2>Pictures</h2>", about]
    for group, pictures in found.pictures.items():
        parts.append(f"<h3>{html.escape(group)}</h3><div class=pictures>")
        parts += [*(picture(caption, _png(image)) for caption, image in pictures), "</div>"]
    return parts


def _png(image: np.ndarray) -> bytes:
    """A picture of at most twice ``SIDE``, as the bytes of a PNG."""
    height, width = image.shape[:2]
    scale = 2 * SIDE / max(height, width)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", image)[1].tobytes()


def _cell(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _two_heads(first: str, over: Sequence[str], columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns repeat under every word of ``over``."""
    wide = "wide" if len(columns) > 3 else ""
    return f"<div class=scroll>{html_table([first, *list(columns) * len(over)], rows, wide, over, len(columns))}</div>"
