"""Charts of stored runs with menus that a reader's browser answers: no kernel, any stored run.

Altair describes a chart and Vega-Lite draws it, in a live notebook as in the built book, whose pages load Vega from
`_static` (the Makefile puts it there). A menu names a value; where no run has it, the run nearest to the choice is shown, and
the line under the chart says which run that is.
"""

from __future__ import annotations

import itertools
import math

import altair as alt
import numpy as np
import pandas as pd
from IPython.display import display

from ncutils.analysis import Groups
from ncutils.book.figures import COLOURS, LABELS, polygon
from ncutils.runs import History

METRICS = ("nc0", "nc1", "nc2", "nc3")
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
    display(
        {f"application/vnd.vegalite.v{alt.SCHEMA_VERSION[1]}+json": chart.to_dict(), "text/html": html},
        raw=True,
    )


def two_runs(groups: Groups) -> alt.TopLevelMixin:
    """Training curves of any two stored runs, A and B, laid over one another."""
    table, menus, costs = _curves(groups), [], {}
    for side, optimizer in (("A", "Adam"), ("B", "AdamW")):
        start = _start(table) | {"optimizer": optimizer}
        params, costs[side] = _menus(
            table, ("arch", "dataset", "optimizer", "lr", "momentum", "wd"), start, side
        )
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
    """Final metric of valid runs against NC0, by optimizer and learning rate, with the line of least squares on log10 NC0."""
    table = _finals(groups)
    table = table[table.valid & (table.nc0 > 0)].assign(setting=lambda t: t.arch + " on " + t.dataset)
    menus = [
        _menu("metric", [LABELS[m] for m in METRICS[1:]], "NC3"),
        _menu("setting", sorted(set(table.setting)), table.setting.iloc[0]),
        _menu("optimizer", ["all", *dict.fromkeys(table.optimizer)], "all"),
        _menu("lr", ["all", *sorted(set(table.lr))], "all"),
    ]
    base = (
        _chart(table)
        .transform_filter("datum.setting == setting && (optimizer == 'all' || datum.optimizer == optimizer)")
        .transform_filter("lr == 'all' || datum.lr == lr")
        .transform_calculate(log_nc0="log(datum.nc0) / LN10", y="datum[lower(metric)]")
    )
    colour = alt.Color("optimizer:N").scale(domain=list(COLOURS)[:6], range=list(COLOURS.values())[:6])
    points = base.mark_point(filled=True, size=45).encode(
        alt.X("log_nc0:Q").title("log10 NC0"),
        alt.Y("y:Q").title("final value of the metric").scale(zero=False),
        colour,
        alt.Shape("optimizer:N").scale(domain=list(COLOURS)[:6]),
        tooltip=["optimizer:N", "lr:Q", "momentum:Q", "wd:Q", "seed:Q", "nc0:Q", "y:Q"],
    )
    # at wd 0 a run stands under both its optimizers and counts once
    once = base.transform_aggregate(log_nc0="mean(log_nc0)", y="mean(y)", groupby=["run"])
    line = once.transform_regression("log_nc0", "y").mark_line(color="black").encode(x="log_nc0:Q", y="y:Q")
    fit = (
        once.transform_joinaggregate(n="count()")
        .transform_regression("log_nc0", "y", groupby=["n"], params=True)
        .transform_calculate(
            text="[metric + ' = ' + format(datum.coef[0], '.3f') + (datum.coef[1] < 0 ? ' - ' : ' + ')"
            " + format(abs(datum.coef[1]), '.3f') + ' log10 NC0', 'R² ' + format(datum.rSquared, '.3f') + ', ' + datum.keys[0] + ' valid runs']"
        )
    )
    return _page((points + line).properties(width=560, height=320), _line(fit), menus)


def heat_map(groups: Groups) -> alt.TopLevelMixin:
    """Final metric over momentum and weight decay, the mean over valid seeds; cells whose runs all fail the filter stay grey."""
    table = _finals(groups).assign(setting=lambda t: t.arch + " on " + t.dataset)
    most = table.groupby(["setting", "optimizer", "lr"]).momentum.nunique().idxmax()
    menus = [
        _menu("metric", [LABELS[m] for m in METRICS], "NC0"),
        _menu("setting", sorted(set(table.setting)), most[0]),
        _menu("optimizer", list(dict.fromkeys(table.optimizer)), most[1]),
        _menu("lr", sorted(set(table.lr)), most[2]),
    ]
    base = (
        _chart(table)
        .transform_filter("datum.setting == setting && datum.optimizer == optimizer")
        .transform_calculate(
            cost="abs(log(datum.lr / lr))", y="datum[lower(metric)]", kept="datum.valid ? 1 : 0"
        )
    )
    # a cell of which some seeds fail the filter shows the others
    best = _nearest(base, []).transform_joinaggregate(best="max(kept)", groupby=["momentum", "wd"])
    cells = best.transform_filter("datum.kept == datum.best").transform_aggregate(
        y="mean(y)", kept="max(kept)", lr="min(lr)", n="count()", groupby=["momentum", "wd", "optimizer"]
    )
    axes = {
        "x": alt.X("wd:O").title("weight decay"),
        "y": alt.Y("momentum:O").sort("descending").title("momentum"),
    }
    axes["x"] = axes["x"].axis(labelAngle=0)
    dropped = cells.mark_rect(color="#dddddd").encode(**axes)
    kept = (
        cells.transform_filter("datum.kept > 0 && datum.y > 0")
        .mark_rect()
        .encode(
            color=alt.Color("y:Q")
            .scale(type="log", scheme=alt.SchemeParams(name="blues", extent=[0.05, 0.6]))
            .title("value"),
            **axes,
        )
    )
    text = cells.transform_calculate(
        text="!isValid(datum.y) ? '–' : format(datum.y, datum.y > 0 && datum.y < 0.001 ? '.0e' : '.2~g')"
    ).mark_text(fontSize=11)
    said = cells.transform_aggregate(runs="sum(n)", lr="min(lr)", groupby=["optimizer"]).transform_calculate(
        text="['Final ' + metric + ' of ' + datum.optimizer + ' at learning rate ' + datum.lr,"
        " datum.runs + ' runs; grey: under 99 % training accuracy']"
    )
    chart = (dropped + kept + text.encode(text="text:N", **axes)).properties(width=560, height=300)
    return _page(chart, _line(said), menus)


