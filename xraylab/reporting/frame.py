"""The frame that every page shares: heading, the answer in a sentence, contents, style. One file, which needs no network."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, Environment, FileSystemLoader, select_autoescape
from markupsafe import Markup

from xraylab.evaluation.metrics import METRICS, how_intervals, number, numbers, without_interval
from xraylab.evaluation.operating_points import threshold_text, trivial
from xraylab.evaluation.result import choices, with_macro
from xraylab.reporting import summary

TEMPLATES = Path(__file__).parent / "templates"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=select_autoescape(), keep_trailing_newline=True, trim_blocks=True,
        lstrip_blocks=True, undefined=ChainableUndefined,
    )  # fmt: skip
    words = (
        choices, how_intervals, number, numbers, threshold_text, trivial, with_macro, without_interval, summary.after_temperature,
        summary.chosen_on, summary.evaluated_of, summary.exclusive_note, summary.macro_notes, summary.moved, summary.rules,
        summary.tie_notes, summary.units,
    )  # fmt: skip
    environment.globals.update({f.__name__: f for f in words}, METRICS=METRICS, table=lambda *args: Markup(table(*args)))
    environment.filters["sentence"] = sentence
    return environment


def render(template: str, **values: Any) -> str:
    """A template of ``templates``, filled in; one of HTML escapes its values. Templates call what says numbers in words."""
    return _environment().get_template(template).render(values)


def sentence(words: str) -> str:
    """With a capital letter and a full stop.

    >>> sentence("95% intervals over patients")
    '95% intervals over patients.'
    """
    return f"{words[0].upper()}{words[1:]}."


def framed(
    heading: str, beside: str, body: str, synthetic: bool, title: str = "xraylab report", answer: str = "",
    caveats: Sequence[str] = (), style: str = "",
) -> str:  # fmt: skip
    """A whole page, HTML.

    Args:
        heading, beside: the first line, and what is smaller beside it; text.
        body: HTML, whose headings of the second level become the contents; tables are made to scroll by themselves.
        synthetic: the page says so in its title and at its top.
        title: of the browser's window; text.
        answer: the sentence that the page opens with; text.
        caveats: what to know before its numbers are read, in sentences without a full stop; text.
        style: further CSS.
    """
    contents: list[tuple[str, str]] = []

    def named(found: re.Match[str]) -> str:
        text = Markup(re.sub(r"<small>.*?</small>", "", found[1], flags=re.S)).striptags()
        name = re.sub(r"\W+", "-", text.lower()).strip("-")
        while name in dict(contents):
            name += "-"
        contents.append((name, text))
        return f'<h2 id="{name}">{found[1]}</h2>'

    body = re.sub(r"<h2>(.*?)</h2>", named, body, flags=re.S)
    body = re.sub(
        r"(?<!<div class=scroll>)(?<!<div class=settings>)(<table.*?</table>)", r"<div class=scroll>\1</div>", body, flags=re.S
    )
    css = (TEMPLATES / "style.css").read_text(encoding="utf-8") + style
    return render(
        "page.html",
        heading=heading, beside=beside, title=title + " (synthetic sample)" * synthetic, synthetic=synthetic, answer=answer,
        caveats=list(map(sentence, caveats)), contents=contents, style=Markup(css), body=Markup(body),
    )  # fmt: skip


class Quiet(str):
    """A cell of a table in small grey letters."""

    quiet = True


def table(
    head: Sequence[object], rows: Iterable[Sequence[object]], style: str = "", over: Sequence[str] = (), span: int = 1
) -> str:  # fmt: skip
    """A table, HTML.

    Args:
        head: of each column; none: no such row.
        rows: of cells, in which text is escaped and :class:`~markupsafe.Markup` is not.
        style: a class of it.
        over: words above ``span`` columns each, beginning with the second column.

    >>> table(["", "n"], [["a < b", 1], [Markup("<b>c</b>"), Quiet("2")]])
    '<table><tr><th></th><th>n</th></tr><tr><td>a &lt; b</td><td>1</td></tr><tr><td><b>c</b></td><td class=n>2</td></tr></table>'
    """
    return render("table.html", head=head, rows=rows, style=style, over=over, span=span).rstrip()


def picture(caption: str, png: bytes, style: str = "") -> str:
    """A picture with its caption, HTML; ``style`` is a class of it."""
    return render("picture.html", caption=caption, source=base64.b64encode(png).decode(), style=style).rstrip()
