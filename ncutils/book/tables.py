"""Stored runs -> tables for a page."""

from __future__ import annotations

import importlib.metadata
import re

import numpy as np
import pandas as pd

from ncutils.analysis import Groups
from ncutils.book.figures import LABELS
from ncutils.runs import History, exact_law


def law_table(histories: list[History]):
    """Final NC0 by the exact law and as measured, relative to its start, and the largest relative error above 1e-4."""
    rows = []
    for history in histories:
        start = history.frame["nc0"].iloc[0]
        law, measured = exact_law(history)[history.frame["step"]], history.frame["nc0"].to_numpy() / start
        error = np.abs(measured / law - 1)[law > 1e-4].max()  # where float32 can follow
        run = history.run
        rows.append(
            (run.optimizer, f"{run.momentum:g}", f"{run.wd:g}", run.seed, law[-1], measured[-1], error)
        )
    measured = ["final / initial, law", "measured", "largest error above 1e-4"]
    table = pd.DataFrame(rows, columns=["optimizer", "momentum", "wd", "seed", *measured])
    styled = table.style.format("{:.3g}", subset=measured).set_properties(**{"white-space": "nowrap"})
    return styled.hide(axis="index").set_table_attributes('style="font-size: 85%"')


def final_table(groups: Groups, published_values: dict, columns=("nc0", "nc1", "nc2", "nc3")) -> pd.DataFrame:
    """A row an optimizer: each final metric, mean (and std over seeds), its change since initialisation, the paper's.

    Means are over the valid runs; an optimizer without one shows its dropped runs, and says so in a last column. None is
    over a diverged run.
    """
    rows = {}
    for label, histories in groups.items():
        valid = [h for h in histories if h.valid]
        shown, row = valid or [h for h in histories if not h.diverged] or [histories[0]], {}
        for column in columns:
            final = np.array([h.final[column] for h in shown])
            change = np.mean([h.final[column] / h.frame[column].iloc[0] - 1 for h in shown])
            spread = f"<br>±\N{NO-BREAK SPACE}{final.std(ddof=1):.2g}" if len(final) > 1 else ""
            value = (
                f"{final.mean():.3g}{spread}<br>({_percent(change)})"
                if np.isfinite(final).all()
                else "undefined"
            )
            value = "diverged" if shown[0].diverged else value
            row[LABELS[column], "here"] = value
            row[LABELS[column], "paper"] = (
                f"{published_values[label][column]:g}" if label in published_values else "–"
            )
        if len(valid) < len(histories):
            accuracy = np.mean([h.final["train_acc"] for h in shown])
            row["training", "accuracy"] = (
                f"{accuracy:.1%} ({len(histories) - len(valid)} of {len(histories)} dropped)"
            )
        rows[label] = row
    return pd.DataFrame.from_dict(rows, orient="index").fillna("")


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
        licence = (
            about.get("License-Expression")
            or ", ".join(named)
            or (about.get("License") or "unknown").split("\n")[0]
        )
        rows[name] = (name, about["Version"], licence)
    return pd.DataFrame(rows.values(), columns=["package", "version", "licence"])
