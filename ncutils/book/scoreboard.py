"""What the paper says and what is seen here: all statements, judged, as a table and on the pages that show it."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from ncutils.book import claims, verdicts
from ncutils.book.verdicts import VERDICTS, Counted, Statement


def board(stored: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row a statement, or a figure without one: item, page, claim, sees, scale, statement, and `verdicts.judged`."""
    stored, rows = claims.stored_runs() if stored is None else stored, []
    for line in claims.CLAIMS.itertuples():
        seen = claims.look(line.look, stored)
        for statement in seen.statements or [none(line.says, seen.text)]:
            rows.append(
                (line.item, line.page, line.says, seen.text, scale(seen.runs), line.family, statement)
            )
    columns = ["item", "page", "claim", "sees", "scale", "family", "statement"]
    return verdicts.judged(pd.DataFrame(rows, columns=columns))


def none(says: str, why: str) -> Statement:
    """A statement without a comparison, and why."""
    return Statement(
        says, pd.DataFrame(columns=["like", "one", "other", "value", "fixed"], dtype=object), why=why
    )


def scale(runs: pd.DataFrame) -> str:
    """At which scale runs were made, in short."""
    if runs.empty:
        return ""
    columns = ("width", "images", "epochs")
    width, images, epochs = (", ".join(f"{v:,}" for v in sorted(set(runs[c]))) for c in columns)
    if set(runs["arch"]) != {"mlp"}:  # the paper does not state that one's width
        width += " of 64"
    width = "the paper's width" if width == "64 of 64" else f"width {width}"
    return f"{width}, {images} samples, {epochs} epochs"


def write(project: Path) -> None:
    """The board into chapters/scoreboard.md, what follows from it into chapters/verdict.md, a digest of both into the book's
    first page, chapters/intro.md, and the counts, with links there, into README.md."""
    stored = claims.stored_runs()
    table = board(stored)
    counts = counted(table)
    _put(
        project / "chapters/scoreboard.md",
        "\n\n".join([rule(), counts, _statements(table), _filters(stored), _words(table)]),
    )
    sentences = verdict(table)
    _put(
        project / "chapters/verdict.md",
        "\n".join(f"{i}. **{short}.** {s}" for i, (short, s) in enumerate(sentences.items(), 1)),
    )
    short = "\n".join(f"- {name}." for name in list(sentences)[:4])  # the counts say the other two
    if (again := claims.look(claims.table1_at_its_width, stored)).statements:
        short += (
            f"\n- Run again at the paper's width, {scale(again.runs).partition(', ')[2]}, from Table 1's own initial weights, {again.text} "
            "([one run each](03_adamw.ipynb))."
        )
    _put(
        project / "chapters/intro.md",
        f"{short}\n\n{counts} [The verdict](verdict.md) has the numbers, [the scoreboard](scoreboard.md) each statement.",
    )
    _put(
        project / "README.md",
        f"{counts} [The verdict](chapters/verdict.md), [statement by statement](chapters/scoreboard.md).",
    )


def counted(table: pd.DataFrame) -> str:
    """How many statements have which verdict, and what Holm's correction leaves."""
    n, decided = table["verdict"].value_counts(), table[table["verdict"].isin(["supported", "against"])]
    each = ", ".join(f"{n.get(v, 0)} {v}" for v in VERDICTS)
    kept = (decided["p"] < verdicts.LEVEL).sum()
    return (
        f"Of {len(table)} statements about the paper's 45 figures and 5 tables: {each}. Of the {len(decided)} that are supported or "
        f"against, {kept} stay so after Holm's correction. Judged by rule (`ncutils/book/verdicts.py`) from the runs in `results/`."
    )


def rule() -> str:
    """The thresholds in words, from `verdicts`."""
    v, half, twice = verdicts, math.sqrt(verdicts.CLOSE), verdicts.CLOSE**2
    return f"""- **Supported**: at least {100 * (1 - v.MINORITY):.0f} % of the comparisons go the paper's way, and the interval lies above one half. **Against**: at most
  {100 * v.MINORITY:.0f} % do, and it lies below. **Not decided**: the interval holds both one half and such a majority, or all comparisons are of fewer than
  {v.FEWEST} settings and seeds. **Mixed**: any other. **Not run**: there is nothing to compare.
- Close means within a factor of {v.CLOSE:g}; a curve has settled within a factor of {v.STILL:g}; an accuracy stays within {v.ACCURACY:g}; an order of magnitude is {v.MUCH:g};
  metrics are unrelated under a rank correlation of {v.UNRELATED:g}. The last column says, too, where half or twice a threshold would change the verdict: {100 * v.MINORITY / 2:.0f} or
  {200 * v.MINORITY:.0f} % in place of {100 * v.MINORITY:.0f}, and half or twice the logarithm of a factor ({half:.2g} or {twice:g} in place of {v.CLOSE:g}).
- The p after Holm is that of one half; a family is the figure of the main text with its five counterparts in the appendix, or all statements of one row.
  It decides nothing here; the level is {v.LEVEL:g}."""


