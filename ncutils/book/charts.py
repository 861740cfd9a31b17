"""Charts of stored runs with menus that a reader's browser answers: no kernel, any stored run.

Altair describes a chart and Vega-Lite draws it, in a live notebook as in the built book, whose pages load Vega from
`_static` (the Makefile puts it there). A menu names a value; where no run has it, the run nearest to the choice is shown, and
the line under the chart says which run that is.
"""

from __future__ import annotations

import itertools
import math
import re

import altair as alt
import numpy as np
import pandas as pd
from IPython.display import display

from ncutils import analysis
from ncutils.analysis import Groups
from ncutils.book.figures import polygon
from ncutils.book.style import COLOURS, LABELS, METRICS
from ncutils.optimizers import OPTIMIZERS
from ncutils.runs import History

_FIELDS = [
    "run",
    "steps",
    "optimizer",
    "rule",
    "valid",
    "decay",
    "arch",
    "dataset",
    "lr",
    "momentum",
    "wd",
    "seed",
]
# what a menu's choice weighs when the nearest run is sought: the first field that differs decides
_COSTS = {
    "arch": "1e7 * (datum.arch != {0})",
    "dataset": "1e6 * (datum.dataset != {0})",
    "rule": "1e5 * (datum.rule != {0})",
    "optimizer": "1e5 * (datum.optimizer != {0})",
    "lr": "1e3 * abs(log(datum.lr / {0}))",
    "momentum": "1e2 * abs(datum.momentum - {0})",
    "wd": "abs(log((datum.wd + 1e-5) / ({0} + 1e-5)))",
}
_NAMES = {"arch": "network", "dataset": "data set", "lr": "learning rate", "wd": "weight decay"}
_SCRIPTS = ("vega", "vega-lite", "vega-embed")
_EMBED = """(number, spec) => {
  if (innerWidth < 700) spec.vconcat.forEach(part => {
    if (part.columns) part.columns = 1
    if (part.width > 300) part.width = 270
  })
  const menus = document.getElementById(`menus-${number}`)
  vegaEmbed(`#chart-${number}`, spec, {renderer: "svg", actions: false, bind: menus}).then(({view}) => {
    if (!spec.usermeta?.play) return
    const button = menus.appendChild(document.createElement("button")), {play, last} = spec.usermeta
    let timer = null
    const show = () => { button.textContent = timer ? "❚❚ pause" : "▶ play" }
    const stop = () => { clearInterval(timer); timer = null; show() }
    const step = () => view.signal(play) < last ? view.signal(play, view.signal(play) + 1).run() : stop()
    button.onclick = () => {
      if (timer) return stop()
      if (view.signal(play) >= last) view.signal(play, 0).run()
      timer = setInterval(step, 400)
      show()
    }
    show()
  })
}"""
_count = itertools.count()


def show(chart: alt.TopLevelMixin) -> None:
    """Displays a chart: as Vega-Lite for a live notebook, as a script for the built page, one column wide on a phone."""
    number = next(_count)
    scripts = [f'<script src="../_static/{name}.min.js"></script>' for name in _SCRIPTS if number == 0]
    html = f'{"".join(scripts)}<div id="menus-{number}" class="chart-menus"></div><div id="chart-{number}"></div>'
    html += f"<script>({_EMBED})({number}, {chart.to_json(indent=None)})</script>"
    kind = f"application/vnd.vegalite.v{alt.SCHEMA_VERSION[1]}+json"
    display({kind: chart.to_dict(), "text/html": html}, raw=True)


def two_runs(groups: Groups) -> alt.TopLevelMixin:
    """Training curves of any two stored runs, A and B, laid over one another."""
    table, menus, costs = _curves(groups), [], {}
    fields = ("arch", "dataset", "optimizer", "lr", "momentum", "wd")
    for side, optimizer in (("A", "Adam"), ("B", "AdamW")):
        params, costs[side] = _menus(table, fields, _start(table) | {"optimizer": optimizer}, side)
        menus += params
    base = _chart(table).transform_calculate(**costs).transform_fold(["A", "B"], ["run", "cost"])
    return _compared(base, "run", {"A": "#111111", "B": "#00876c"}, menus)