def geometry(histories: dict[str, History]) -> alt.TopLevelMixin:
    """Class means and rows of W in the plane of `figures.polygon`, epoch by epoch, with a play button in the built page.

    `histories` maps a label to a run; all runs have the same classes. Shown are the epochs that all of them measured.
    """
    first = next(iter(histories.values()))
    k = first.info["n_classes"]
    epochs = sorted(set.intersection(*(set(h.frame["epoch"].astype(int)) for h in histories.values())))
    points, words = [], []
    for label, h in histories.items():
        for row, epoch in enumerate(h.frame["epoch"].astype(int)):
            if epoch not in epochs:
                continue
            key, measured = {"run": label, "i": epochs.index(epoch)}, h.frame.iloc[row]
            numbers = ", ".join(f"{LABELS[m]} {measured[m]:.3g}" for m in METRICS)
            accuracy = f"training accuracy {100 * measured['train_acc']:.0f} %"
            words.append(key | {"text": [f"{label}, wd {h.run.wd:g}, epoch {epoch}: {accuracy}", numbers]})
            for c, (mean, weight) in enumerate(zip(*polygon(h.grams[row]))):
                x, y, wx, wy = (round(float(v), 4) for v in (*mean, *weight))
                points.append(key | {"class": c, "x": x, "y": y, "wx": wx, "wy": wy})
    radius, angle = math.sqrt(2 / (k * (k - 1))), 2 * np.pi * np.arange(k + 1) / k
    ring = [{"x": radius * math.sin(a), "y": radius * math.cos(a), "order": i} for i, a in enumerate(angle)]
    scale, axis = alt.Scale(domain=[-1.6 * radius, 1.6 * radius]), None
    xy = {"x": alt.X("x:Q").scale(scale).axis(axis), "y": alt.Y("y:Q").scale(scale).axis(axis)}
    corners = alt.Chart(alt.Data(values=ring)).encode(**xy, order="order:Q")
    shown = "datum.run == run && datum.i == frame"
    base = alt.Chart(alt.Data(values=points)).transform_filter(shown)
    colour = alt.Color("class:N").scale(scheme="tableau10")
    weights = base.transform_calculate(zero="0").encode(
        alt.X("wx:Q").scale(scale).axis(axis), alt.Y("wy:Q").scale(scale).axis(axis), colour
    )
    picture = alt.layer(
        corners.mark_line(color="#bbbbbb", strokeWidth=1),
        corners.mark_point(color="#888888", size=260, strokeWidth=1),
        weights.mark_rule(strokeWidth=2).encode(x2="zero:Q", y2="zero:Q"),
        weights.mark_point(shape="diamond", filled=True, size=70, opacity=1),
        base.mark_point(filled=True, size=110, opacity=1).encode(colour, **xy),
    )
    text = alt.Chart(alt.Data(values=words)).transform_filter(shown)
    slider = alt.binding_range(min=0, max=len(epochs) - 1, step=1, name="measured epoch ")
    menus = [
        _menu("run", list(histories), next(iter(histories)), "optimizer"),
        alt.param(name="frame", value=0, bind=slider),
    ]
    chart = _page(picture.properties(width=300, height=300), _line(text), menus)
    chart.usermeta = {"play": "frame", "last": len(epochs) - 1}
    return chart


def _rows(groups: Groups):
    """A record and the History of each run and optimizer: without decay a run stands under both its optimizers."""
    for name, histories in groups.items():
        for h in histories:
            fields = ("arch", "dataset", "lr", "momentum", "wd", "seed")
            row = {"run": h.run.hash, "optimizer": name, "rule": name.removesuffix("W"), "valid": h.valid}
            row["decay"] = "decoupled" if name.endswith("W") else "coupled"
            yield row | {field: getattr(h.run, field) for field in fields}, h


def _finals(groups: Groups) -> pd.DataFrame:
    return pd.DataFrame([row | {m: _short(h.final[m]) for m in METRICS} for row, h in _rows(groups)])


