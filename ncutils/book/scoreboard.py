"""What the paper says and what is seen here: all statements, judged, as a table and on the pages that show it."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Set
from pathlib import Path

import numpy as np
import pandas as pd

from ncutils import analysis
from ncutils.book import claims, verdicts
from ncutils.book.tables import with_interval
from ncutils.book.verdicts import VERDICTS, Counted, Statement
from ncutils.files import write_whole
from ncutils.optimizers import COUPLED, OPTIMIZERS


def board(stored: pd.DataFrame) -> pd.DataFrame:
    """One row a statement, or a figure without one: item, page, claim, sees, scale, family, the optimizers of the runs, statement, and
    `verdicts.judged`."""
    rows = []
    for line in claims.CLAIMS.itertuples():
        seen = claims.look(line.look, stored)
        labels = " ".join({*seen.runs.get("label", ())})
        of = line.item, line.page, line.says, seen.text, scale(seen.runs), line.family, labels
        rows += [(*of, s) for s in seen.statements or [Statement(line.says, why=seen.text)]]
    columns = ["item", "page", "claim", "sees", "scale", "family", "optimizers", "statement"]
    return verdicts.judged(pd.DataFrame(rows, columns=columns))


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


def usual_scale(table: pd.DataFrame) -> str:
    """The scale that most statements rest on, or none."""
    scales = table["scale"].replace("", pd.NA).mode()
    return scales.iloc[0] if len(scales) else ""


def write(project: Path) -> None:
    """The board into chapters/scoreboard.md, what follows from it into chapters/verdict.md, a digest of both into the book's
    first page, chapters/intro.md, and the counts, with links there, into README.md."""
    stored = claims.shipped_runs()
    table = board(stored)
    hardly = {*stored.query("decoupled_wd > 0 and budget < 1")["run"]}
    counts = counted(table, hardly)
    _put(
        project / "chapters/scoreboard.md",
        "\n\n".join([counts, _statements(table), "## How a verdict is reached", rule(), _filters(stored)]),
    )
    sentences = verdict(table)
    _put(project / "chapters/verdict.md", "\n\n".join(f"## {short}\n\n{s}" for short, s in sentences.items()))
    short = "\n".join(f"- {name}." for name in list(sentences)[:4])  # the counts say the other two
    again = claims.look(claims.table1_at_its_width, stored)
    if again.statements:
        short += (
            f"\n- Run again at the paper's width, {scale(again.runs).partition(', ')[2]}, from the initial weights that Table 1 points to, {again.text} "
            f"([one run each](03_adamw.ipynb), convolutions in {' or '.join(sorted(set(again.runs['precision'])))}, learning rate and decay inferred)."
        )
    six = claims.look(claims.table1_by_its_protocol, stored)
    if six.statements:
        short += f"\n- Table 1's six optimizers at {scale(six.runs)}, one run each: {six.text}."
    _put(
        project / "chapters/intro.md",
        f"{short}\n\n{counts} [The verdict](verdict.md) has the numbers, [the scoreboard](scoreboard.md) each statement.",
    )
    _put(project / "chapters/intro.md", facts(table, again, six), "facts")
    _put(
        project / "README.md",
        f"{counts} [The verdict](chapters/verdict.md), [statement by statement](chapters/scoreboard.md).",
    )


def facts(table: pd.DataFrame, again: claims.Seen, six: claims.Seen) -> str:
    """Three cards for the first screen: how much is judged, at which scale, what was not run."""
    n, usual = table["verdict"].value_counts(), usual_scale(table)
    each = ", ".join(f"{n[v]} {v}" for v in VERDICTS if v in n)
    most = f"Most rest on {usual}." if usual else "No run is stored."
    names = " and ".join(again.runs["label"]) if again.statements else "none"
    own = f"At the paper's own, of Table 1: {names}"
    own += f"; all six at {scale(six.runs)}." if six.statements else "."
    of_imagenet = table.loc[table["page"] == "16_imagenet", "verdict"]
    imagenet = "ImageNet. " if set(of_imagenet) == {"not run"} else ""
    cards = {
        f"{len(table)} statements judged": f"{each[0].upper()}{each[1:]}. Of the supported, {_of_one_network(table[table['verdict'] == 'supported'])} rest on seeds of one network and data set, and {_after_holm(table)} by figure.",
        "At which scale": f"{most} {own}",
        "Not run": f"{imagenet}The grid of 3,888 runs at the paper's width.",
    }
    items = "\n".join(f":::{{grid-item-card}} {title}\n{text}\n:::" for title, text in cards.items())
    return f"::::{{grid}} 1 1 3 3\n:gutter: 2\n\n{items}\n::::"


def counted(table: pd.DataFrame, hardly: Set[str]) -> str:
    """How many statements have which verdict, what Holm's correction leaves, and how many rest on runs whose decoupled decay has
    `hardly` acted."""
    n, decided = table["verdict"].value_counts(), table[table["verdict"].isin(["supported", "against"])]
    each = ", ".join(f"{n.get(v, 0)} {v}" for v in VERDICTS)
    pooled = sum(s.pooled for s in table["statement"])
    rest = sum(
        s.compared[["one", "other"]].isin(hardly).any(axis=1).mean() > 0.5 for s in decided["statement"]
    )
    return (
        f"Of {len(table)} statements about the paper's 45 figures and 5 tables, {pooled} of which pool six settings: {each}. Of the {len(decided)} that are "
        f"supported or against, {_of_one_network(decided)} rest on one network and data set, and {rest} for most of their comparisons on a run whose decoupled decay has acted little (budget under 1); {_after_holm(decided)} "
        "within their figures' families, runs of one network, data set and seed taken as independent. Judged by rule (`ncutils/book/verdicts.py`) from the runs in `results/`."
    )


def _after_holm(table: pd.DataFrame) -> str:
    p = table.loc[table["verdict"].isin(["supported", "against"]), "p"].dropna()
    return (
        f"{len(p)} compare two values, {(p < verdicts.LEVEL).sum()} of which stay so after Holm's correction"
    )


def _of_one_network(table: pd.DataFrame) -> int:
    """How many of the statements rest on one network and data set."""
    of = (analysis.fields_of(s.found["like"], "arch", "dataset") for s in table["statement"])
    return sum(pairs.nunique() < 2 for pairs in of)


def rule() -> str:
    """The thresholds in words, from `verdicts`."""
    v, half, twice = verdicts, math.sqrt(verdicts.CLOSE), verdicts.CLOSE**2
    return f"""- **Supported**: at least {100 * (1 - v.MINORITY):.0f} % of the comparisons go the paper's way, and the interval lies above one half. **Against**: at most
  {100 * v.MINORITY:.0f} % do, and it lies below. **Not decided**: the interval holds both one half and such a majority, or all comparisons are of fewer than
  {v.FEWEST} sets of network, data and seed, or, where six settings are pooled, it cannot be told from chance in how many of them most comparisons go one way. **Mixed**: any
  other. **Not run**: there is nothing to compare.