def coupled_and_decoupled(groups: Groups) -> alt.TopLevelMixin:
    """Training curves of one rule with coupled and with decoupled decay, as close as stored runs come to one weight decay."""
    table = _curves(groups)
    menus, cost = _menus(table, ("arch", "dataset", "rule", "lr", "momentum", "wd"), _start(table))
    base = _chart(table).transform_calculate(cost=cost)
    return _compared(base, "decay", {"coupled": COLOURS["Adam"], "decoupled": COLOURS["AdamW"]}, menus)


def metric_against_nc0(groups: Groups) -> alt.TopLevelMixin:
    """Figures 2 and 9 to 12: final metric of valid runs against NC0, by optimizer and learning rate, with the line of least
    squares on log10 NC0."""
    table = _finals(groups).assign(steps=analysis.table(groups)["steps"])
    table = table[table["valid"] & (table["nc0"] > 0)]
    menus = [
        _menu("metric", [LABELS[m] for m in METRICS[1:]], "NC3"),
        _menu("setting", sorted(set(table["setting"])), table["setting"].iloc[0]),
        _menu("optimizer", ["all", *dict.fromkeys(table["optimizer"])], "all"),
        _menu("lr", ["all", *sorted(set(table["lr"]))], "all"),
    ]
    chosen = "datum.setting == setting && (optimizer == 'all' || datum.optimizer == optimizer)"
    base = _chart(table).transform_filter(chosen).transform_filter("lr == 'all' || datum.lr == lr")
    base = base.transform_calculate(log_nc0="log(datum.nc0) / LN10", y="datum[lower(metric)]")
    points = base.mark_point(filled=True, size=45).encode(
        alt.X("log_nc0:Q").title("log10 NC0"),
        alt.Y("y:Q").title("final value of the metric").scale(zero=False),
        alt.Color("optimizer:N").scale(domain=list(OPTIMIZERS), range=[COLOURS[name] for name in OPTIMIZERS]),
        alt.Shape("optimizer:N").scale(domain=list(OPTIMIZERS)),
        tooltip=["optimizer:N", "lr:Q", "momentum:Q", "wd:Q", "seed:Q", "nc0:Q", "y:Q"],
    )
    # at wd 0 a run stands under both its optimizers and counts once, and so do SGD and SGDW where they take the same steps
    first = [alt.SortField("optimizer")]
    once = base.transform_window(sort=first, groupby=["steps"], place="row_number()")
    once = once.transform_filter("datum.place == 1")
    line = once.transform_regression("log_nc0", "y").mark_line(color="black").encode(x="log_nc0:Q", y="y:Q")
    fit = once.transform_joinaggregate(n="count()")
    fit = _said(
        fit.transform_regression("log_nc0", "y", groupby=["n"], params=True),
        "{metric} = {datum.coef[0]:.3f}{(datum.coef[1] < 0 ? ' - ' : ' + ')}{abs(datum.coef[1]):.3f} log10 NC0",
        "R² {datum.rSquared:.3f}, {datum.keys[0]} valid runs",
    )
    return _page((points + line).properties(width=560, height=320), fit, menus)


