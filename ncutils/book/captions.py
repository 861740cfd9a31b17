"""Captions: a figure's name, words and provenance, the numbers that it shows, and how a built page holds all of that.

In a notebook the caption stands under the picture, as Markdown. In the built page the two are one `<figure>`, the picture within
the page, so that it takes the page's colours; MyST-NB finds `Figures`, which makes it, by its entry point.
"""

from __future__ import annotations

import dataclasses
import html
import io
import re
import urllib.parse
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from matplotlib.figure import Figure

from ncutils.book.style import in_page

MOST_POINTS = 150  # of a line, its ends among them, in the numbers beside a figure


def caption(name: str, text: str, figure: Figure | None = None, also: Sequence[str] = ()) -> None:
    """Shows a figure, by default the cell's last one, and its caption under it: name, `text` in Markdown, and what the figure
    rests on (its `provenance`, see `figures.rests_on`).

    `name` is "Figure 5" where it redraws the paper's, "Figure A" where it is the book's own; `also` has the names of others
    of the paper's that it redraws. Each is a place in the page that links can name.
    """
    figure, name = figure or plt.gcf(), ", ".join([name, *also])
    rests_on = getattr(figure, "provenance", "")
    about = {"name": name, "caption": text, "provenance": rests_on, "numbers": numbers(figure)}
    content = io.StringIO()
    figure.savefig(content, format="svg", bbox_inches="tight", metadata={"Date": None})
    svg = in_page("<svg" + content.getvalue().partition("<svg")[2])
    display({"image/svg+xml": svg, "text/plain": name}, metadata={"figure": about}, raw=True)
    plt.close(figure)
    small = f"<br><small>{rests_on}</small>" if rests_on else ""
    display(Markdown(f"**{name}.** {text}{small}"), metadata={"caption": name})


def numbers(figure: Figure) -> str:
    """What a figure shows as CSV: panel, label, x, y; of bars their far corner, of a heat map row and column in place of x."""
    rows: list[tuple] = []
    for i, axis in enumerate(figure.axes):
        panel = axis.get_title() or axis.get_ylabel() or str(i + 1)
        for line in axis.lines:
            if line.get_transform() == axis.transData:  # else a rule across the panel
                x, y = (np.atleast_1d(values) for values in line.get_data())
                some = np.unique(np.linspace(0, len(x) - 1, min(len(x), MOST_POINTS)).round().astype(int))
                rows += [(panel, line.get_label(), *point) for point in zip(x[some], y[some])]
        for points in axis.collections:
            if points.get_offset_transform() == axis.transData:
                rows += [(panel, points.get_label(), *point) for point in np.asarray(points.get_offsets())]
        for bars in axis.containers:
            corners = [bar.get_bbox().p1 for bar in getattr(bars, "patches", ())]
            rows += [(panel, bars.get_label(), *corner) for corner in corners]
        for image in axis.images:
            values = np.ndenumerate(np.atleast_2d(image.get_array()))
            rows += [(panel, "", f"row {at[0]}, column {at[1]}", value) for at, value in values]
    table = pd.DataFrame(rows, columns=["panel", "label", "x", "y"])
    table["label"] = [re.sub("^_.*", "", str(label)) for label in table["label"]]  # matplotlib's own names
    for of in ("x", "y"):
        table[of] = [v if isinstance(v, str) else f"{v:.6g}" for v in table[of]]
    return table.to_csv(index=False)


class Figures:
    """MyST-NB's renderer of figures and their captions."""

    mime_priority_overrides = ()

    @staticmethod
    def handle_mime(renderer, data, inline):
        """The nodes of a figure that has a caption, nothing to see of the caption's own output, None for all else."""
        from docutils import nodes

        if data.mime_type == "text/markdown" and "caption" in data.output_metadata:
            return [nodes.comment()]  # it stands in the figure
        about = data.output_metadata.get("figure")
        if data.mime_type != "image/svg+xml" or not about:
            return None
        name = about["name"]
        file, *others = name.lower().replace(", ", ",").replace(" ", "-").split(",")
        places = "".join(f'<span id="{other}"></span>' for other in others)
        words = re.sub(r"\]\([^)]*\)|[\[*_`$\\{}]", "", about["caption"])
        width, svg = re.search(r'width="([\d.]+)pt"', data.string), data.string
        if width:  # text of 8 points has as many pixels; a page is hardly wider than the most
            svg = svg.replace('style="', f'style="min-width: {min(float(width[1]), 660):.0f}px; ', 1)
        svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
        svg = svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(f"{name}. {words}")}" ', 1)
        link = f"data:text/csv;charset=utf-8,{urllib.parse.quote(about['numbers'], safe=' ,;:()=+-/^$')}"
        below = f'{html.escape(about["provenance"])} <a download="{file}.csv" href="{link}">Numbers (CSV)</a>'
        text = dataclasses.replace(
            data, mime_type="text/markdown", content=f"**{name}.** {about['caption']}", output_metadata={}
        )
        return [
            nodes.raw("", f'<figure class="drawn" id="{file}">{places}{svg}<figcaption>', format="html"),
            *renderer.render_markdown(text),
            nodes.raw("", f'<p class="provenance">{below}</p></figcaption></figure>', format="html"),
        ]