- Close means within a factor of {v.CLOSE:g}; a curve has settled within a factor of {v.STILL:g}; an accuracy stays within {v.ACCURACY:g}; an order of magnitude is {v.MUCH:g};
  metrics are unrelated under a rank correlation of {v.UNRELATED:g}; NC4 is satisfied above 0.99, a line of this book's. What is folded says, too, where half or twice a threshold would change the verdict: {100 * v.MINORITY / 2:.0f} or
  {200 * v.MINORITY:.0f} % in place of {100 * v.MINORITY:.0f}, and half or twice the logarithm of a factor ({half:.2g} or {twice:g} in place of {v.CLOSE:g}).
- The p after Holm is that of one half, of statements that compare two values: that a value is close to another, or lies on one side of a line, has no such law
  of chance, and its interval is that of a share and no more. A family is Figure 1, 3 or 10 with its five counterparts in the appendix, the appendix's five on NC1 or on NC2, all rows of six settings
  together, or else the statements of one row. It decides nothing here; the level is {v.LEVEL:g}."""


def share(c: Counted) -> str:
    """How many of how many, with the interval."""
    if not c.n:
        return ""
    ends = (f"{100 * end:.{int(0.495 <= end <= 0.505)}f}" for end in c.interval)  # on which side of one half
    return f"{c.k:,} of {c.n:,} ({' to '.join(ends)} %)"


def percent(c: Counted) -> str:
    """The share that goes the paper's way; a dash without a comparison."""
    return f"{100 * c.k / c.n:.0f} %" if c.n else "–"


def fixed(row) -> str:
    """What fixing the gauge leaves of a statement."""
    gauge = row.statement.gauge
    if gauge == "changes":
        return f"{share(row.fixed)} {row.fixed_verdict}" if row.fixed.n else "not stored"
    return {"zero": "it is 0", "same": "the same"}.get(gauge, gauge) if row.counted.n else ""