def heat_map(groups: Groups) -> alt.TopLevelMixin:
    """Figure 4: final metric over momentum and weight decay, the mean over valid seeds; cells whose runs all fail the filter
    stay grey."""
    table = _finals(groups)
    most = table.groupby(["setting", "optimizer", "lr"])["momentum"].nunique().idxmax()
    menus = [
        _menu("metric", [LABELS[m] for m in METRICS], "NC0"),
        _menu("setting", sorted(set(table["setting"])), most[0]),
        _menu("optimizer", list(dict.fromkeys(table["optimizer"])), most[1]),
        _menu("lr", sorted(set(table["lr"])), most[2]),
    ]
    cost = {"cost": "abs(log(datum.lr / lr))", "y": "datum[lower(metric)]", "kept": "datum.valid ? 1 : 0"}
    base = _chart(table).transform_filter("datum.setting == setting && datum.optimizer == optimizer")
    # a cell of which some seeds fail the filter shows the others
    best = _nearest(base.transform_calculate(**cost), [])
    best = best.transform_joinaggregate(best="max(kept)", groupby=["momentum", "wd"])
    cells = best.transform_filter("datum.kept == datum.best").transform_aggregate(
        y="mean(y)", kept="max(kept)", lr="min(lr)", n="count()", groupby=["momentum", "wd", "optimizer"]
    )
    x = alt.X("wd:O").title("weight decay").axis(labelAngle=0)
    y = alt.Y("momentum:O").sort("descending").title("momentum")
    blues = alt.SchemeParams(name="blues", extent=[0.05, 0.6])
    colour = alt.Color("y:Q").scale(type="log", scheme=blues).title("value")
    dropped = cells.mark_rect(color="#dddddd").encode(x, y)
    kept = cells.transform_filter("datum.kept > 0 && datum.y > 0").mark_rect().encode(x, y, colour)
    short = "format(datum.y, datum.y > 0 && datum.y < 0.001 ? '.0e' : '.2~g')"
    text = cells.transform_calculate(text=f"!isValid(datum.y) ? '–' : {short}").mark_text(fontSize=11)
    said = _said(
        cells.transform_aggregate(runs="sum(n)", lr="min(lr)", groupby=["optimizer"]),
        "Final {metric} of {datum.optimizer} at learning rate {datum.lr}",
        "{datum.runs} runs; grey: under 99 % training accuracy",
    )
    picture = dropped + kept + text.encode(x, y, text="text:N")
    return _page(picture.properties(width=560, height=300), said, menus)


def geometry(histories: dict[str, History]) -> alt.TopLevelMixin:
    """Class means and rows of W in the plane of `figures.polygon`, epoch by epoch, with a play button in the built page.

    `histories` maps a label to a run; all runs have the same classes. Shown are the epochs that all of them measured.
    """
    first, *_ = histories
    k = histories[first].info["n_classes"]
    epochs = sorted(set.intersection(*(set(h.frame["epoch"]) for h in histories.values())))
    points, words = [], []
    for label, h in histories.items():
        kept = h.frame["epoch"].isin(epochs).to_numpy()
        for i, (row, grams) in enumerate(zip(h.frame[kept].to_dict("records"), h.grams[kept])):
            key, accuracy = {"run": label, "i": i}, f"training accuracy {100 * row['train_acc']:.0f} %"
            who = f"{label}, wd {h.run.wd:g}, epoch {row['epoch']:.0f}: {accuracy}"
            words.append(key | {"text": [who, ", ".join(f"{LABELS[m]} {row[m]:.3g}" for m in METRICS)]})
            for c, place in enumerate(np.hstack(polygon(grams)).tolist()):
                place = {name: round(v, 4) for name, v in zip(("x", "y", "wx", "wy"), place)}
                points.append(key | {"class": c} | place)
    radius, angle = math.sqrt(2 / (k * (k - 1))), 2 * np.pi * np.arange(k + 1) / k
    ring = [{"x": radius * math.sin(a), "y": radius * math.cos(a), "order": i} for i, a in enumerate(angle)]
    reach, kinds = [-1.6 * radius, 1.6 * radius], {"x": alt.X, "y": alt.Y, "wx": alt.X, "wy": alt.Y}
    x, y, wx, wy = (kind(f"{name}:Q").scale(domain=reach).axis(None) for name, kind in kinds.items())
    colour = alt.Color("class:N").scale(scheme="tableau10")
    shown = "datum.run == run && datum.i == frame"
    corners = alt.Chart(alt.Data(values=ring)).encode(x, y, order="order:Q")
    base = alt.Chart(alt.Data(values=points)).transform_filter(shown)
    weights = base.transform_calculate(zero="0").encode(wx, wy, colour)
    picture = alt.layer(
        corners.mark_line(color="#bbbbbb", strokeWidth=1),
        corners.mark_point(color="#888888", size=260, strokeWidth=1),
        weights.mark_rule(strokeWidth=2).encode(x2="zero:Q", y2="zero:Q"),
        weights.mark_point(shape="diamond", filled=True, size=70, opacity=1),
        base.mark_point(filled=True, size=110, opacity=1).encode(colour, x, y),
    )
    text = alt.Chart(alt.Data(values=words)).transform_filter(shown)
    slider = alt.binding_range(min=0, max=len(epochs) - 1, step=1, name="measured epoch ")
    menus = [_menu("run", list(histories), first, "optimizer"), alt.param(name="frame", value=0, bind=slider)]
    chart = _page(picture.properties(width=300, height=300), _said(text), menus)
    chart.usermeta = {"play": "frame", "last": len(epochs) - 1}
    return chart