def share(c: Counted) -> str:
    """How many of how many, with the interval."""
    if not c.n:
        return ""
    low, high = c.interval
    return f"{c.k:,} of {c.n:,} ({100 * low:.0f} to {100 * high:.0f} %)"


def ratio(effect: tuple[float, float, float]) -> str:
    """A median ratio with its interval, where there are sets enough for one."""
    middle, low, high = effect
    if math.isnan(middle):
        return ""
    return f"{middle:.3g}" + ("" if math.isnan(low) else f" ({low:.3g} to {high:.3g})")


def fixed(row) -> str:
    """What fixing the gauge leaves of a statement."""
    if row.statement.gauge != "changes":
        return (
            {"zero": "NC0 is 0", "same": "the same"}.get(row.statement.gauge, row.statement.gauge)
            if row.counted.n
            else ""
        )
    return f"{share(row.fixed)} {row.fixed_verdict}" if row.fixed.n else "not stored"


def _statements(table: pd.DataFrame) -> str:
    rows = [
        "| statement | the paper's way | gauge fixed | ratio | p, Holm | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for (item, claim), lines in table.groupby(["item", "claim"], sort=False):
        for i, r in enumerate(lines.itertuples()):
            name = "" if i else f"[{item}]({r.page}.ipynb): "
            says = claim if r.statement.says == claim else f"{_setting(claim)}{r.statement.says}"
            why = f" ({r.statement.why})" if r.statement.why else ""
            n, p = r.counted.sets, f"{r.p:.2g}" if r.counted.n else ""
            way = f"{share(r.counted)}, {n} set{'s' if n > 1 else ''}" if r.counted.n else ""
            moves = f"; {r.moves}" if r.moves else ""
            cells = (
                f"{name}{says}{why}",
                way,
                fixed(r),
                ratio(r.statement.effect()),
                p,
                f"**{r.verdict}**{moves}",
            )
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([":::{div} full-width", *rows, ":::"])


def _setting(claim: str) -> str:
    """The setting that a claim's words begin with, if any."""
    setting, colon, _ = claim.partition(": ")
    return f"{setting}: " if colon and " on " in setting or setting == claims.TOGETHER[:-2] else ""


def _filters(stored: pd.DataFrame) -> str:
    try:
        table = claims.filters(stored)
    except claims.NotRun:
        return ""
    rows = [
        "## The filter",
        "Pairs of the six settings in which the decoupled run is above, by the training accuracy that a run needs to count. Runs that diverged never do, nor those whose metric is not defined.",
    ]
    lines = [f"| | {' | '.join(table)} |", "|---" * (len(table.columns) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(values)} |" for name, *values in table.itertuples()]
    return "\n\n".join([*rows, "\n".join(lines)])


def _words(table: pd.DataFrame) -> str:
    """What is seen in words, a line a figure, and its scale where it is not the usual one."""
    once = table.drop_duplicates(["item", "claim"])
    usual = once["scale"].replace("", pd.NA).mode()
    usual = usual.iloc[0] if len(usual) else ""
    rows = [
        "## In words",
        f"All runs are of {usual}, where nothing else stands." if usual else "No run is stored.",
    ]
    lines = ["| in the paper | it says | here |", "|---|---|---|"]
    for r in once[once["sees"] != ""].itertuples():
        at = f" ({r.scale})" if r.scale not in ("", usual) else ""
        lines.append(f"| [{r.item}]({r.page}.ipynb) | {r.claim} | {r.sees}{at} |")
    return "\n\n".join([*rows, "\n".join(lines)])


def verdict(table: pd.DataFrame) -> dict[str, str]:
    """Six sentences, their short form as key: each with its numbers and links to its evidence."""
    pairs, decay, rises = (f"Figures {first}, {second}, " for first, second in ((1, 19), (3, 20), (10, 23)))
    acted = "AdamW above Adam in NC3, AdamW's decay has acted"
    known = {(r.item, r.statement.says): r for r in table.itertuples()}

    def of(item, says):
        rows = [(words, r) for (i, words), r in known.items() if i.startswith(item)]
        return next(
            (r for words, r in rows if words.startswith(says)), rows[0][1]
        )  # or, not run, the row as a whole

    def told(item, says, after=False, effect=True):
        row = of(item, says)
        words = f"{share(row.counted)}, {row.verdict}" + (f" ({row.moves})" if row.moves else "")
        if effect and (middle := ratio(row.statement.effect())):
            words += f", median ratio {middle}"
        return words + (f"; with the gauge fixed {share(row.fixed)}, {row.fixed_verdict}" if after else "")

    def near(metric):
        return told("Table 1", f"{metric} is near")

    def stands(*statements):
        rows = [of(*s) for s in statements]
        gauge = {r.fixed_verdict for r in rows if r.statement.gauge == "changes"}
        if {r.verdict for r in rows} | gauge == {"supported"}:
            return "this stands, with the gauge fixed, too"
        return "this is not supported in every part"

    def named(rows):
        found = [
            f"{_setting(r.claim)}{r.statement.says} ([{r.item}]({r.page}.ipynb): {share(r.counted)})"
            for r in rows.itertuples()
        ]
        return "; ".join(found) or "nothing"

    n = table["verdict"].value_counts().reindex(VERDICTS, fill_value=0)
    first = "Larger weight decay lowers NC0 and NC3 of SGD and Signum: "
    first += stands((decay, "NC0 of SGD"), (decay, "NC3 of SGD"))
    second = "Decoupled decay leaves NC3 higher than coupled decay: "
    second += stands(
        (decay, "SignumW above Signum in NC3"), (pairs, acted), (pairs, "AdamW above Adam in NC3, both")
    )
    third = "From AdamW to Adam, at one total decay, NC0 and NC3 fall: " + stands(
        ("Figure 7", "NC0"), ("Figure 7", "NC3")
    )
    before, after = of(rises, "NC3 is larger").verdict, of(rises, "NC3 is larger").fixed_verdict
    fourth = (
        f"NC0 is a gauge, and that NC3 rises with it is {before} before the gauge is fixed and {after} after"
    )
    fifth = f"{n['not decided'] + n['not run']} of {len(table)} statements are not decided at this scale, or not run"
    sixth = f"Of {len(table)} statements {n['against']} go{'es' if n['against'] == 1 else ''} against the paper at this scale, and {n['mixed']} are mixed"
    other = [bool(c.n) and c.k / c.n <= verdicts.MINORITY for c in table["counted"]]
    few = table[(table["verdict"] == "not decided") & pd.Series(other, table.index)]
    mixed = pd.Series(
        [s.says for s in table[table["verdict"] == "mixed"]["statement"]], dtype=str
    ).value_counts()
    return {
        first: f"In the six settings together NC0 in {told(decay, 'NC0 of SGD')}; NC3 in {told(decay, 'NC3 of SGD', True)} "
        "([weight decay and momentum](02_weight_decay.ipynb), [six settings](14_six_settings.ipynb)).",
        second: f"SignumW over Signum in {told(decay, 'SignumW above Signum in NC3', True)}; AdamW over Adam, where AdamW's decay has acted, in "
        f"{told(pairs, acted, True)}, and best decay against best decay in {told(pairs, 'AdamW above Adam in NC3, both', True)} "
        "([Adam and AdamW](03_adamw.ipynb)).",
        third: f"NC0 in {told('Figure 7', 'NC0')}; NC3 in {told('Figure 7', 'NC3', True)}; NC2, which the paper names, too, in "
        f"{told('Figure 7', 'NC2')}; accuracy stays in {told('Figure 7', 'accuracy', effect=False)} ([from AdamW to Adam](05_interpolation.ipynb)).",
        fourth: "Set to zero after training, NC0 changes no prediction ([NC0 is a gauge](22_gauge.ipynb)), so that no statement about its size alone is one "
        f"about predictions; of two runs, the one with the larger NC0 has the larger NC3 in {told(rises, 'NC3 is larger', True)} "
        "([regression](12_regression.ipynb)).",
        fifth: f"Among them are AdamW over Adam in the main setting alone, {claims.MAIN}, where AdamW's decay has acted (NC3 in {told('Figure 1', acted)}), most of "
        "the [transformer](15_vit.ipynb), [ImageNet](16_imagenet.ipynb), and, from one seed, Table 1 by the paper's own protocol and width (near the paper's value, within a "
        f"factor of {verdicts.CLOSE:g}: NC0 in {near('NC0')}, NC3 in {near('NC3')}; [all of them](scoreboard.md)).",
        sixth: f"Against: {named(table[table['verdict'] == 'against'])}. As far the other way, but in too few comparisons to decide: {named(few)}. "
        f"Mixed: {'; '.join(f'{says} ({k} of the lines)' for says, k in mixed.items()) or 'nothing'} ([the scoreboard](scoreboard.md)).",
    }  # fmt: skip


def _put(page: Path, text: str) -> None:
    """Writes a text between the page's two marks."""
    first, last = "<!-- scoreboard -->", "<!-- end of scoreboard -->"
    head, start, rest = page.read_text("utf-8").partition(f"{first}\n")
    _, end, tail = rest.partition(last)
    if not start or not end:
        raise ValueError(f"{page} has no place for the scoreboard: {first} and {last}")
    page.write_text(f"{head}{start}\n{text}\n\n{end}{tail}", "utf-8")
