"""What the paper says and what is seen here: all claims, judged, as a table and on the pages that show it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ncutils.book.claims import CLAIMS, look, stored_runs


def board() -> pd.DataFrame:
    """One row a figure or table: item, says, sees, scale, verdict, page."""
    rows, stored = [], stored_runs()
    for line in CLAIMS.itertuples():
        seen = look(line.look, stored)
        rows.append((line.item, line.says, seen.text, scale(seen.runs), seen.verdict, line.page))
    return pd.DataFrame(rows, columns=["item", "says", "sees", "scale", "verdict", "page"])


def scale(runs: pd.DataFrame) -> str:
    """At which scale runs were made, in short."""
    if runs.empty:
        return ""
    runs, columns = runs.drop_duplicates("steps"), ("width", "images", "epochs")
    width, images, epochs = (", ".join(f"{v:,}" for v in sorted(set(runs[c]))) for c in columns)
    if set(runs["arch"]) != {"mlp"}:  # the paper does not state that one's width
        width += " of 64"
    width = "paper's width" if width == "64 of 64" else f"width {width}"
    return f"{width}, {images} samples, {epochs} epochs, {len(runs)} runs"


def write(project: Path) -> None:
    """The board into the book's first page, chapters/intro.md, and its counts, with a link there, into README.md."""
    table = board()
    n = table["verdict"].value_counts()
    counts = ", ".join(f"{n.get(v, 0)} {v}" for v in ("agree", "partly", "disagree", "not run"))
    text = f"Of {len(table)} figures and tables: {counts}. Judged by rule (`ncutils/book/claims.py`) from the runs in `results/`."
    rows = ["| in the paper | it says | here | scale | |", "|---|---|---|---|---|"]
    for r in table.itertuples():
        rows.append(f"| [{r.item}]({r.page}.ipynb) | {r.says} | {r.sees} | {r.scale} | **{r.verdict}** |")
    _put(project / "chapters/intro.md", "\n".join([text, "", *rows]))
    _put(project / "README.md", f"{text} Line by line: [the book's first page](chapters/intro.md).")


def _put(page: Path, text: str) -> None:
    """Writes a text between the page's two marks."""
    first, last = "<!-- scoreboard -->", "<!-- end of scoreboard -->"
    head, start, rest = page.read_text("utf-8").partition(f"{first}\n")
    _, end, tail = rest.partition(last)
    if not start or not end:
        raise ValueError(f"{page} has no place for the scoreboard: {first} and {last}")
    page.write_text(f"{head}{start}\n{text}\n\n{end}{tail}", "utf-8")