def _finals(groups: Groups) -> pd.DataFrame:
    """A row a run and optimizer, without decay under both its optimizers: final metrics, and the setting in words."""
    table = analysis.table(groups)
    name, setting = table["label"].str, table["arch"] + " on " + table["dataset"]
    decay = np.where(name.endswith("W"), "decoupled", "coupled")
    table = table.assign(optimizer=table["label"], rule=name.removesuffix("W"), decay=decay)
    return table[_FIELDS].assign(**{m: table[m].map(_short) for m in METRICS}, setting=setting)


def _curves(groups: Groups) -> pd.DataFrame:
    """The same rows with the metrics over the epochs, a list a cell."""
    frames = [h.frame for histories in groups.values() for h in histories]
    columns = ("epoch", *METRICS, "train_acc")
    return _finals(groups)[_FIELDS].assign(**{c: [[*map(_short, f[c])] for f in frames] for c in columns})


def _short(value) -> float | None:
    return float(f"{value:.4g}") if pd.notna(value) else None


def _chart(table: pd.DataFrame) -> alt.Chart:
    known = table.astype(object).where(table.notna(), None)  # JSON has no nan
    return alt.Chart(alt.Data(values=known.to_dict("records")))


def _start(table: pd.DataFrame) -> dict:
    """What the menus show first: Adam at momentum 0.9, where most was run, at the largest decay at which it still fits."""
    adam = table[table["optimizer"] == "Adam"]
    most = adam.groupby(["arch", "dataset", "lr"], sort=False)["momentum"].transform("nunique")
    fits = adam[adam["valid"] & (adam["momentum"] == 0.9) & (most == most.max())]
    return (fits if len(fits) else adam).sort_values("wd").iloc[-1].to_dict()


def _menu(name: str, options: list, value, label: str | None = None) -> alt.Parameter:
    label = label or _NAMES.get(name, name)
    return alt.param(name=name, value=value, bind=alt.binding_select(options=options, name=label + " "))


def _menus(table: pd.DataFrame, fields, start: dict, side: str = "") -> tuple[list[alt.Parameter], str]:
    """A menu a field that some network, data set and optimizer has several values of, and the expression of a row's distance
    from what they say."""
    menus, cost, kinds = [], ["0"], ["arch", "dataset", "optimizer"]
    for field in fields:
        options = list(dict.fromkeys(table[field]))
        if not isinstance(options[0], str):
            options = sorted(options) if table.groupby(kinds)[field].nunique().max() > 1 else options[:1]
        if len(options) > 1:
            label = f"{side}: {_NAMES.get(field, field)}" if side else None
            menus.append(_menu(field + side, options, start[field], label))
            cost.append(_COSTS[field].format(field + side))
    return menus, " + ".join(cost)