def _statements(table: pd.DataFrame) -> str:
    """The statements as HTML, verdict first, by setting and claim; what stands behind a verdict folded. static/book.js filters them."""
    usual = usual_scale(table)
    said = f"All runs are of {usual}, unless stated otherwise." if usual else "No run is stored."
    lines, above = [f'<div class="board"><p>{said}</p>', _filter(table)], ""
    for (item, claim), rows in table.groupby(["item", "claim"], sort=False):
        setting = _part(claim)
        if setting != above:
            lines.append(f'<h3 class="setting">{html.escape(setting[0].upper() + setting[1:])}</h3>')
            above = setting
        first = rows.iloc[0]
        kind, number = re.findall(r"[A-Z][a-z]+|\d+", item)[:2]  # of several figures the first
        place = f"{first.page}.html#{kind.lower().removesuffix('s')}-{number}"
        at = f" ({first.scale})" if first.scale not in ("", usual) else ""
        says = claim.removeprefix(_setting(claim))
        lines += [
            f'<section class="claim" data-setting="{html.escape(setting)}">',
            f'<h4><a href="{place}">{item}</a> {html.escape(says)}</h4>',
            f'<p class="seen">{html.escape(first.sees + at)}</p>' if first.sees else "",
            "<ul>",
            *(_statement(r) for r in rows.itertuples()),
            "</ul></section>",
        ]
    return "\n".join([line for line in lines if line] + ["</div>"])


def _statement(row) -> str:
    """A statement's line: verdict, words, count; folded: interval, gauge fixed, ratio, p, what would change the verdict."""
    c, statement = row.counted, row.statement
    chip = f'<span class="chip {row.verdict.replace(" ", "-")}">{row.verdict}</span>'
    words = html.escape(statement.says + (f" ({statement.why})" if statement.why else ""))
    data = f'class="statement" data-verdict="{row.verdict}" data-optimizers="{_optimizers(row)}"'
    if not c.n:
        return f"<li {data}>{chip} {words}</li>"
    behind = {
        "comparisons": f"{share(c)}, {c.sets} set{'s' * (c.sets > 1)} of network, data and seed",
        "networks and data sets": share(c.networks) if c.networks else "",
        "gauge fixed": fixed(row),
        "median ratio": with_interval(*statement.effect()),
        "p, Holm": "" if math.isnan(row.p) else f"{row.p:.2g}",
        "the verdict would be": row.moves,
    }
    terms = "".join(f"<dt>{k}</dt><dd>{html.escape(v)}</dd>" for k, v in behind.items() if v)
    count = f'<span class="count">{c.k:,} of {c.n:,}</span>'
    return f"<li {data}><details><summary>{chip} {words} {count}</summary><dl>{terms}</dl></details></li>"


def _optimizers(row) -> str:
    """The optimizers that a statement names, else those of the runs behind it, else those that its claim names."""
    for words in (row.statement.says, row.optimizers, row.claim):
        if named := [name for name in OPTIMIZERS if re.search(rf"\b{name}\b", words)]:
            return " ".join(named)
    return ""


def _filter(table: pd.DataFrame) -> str:
    """Menus for verdict, optimizer and setting; hidden where no script can answer them."""
    settings = dict.fromkeys(map(_part, table["claim"]))
    n = table["verdict"].value_counts()
    menus = {
        "verdict": {v: f"{v} ({n.get(v, 0)})" for v in VERDICTS},
        "optimizer": {name: name for name in OPTIMIZERS},
        "setting": {html.escape(name): html.escape(name) for name in settings},
    }
    labels = ""
    for name, options in menus.items():
        each = "".join(f'<option value="{value}">{words}</option>' for value, words in options.items())
        labels += f'<label>{name} <select name="{name}"><option value="">all</option>{each}</select></label>'
    return f'<form class="board-filter" hidden>{labels}<output>{len(table)} statements</output></form>'


def _part(claim: str) -> str:
    """The part of the board in which a claim stands: its setting, or the main text."""
    return _setting(claim).removesuffix(": ") or "The main text"


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