def _curves(groups: Groups) -> pd.DataFrame:
    columns = ("epoch", *METRICS, "train_acc")
    return pd.DataFrame(
        [row | {c: [_short(v) for v in h.frame[c]] for c in columns} for row, h in _rows(groups)]
    )


def _start(table: pd.DataFrame) -> dict:
    """What the menus show first: Adam at momentum 0.9, where most was run, at the largest decay at which it still fits."""
    adam = table[table.optimizer == "Adam"]
    most = adam.groupby(["arch", "dataset", "lr"], sort=False).momentum.transform("nunique")
    fits = adam[adam.valid & (adam.momentum == 0.9) & (most == most.max())]
    return (fits if len(fits) else adam).sort_values("wd").iloc[-1].to_dict()


def _chart(table: pd.DataFrame) -> alt.Chart:
    known = table.astype(object).where(table.notna(), None)  # JSON has no nan
    return alt.Chart(alt.Data(values=known.to_dict("records")))


def _short(value) -> float | None:
    return float(f"{value:.4g}") if pd.notna(value) else None


def _menu(name: str, options: list, value, label: str | None = None) -> alt.Parameter:
    label = label or _NAMES.get(name, name)
    return alt.param(name=name, value=value, bind=alt.binding_select(options=options, name=label + " "))


def _menus(table: pd.DataFrame, fields, start: dict, side: str = "") -> tuple[list[alt.Parameter], str]:
    """A menu a field that some network, data set and optimizer has several values of, and the expression of a row's distance
    from what they say."""
    menus, cost = [], ["0"]
    kinds = ["arch", "dataset", "optimizer"]
    for field in fields:
        options = list(dict.fromkeys(table[field]))
        if not isinstance(options[0], str):
            options = sorted(options) if table.groupby(kinds)[field].nunique().max() > 1 else options[:1]
        if len(options) == 1:
            continue
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
    colour = alt.Color(f"{key}:N").scale(domain=list(colours), range=list(colours.values()))
    dashes = alt.StrokeDash(f"{key}:N").scale(domain=list(colours), range=[[1, 0], [5, 3]])
    names = ", ".join(f"{m}: '{LABELS[m]}'" for m in METRICS)
    panels = (
        near.transform_flatten(["epoch", *METRICS])
        .transform_fold(list(METRICS), ["key", "value"])
        .transform_filter("datum.value > 0")
        .transform_calculate(metric=f"{{{names}}}[datum.key]")
        .mark_line(point={"size": 18})
        .encode(
            alt.X("epoch:Q"),
            alt.Y("value:Q").scale(type="log").title(None).axis(tickCount=4),
            colour,
            dashes,
            detail="seed:N",
        )
        .properties(width=270, height=150)
        .facet(alt.Facet("metric:N").title(None), columns=2)
        .resolve_scale(y="independent")
    )
    return _page(panels, _final_text(near, key), menus)


def _final_text(near: alt.Chart, key: str) -> alt.Chart:
    """Which runs are shown and where they end, as text: the mean over their seeds."""
    last = {f"last_{m}": f"datum.{m}[length(datum.{m}) - 1]" for m in (*METRICS, "train_acc")}
    group = ["arch", "dataset", "optimizer", "lr", "momentum", "wd"]
    who = f"datum.{key} + ':  ' + datum.optimizer + ', lr ' + datum.lr + ', momentum ' + datum.momentum + ', wd ' + datum.wd"
    ends = " + ', ' + ".join(f"'{LABELS[m]} ' + format(datum.{m}, '.3~g')" for m in METRICS)
    return (
        near.transform_calculate(**last)
        .transform_aggregate(
            n="count()", **{m: f"mean(last_{m})" for m in (*METRICS, "train_acc")}, groupby=[*group, key]
        )
        .transform_calculate(
            text=f"[{who}, datum.arch + ' on ' + datum.dataset + ', ' + datum.n + (datum.n > 1 ? ' seeds' : ' seed')"
            f" + ', training accuracy ' + format(datum.train_acc, '.1%'), 'ends at ' + {ends}]"
        )
        .mark_text(align="left", baseline="top", fontSize=12, lineHeight=16)
        .encode(alt.Y(f"{key}:N").axis(None).scale(paddingInner=0), text="text:N", x=alt.value(0))
        .properties(width=330, height=alt.Step(60), view={"stroke": None})
    )


def _line(said: alt.Chart) -> alt.Chart:
    """What a chart says in words, under it."""
    text = said.mark_text(align="left", baseline="top", fontSize=12, lineHeight=16)
    text = text.encode(text="text:N", x=alt.value(0), y=alt.value(0))
    return text.properties(width=330, height=34, view={"stroke": None})


def _page(picture, text, menus) -> alt.TopLevelMixin:
    chart = alt.vconcat(picture, text)
    chart.params = [menu.param for menu in menus]
    chart = chart.configure_view(strokeOpacity=0.3).configure_axis(labelFontSize=12, titleFontSize=12)
    return chart.configure_legend(orient="top", title=None, labelFontSize=12, symbolSize=80)