def _nearest(chart: alt.Chart, groupby: list[str]) -> alt.Chart:
    """The rows of least cost in each group: one run, or its seeds."""
    least = chart.transform_joinaggregate(least="min(cost)", groupby=groupby)
    return least.transform_filter("datum.cost < datum.least + 1e-9")


def _compared(base: alt.Chart, key: str, colours: dict[str, str], menus) -> alt.TopLevelMixin:
    """The runs nearest to the menus' choices, one for each value of `key`: NC0 to NC3 over the epochs, one panel each, a
    line a seed; and which runs they are."""
    near = _nearest(base, [key])
    names = ", ".join(f"{m}: '{LABELS[m]}'" for m in METRICS)
    lines = near.transform_flatten(["epoch", *METRICS]).transform_fold(list(METRICS), ["key", "value"])
    lines = lines.transform_filter("datum.value > 0").transform_calculate(metric=f"{{{names}}}[datum.key]")
    lines = lines.mark_line(point={"size": 18}).encode(
        alt.X("epoch:Q"),
        alt.Y("value:Q").scale(type="log").title(None).axis(tickCount=4),
        alt.Color(f"{key}:N").scale(domain=list(colours), range=list(colours.values())),
        alt.StrokeDash(f"{key}:N").scale(domain=list(colours), range=[[1, 0], [5, 3]]),
        detail="seed:N",
    )
    panels = lines.properties(width=270, height=150).facet(alt.Facet("metric:N").title(None), columns=2)
    return _page(panels.resolve_scale(y="independent"), _final_text(near, key), menus)


def _final_text(near: alt.Chart, key: str) -> alt.Chart:
    """Which runs are shown and where they end: the mean over their seeds."""
    columns = (*METRICS, "train_acc")
    last = {f"last_{c}": f"datum.{c}[length(datum.{c}) - 1]" for c in columns}
    means = {c: f"mean(last_{c})" for c in columns}
    group = ["arch", "dataset", "optimizer", "lr", "momentum", "wd", key]
    ends = " + ', ' + ".join(_expression(f"{LABELS[m]} {{datum.{m}:.3~g}}") for m in METRICS)
    return _said(
        near.transform_calculate(**last).transform_aggregate(n="count()", **means, groupby=group),
        f"{{datum.{key}}}:  " + "{datum.optimizer}, lr {datum.lr}, momentum {datum.momentum}, wd {datum.wd}",
        "{datum.arch} on {datum.dataset}, {datum.n}{(datum.n > 1 ? ' seeds' : ' seed')}, "
        "training accuracy {datum.train_acc:.1%}",
        f"ends at {{{ends}}}",
        y=alt.Y(f"{key}:N").axis(None).scale(paddingInner=0),
        height=alt.Step(60),
    )


def _said(chart: alt.Chart, *lines: str, y=None, height=34) -> alt.Chart:
    """What a chart says in words, under it: its column `text`, or these lines, with expressions in braces."""
    if lines:
        chart = chart.transform_calculate(text=f"[{', '.join(map(_expression, lines))}]")
    text = chart.mark_text(align="left", baseline="top", fontSize=12, lineHeight=16)
    text = text.encode(y=y or alt.value(0), text="text:N", x=alt.value(0))
    return text.properties(width=330, height=height, view={"stroke": None})


def _expression(line: str) -> str:
    """A line that names expressions, "lr {datum.lr:.2f}", as one of Vega's: "'lr ' + format(datum.lr, '.2f')"."""
    parts = re.findall(r"([^{]+)|\{(.+?)(?::([^\s}]+))?\}", line)
    return " + ".join(f"'{t}'" if t else f"format({e}, '{form}')" if form else e for t, e, form in parts)


def _page(picture, text, menus) -> alt.TopLevelMixin:
    chart = alt.vconcat(picture, text)
    chart.params = [menu.param for menu in menus]
    chart = chart.configure_view(strokeOpacity=0.3).configure_axis(labelFontSize=12, titleFontSize=12)
    return chart.configure_legend(orient="top", title=None, labelFontSize=12, symbolSize=80)