def verdict(table: pd.DataFrame) -> dict[str, str]:
    """Six sentences, and by each what is compared, in words with links, and the evidence as a table."""
    pairs, decay, rises = (f"Figures {first}, {second}" for first, second in ((1, 19), (3, 20), (10, 23)))
    rows_of = {(r.item, r.statement.says): r for r in table.itertuples()}

    def of(item, says):
        rows = [(words, r) for (i, words), r in rows_of.items() if i == item or i.startswith(f"{item}, ")]
        # or, not run, the row as a whole
        return next((r for words, r in rows if words.startswith(says)), rows[0][1])

    def joined(verdicts_):
        return " or ".join(sorted({*verdicts_}, key=VERDICTS.index))

    def judged(*rows):
        changed = [r for r in rows if r.statement.gauge == "changes"]
        metric = "NC3 " if len(changed) < len(rows) else ""  # of NC0 nothing is left then
        fixed = joined(r.fixed_verdict for r in changed)
        return f"{joined(r.verdict for r in rows)} ({metric}with the gauge fixed: {fixed})"

    n = table["verdict"].value_counts().reindex(VERDICTS, fill_value=0)
    rising = of(rises, "NC3 is larger")
    supported = table[table["verdict"] == "supported"]
    by_gauge = pd.Series([s.gauge for s in supported["statement"]], supported.index, dtype=str)
    known = np.array([c.n > 0 for c in supported["fixed"]], bool)
    no_more = known & (by_gauge == "changes") & (supported["fixed_verdict"] != "supported")
    falling = {f"{m} falls as the decay grows": of(decay, f"{m} of SGD") for m in ("NC0", "NC3")}
    above = {
        decoupled: {
            f"NC3 of {decoupled} above {coupled}'s, {words}": of(
                item, f"{decoupled} above {coupled} in NC3, {says}"
            )
            for words, says in (
                (f"where {decoupled}'s decay has acted", claims.ACTED.format(decoupled)),
                (claims.AT_BEST, claims.AT_BEST),
            )
        }
        for decoupled, coupled, item in (("SignumW", "Signum", decay), ("AdamW", "Adam", pairs))
    }
    under = ", ".join(f"under {COUPLED[name]} {judged(*rows.values())}" for name, rows in above.items())
    coupling = {f"{m} falls": of("Figure 7", m) for m in ("NC0", "NC3", "NC2")}
    other = [bool(c.n) and c.k / c.n <= verdicts.MINORITY for c in table["counted"]]
    few = table[(table["verdict"] == "not decided") & pd.Series(other, table.index)]
    against = pd.concat([table[table["verdict"] == "against"], few])
    mixed = pd.Series([s.says for s in table[table["verdict"] == "mixed"]["statement"]], dtype=str)
    alike = "; ".join(f"{s} ({k} statements)" if k > 1 else s for s, k in mixed.value_counts().items())
    lines = (
        ' Those of Figure 44 rest on lines that this book drew for the paper\'s "consistently satisfied" and "largely uncorrelated": NC4 above 0.99, a rank '
        f"correlation under {verdicts.UNRELATED:g}."
        if "Figure 44" in set(against["item"])
        else ""
    )
    sentences = [
        (
            f"Larger weight decay lowers NC0 and NC3 of SGD and Signum: {judged(*falling.values())}",
            "Runs of one setting that differ in their decay alone, in six settings ([weight decay and momentum](02_weight_decay.ipynb), "
            "[six settings](14_six_settings.ipynb)).",
            falling,
        ),
        (
            f"Decoupled decay leaves NC3 higher: {under}",
            "A decoupled run beside the coupled one of the largest decay not above its own, or the best decay of each, in six settings. A decay "
            "has acted where its budget, decay times the sum of learning rates, is 1 or more ([Adam and AdamW](03_adamw.ipynb), "
            "[six settings](14_six_settings.ipynb)). Seeds of one network on one data set share its images and are no further networks, so that what can speak for another network is in how many of "
            "the pairs of network and data set most comparisons go the paper's way, an evenly split one left out: of six, five do not exclude chance. "
            f"The best decays are no evidence of their own: {' and '.join(f'{_among(*rows.values())} pairs of {name}' for name, rows in above.items())} are among those whose decay has acted. The intervals of ratios, "
            "of six networks and data sets, are too narrow for so few ([NC0 is a gauge](22_gauge.ipynb) says by how much).",
            above["SignumW"] | above["AdamW"],
        ),
        (
            f"From AdamW to Adam, at one total decay, NC0 and NC3 of ResNet9 on MNIST fall: {judged(coupling['NC0 falls'], coupling['NC3 falls'])}",
            "One total decay, three seeds: of two runs the one with the larger coupled share has the lower value; the paper names NC2, too. The decoupled part alone takes less than a tenth off "
            "a weight, so that this is Adam's own decay growing from nothing ([from AdamW to Adam](05_interpolation.ipynb)).",
            coupling | {"the test accuracy stays": of("Figure 7", "accuracy")},
        ),
        (
            f"NC0 is a gauge, and still goes with NC3: of two runs the one with the larger NC0 has the larger NC3 in {percent(rising.counted)} of pairs ({rising.verdict}), with the gauge fixed in {percent(rising.fixed)} ({rising.fixed_verdict})",
            "The runs differ in optimizer and decay, which move both. Set to zero after training, NC0 changes no prediction ([NC0 is a gauge](22_gauge.ipynb)), so that no statement about its size "
            "alone is one about predictions. Part of its relation to NC3 is an identity; the rest is measured ([regression](12_regression.ipynb)). "
            f"Of the {n['supported']} supported statements {(by_gauge == 'zero').sum()} are about the size of NC0 or of W's smallest singular value, which a gauge sets to 0, and "
            f"{no_more.sum()} more are not supported once it is fixed.{_by_settings(rising.statement)}",
            {"of two runs the one with the larger NC0 has the larger NC3": rising},
        ),
        (
            f"{n['not decided'] + n['not run']} of {len(table)} statements are not decided at this scale, or not run",
            "Such as these; near is within a factor of "
            f"{verdicts.CLOSE:g} ([Adam and AdamW](03_adamw.ipynb)). [All of them](scoreboard.md).",
            {
                f"NC3 of AdamW above Adam's, where AdamW's decay has acted, {claims.MAIN}": of(
                    "Figure 1", f"AdamW above Adam in NC3, {claims.ACTED.format('AdamW')}"
                )
            }
            | {
                f"{m} of Table 1's runs near the paper's": of("Table 1", f"{m} is near")
                for m in ("NC0", "NC3")
            },
        ),
        (
            f"Of {len(table)} statements {n['against']} go{'es' if n['against'] == 1 else ''} against the paper at this scale, and {n['mixed']} are mixed",
            (f"Mixed: {alike} ([the scoreboard](scoreboard.md)). " if alike else "")
            + (
                "The table lists first what goes against the paper, then"
                if n["against"]
                else "The table lists"
            )
            + " statements that go the other way as clearly in too few comparisons to decide."
            + lines,
            {_with_figure(row): row for row in against.itertuples()},
        ),
    ]
    return {short: words + _evidence(rows) for short, words, rows in sentences}


