"""Stored runs -> tables for a page."""

from __future__ import annotations

import importlib.metadata
import math
import re

import numpy as np
import pandas as pd

from ncutils import store
from ncutils.analysis import Groups
from ncutils.book import pages
from ncutils.book.style import LABELS
from ncutils.runs import History, exact_law


def law_table(histories: list[History]):
    """Final NC0 by the exact law and as measured, relative to its start, and the largest relative error above 1e-4."""
    rows = []
    for history in histories:
        law = exact_law(history)[history.frame["step"]]
        measured = history.frame["nc0"].to_numpy() / history.frame["nc0"].iloc[0]
        error = np.abs(measured / law - 1)[law > 1e-4].max()  # where float32 can follow
        rows.append((law[-1], measured[-1], error))
    columns = ["final / initial, law", "measured", "largest relative error, law > 1e-4"]
    table = store.table(histories)[["optimizer", "momentum", "wd", "seed"]]
    table = table.join(pd.DataFrame(rows, columns=columns))
    formats = dict.fromkeys(columns, "{:.3g}") | dict.fromkeys(("momentum", "wd"), "{:g}")
    return pages.table(table, formats, index=False)


def final_table(groups: Groups, published_values: dict, columns=("nc0", "nc1", "nc2", "nc3")) -> pd.DataFrame:
    """Tables 1 and 2: a row an optimizer, with each final metric, mean (and std over seeds), its change since
    initialisation, and the paper's, of `published_values`: optimizer -> column -> value.

    Means are over the valid runs; an optimizer without one shows its dropped runs, and says so in a last column. None is
    over a diverged run.
    """
    rows = {}
    for label, histories in groups.items():
        valid = [h for h in histories if h.valid]
        shown = valid or [h for h in histories if not h.diverged] or histories[:1]
        finals, row = store.table(shown), {}
        for column in columns:
            final = finals[column]
            change = (final / [h.frame[column].iloc[0] for h in shown] - 1).mean()
            spread = f"<br>±\N{NO-BREAK SPACE}{final.std():.2g}" if len(shown) > 1 else ""
            here = f"{final.mean():.3g}{spread}<br>({_percent(change)})"
            here = "diverged" if shown[0].diverged else here if np.isfinite(final).all() else "undefined"
            paper = f"{published_values[label][column]:g}" if label in published_values else "–"
            row |= {(LABELS[column], "here"): here, (LABELS[column], "paper"): paper}
        if dropped := len(histories) - len(valid):
            accuracy = f"{finals['train_acc'].mean():.1%} ({dropped} of {len(histories)} dropped)"
            row["training", "accuracy"] = accuracy
        rows[label] = row
    return pd.DataFrame.from_dict(rows, orient="index").fillna("")


def beside_paper(scales: dict[str, Groups], paper: dict, changes: dict | None = None) -> pd.DataFrame:
    """Tables 1 and 2 number by number: a row an optimizer and metric, with the paper's value and that of a run of each scale,
    in brackets each one's change since initialisation, and its ratio to the paper's."""
    rows = {}
    for name, values in paper.items():
        for column, value in values.items():
            change = (changes or {}).get(name, {}).get(column)
            row = {"paper": f"{value:g}" + ("" if change is None else f" ({_percent(change / 100)})")}
            for scale, groups in scales.items():
                for h in (h for h in groups.get(name, []) if not h.diverged):
                    last, at = h.final[column], scale + f", seed {h.run.seed}" * (h.run.seed != 3141)
                    fails = "" if h.valid else ", fails the filter"
                    row[at] = f"{last:.3g} ({_percent(last / h.frame[column].iloc[0] - 1)}{fails})"
                    row[f"{at}, ratio"] = f"{last / value:.2f}"
            if len(row) > 1:
                rows[name, LABELS[column]] = row
    return pd.DataFrame.from_dict(rows, orient="index").fillna("–").rename_axis(["optimizer", "metric"])


def with_interval(ratio: float, low: float, high: float) -> str:
    """A ratio with the interval of `analysis.ratio_of_medians`, where there is one; nothing where no pair is."""
    if math.isnan(ratio):
        return ""
    ratio, low, high = (f"{x:.3g}" if x < 1000 else f"{x:,.0f}" for x in (ratio, low, high))
    return ratio if low == "nan" else f"{ratio} [{low}, {high}]"


def _percent(change: float) -> str:
    text = "≫ 100 %" if change > 2 else "< -99.5 %" if change < -0.995 else f"{100 * change:+.1f} %"
    return text.replace(" ", "\N{NO-BREAK SPACE}").replace("-", "\N{MINUS SIGN}")


def licences() -> pd.DataFrame:
    """Each package that ncutils needs, its extras' included, with its installed version and the licence that it declares."""
    rows = {}
    for text in importlib.metadata.requires("ncutils"):
        name = re.match(r"[\w.-]+", text)[0]
        if name == "ncutils":
            continue
        try:
            about = importlib.metadata.metadata(name)
        except importlib.metadata.PackageNotFoundError:  # of an extra that is not installed
            continue
        named = [c.split(" :: ")[-1] for c in about.get_all("Classifier", []) if c.startswith("License ::")]
        text = (about.get("License") or "unknown").split("\n")[0]
        rows[name] = (name, about["Version"], about.get("License-Expression") or ", ".join(named) or text)
    return pd.DataFrame(rows.values(), columns=["package", "version", "licence"])