def _among(acted, best) -> str:
    """How many of the comparisons at the best decays are among those whose decay has acted."""
    pairs = (s.compared[["one", "other"]] for s in (acted.statement, best.statement))
    known, asked = (set(of.itertuples(index=False, name=None)) for of in pairs)
    return f"{len(known & asked)} of {len(asked)}"


def _by_settings(statement: Statement) -> str:
    """The share of the setting with most comparisons, and what the mean of all settings' shares is."""
    of = statement.compared
    settings = analysis.fields_of(of["like"], "arch", "dataset")
    if settings.nunique() < 2:
        return ""
    ways = (of[["value", "fixed"]] > math.log(statement.factor)).groupby(settings).mean().mean()
    most = settings.value_counts(normalize=True).max()
    return (
        f" {100 * most:.0f} % of the pairs are of one network and data set; with the {settings.nunique()} networks and data sets weighted alike the shares are "
        f"{100 * ways['value']:.1f} and, with the gauge fixed, {100 * ways['fixed']:.1f} %."
    )


def _with_figure(row) -> str:
    """A statement in words, with its setting and a link to its page."""
    return f"{_setting(row.claim)}{row.statement.says} ([{row.item}]({row.page}.ipynb))"


def _evidence(rows: dict) -> str:
    """Statements, by what to call them, as a table: how many comparisons go the paper's way, the verdict, before and after."""
    if not rows:
        return ""
    lines = [
        "\n\n| statement | the paper's way (95 %) | verdict | median ratio | gauge fixed |",
        "|---" * 5 + "|",
    ]
    for words, row in rows.items():
        chip = f'<span class="chip {row.verdict.replace(" ", "-")}">{row.verdict}</span>'
        moves = f"<br>{row.moves}" if row.moves else ""
        counts = _and_networks(share(row.counted), row.counted), _and_networks(fixed(row), row.fixed)
        lines.append(
            f"| {words} | {counts[0]} | {chip}{moves} | {with_interval(*row.statement.effect())} | {counts[1]} |"
        )
    return "\n".join(lines)


def _and_networks(count: str, c: Counted) -> str:
    """A count and, of a pooled statement that has one, in how many networks and data sets most comparisons go the paper's way."""
    if not c.networks or not count[:1].isdigit():
        return count
    return f"{count}<br>{c.networks.k} of {c.networks.n} networks and data sets"


def _put(page: Path, text: str, what: str = "scoreboard") -> None:
    """Writes a text between the page's two marks."""
    first, last = f"<!-- {what} -->", f"<!-- end of {what} -->"
    head, start, rest = page.read_text("utf-8").partition(f"{first}\n")
    _, end, tail = rest.partition(last)
    if not start or not end:
        raise ValueError(f"{page} has no place for the {what}: {first} and {last}")
    write_whole(page, f"{head}{start}\n{text}\n\n{end}{tail}".encode())
