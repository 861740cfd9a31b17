"""Charts of stored runs with menus that a reader's browser answers: no kernel, any stored run.

Altair describes a chart and Vega-Lite draws it, in a live notebook as in the built book, whose pages load Vega from
`_static` (the Makefile puts it there); a live notebook, which has no such folder, from a CDN. A menu names a value; where no run has it, the nearest is shown, and
the line under the chart says which that is.
"""

from __future__ import annotations

import itertools
import re

import altair as alt
import pandas as pd
from IPython.display import display

from ncutils import analysis
from ncutils.analysis import Groups
from ncutils.book.style import COLOURS, LABELS, METRICS, ON_COLOUR, turning
from ncutils.optimizers import OPTIMIZERS

_FIELDS = ["run", "same_steps", "optimizer", "valid", "lr", "momentum", "wd", "seed"]
_SCRIPTS = {"vega": 6, "vega-lite": 6, "vega-embed": 7}  # the last needs the others
_CDN = "https://cdn.jsdelivr.net/npm/{0}@{1}/build/{0}.min.js"
_EMBED = """async (number, spec, sources) => {
  if (!globalThis.vegaEmbed) for (const src of sources) await new Promise(done => {
    const onerror = () => document.getElementById(`chart-${number}`).textContent = `${src} cannot be loaded`
    document.head.append(Object.assign(document.createElement("script"), {src, onload: done, onerror}))
  })
  if (innerWidth < 700) spec.vconcat.forEach(part => {
    if (part.columns) part.columns = 1
    if (part.width > 300) part.width = 270
  })
  const menus = document.getElementById(`menus-${number}`)
  const ink = "var(--pst-color-text-base, #000)", line = "var(--pst-color-border, #ddd)"
  const config = {background: "transparent", font: getComputedStyle(document.body).fontFamily, text: {color: ink}, view: {stroke: line},
    axis: {labelColor: ink, titleColor: ink, domainColor: line, tickColor: line, gridColor: line},
    legend: {labelColor: ink, titleColor: ink}}
  vegaEmbed(`#chart-${number}`, spec, {renderer: "svg", actions: false, bind: menus, config})
}"""
_count = itertools.count()


def show(chart: alt.TopLevelMixin) -> None:
    """Displays a chart: as Vega-Lite where a notebook draws this version, and as a script, in the page's colours and one column
    wide on a phone."""
    number = next(_count)
    scripts = [f'<script src="../_static/{name}.min.js"></script>' for name in _SCRIPTS if number == 0]
    html = f'{"".join(scripts)}<div id="menus-{number}" class="chart-menus"></div><div id="chart-{number}"></div>'
    sources = [_CDN.format(name, version) for name, version in _SCRIPTS.items()]
    spec = re.sub('"(#[0-9a-f]{6})"', lambda match: f'"{turning(match[1])}"', chart.to_json(indent=None))
    html += f"<script>({_EMBED})({number}, {spec}, {sources})</script>"
    kind = f"application/vnd.vegalite.v{alt.SCHEMA_VERSION[1]}+json"
    display({kind: chart.to_dict(), "text/html": html}, raw=True)


def metric_against_nc0(groups: Groups) -> alt.TopLevelMixin:
    """Figures 2 and 9 to 12: final metric of valid runs against NC0, by optimizer and learning rate, with the line of least
    squares on log10 NC0."""
    every = _finals(groups)
    table = every[every["valid"] & (every["nc0"] > 0)]
    settings = [*table["setting"]] or [*every["setting"]]  # where no run is valid, the chart is empty
    menus = [
        _menu("metric", [LABELS[m] for m in METRICS[1:]], "NC3"),
        _menu("setting", sorted(set(settings)), settings[0]),
        _menu("optimizer", ["all", *dict.fromkeys(table["optimizer"])], "all"),
        _menu("lr", ["all", *sorted(set(table["lr"]))], "all"),
    ]
    chosen = "datum.setting == setting && (optimizer == 'all' || datum.optimizer == optimizer)"
    base = _chart(table).transform_filter(chosen).transform_filter("lr == 'all' || datum.lr == lr")
    base = base.transform_calculate(log_nc0="log(datum.nc0) / LN10", y="datum[lower(metric)]")
    points = base.mark_point(filled=True, size=45, opacity=1).encode(
        alt.X("log_nc0:Q").title("log10 NC0"),
        alt.Y("y:Q").title("final value of the metric").scale(zero=False),
        alt.Color("optimizer:N").scale(domain=list(OPTIMIZERS), range=[COLOURS[name] for name in OPTIMIZERS]),
        alt.Shape("optimizer:N").scale(domain=list(OPTIMIZERS)),
        tooltip=["optimizer:N", "lr:Q", "momentum:Q", "wd:Q", "seed:Q", "nc0:Q", "y:Q"],
    )
    # at wd 0 a run stands under both its optimizers and counts once, and so do SGD and SGDW where they take the same steps
    first = [alt.SortField("optimizer")]
    once = base.transform_window(sort=first, groupby=["same_steps"], place="row_number()")
    once = once.transform_filter("datum.place == 1")
    line = once.transform_regression("log_nc0", "y").mark_line(color="#000000").encode(x="log_nc0:Q", y="y:Q")
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
    best = base.transform_calculate(**cost).transform_joinaggregate(least="min(cost)")
    best = best.transform_filter("datum.cost < datum.least + 1e-9")  # the nearest learning rate's
    best = best.transform_joinaggregate(best="max(kept)", groupby=["momentum", "wd"])
    cells = best.transform_filter("datum.kept == datum.best").transform_aggregate(
        y="mean(y)", kept="max(kept)", lr="min(lr)", n="count()", groupby=["momentum", "wd", "optimizer"]
    )
    x = alt.X("wd:O").title("weight decay").axis(labelAngle=0)
    y = alt.Y("momentum:O").sort("descending").title("momentum")
    colour = alt.Color("y:Q").scale(type="log", scheme="viridis").title("value")
    dropped = cells.mark_rect(color="#dddddd").encode(x, y)
    kept = cells.transform_filter("datum.kept > 0 && datum.y > 0").mark_rect().encode(x, y, colour)
    short = "format(datum.y, datum.y > 0 && datum.y < 0.001 ? '.0e' : '.2~g')"
    text = cells.transform_calculate(text=f"!isValid(datum.y) ? '–' : {short}").mark_text(fontSize=11)
    # half-way between the contrasts with black and white is a luminance of 0.18; grey turns with the page, and its words
    bright = "datum.kept > 0 && datum.y > 0 && luminance(scale('color', datum.y)) > 0.18"
    ink = alt.when(bright).then(alt.value(ON_COLOUR[0])).when("datum.kept > 0 && datum.y > 0")
    ink = ink.then(alt.value(ON_COLOUR[1])).otherwise(alt.value("#000000"))
    said = _said(
        cells.transform_aggregate(runs="sum(n)", lr="min(lr)", groupby=["optimizer"]),
        "Final {metric} of {datum.optimizer} at learning rate {datum.lr}",
        "{datum.runs} runs; grey: under 99 % training accuracy",
    )
    picture = dropped + kept + text.encode(x, y, color=ink, text="text:N")
    return _page(picture.properties(width=560, height=300), said, menus)


def _finals(groups: Groups) -> pd.DataFrame:
    """A row a run and optimizer, without decay under both its optimizers: final metrics, and the setting in words."""
    table = analysis.table(groups)
    setting, table = table["arch"] + " on " + table["dataset"], table.assign(optimizer=table["label"])
    return table[_FIELDS].assign(**{m: table[m].map(_short) for m in METRICS}, setting=setting)


def _short(value) -> float | None:
    return float(f"{value:.4g}") if pd.notna(value) else None


def _chart(table: pd.DataFrame) -> alt.Chart:
    known = table.astype(object).where(table.notna(), None)  # JSON has no nan
    return alt.Chart(alt.Data(values=known.to_dict("records")))


def _menu(name: str, options: list, value) -> alt.Parameter:
    menu = alt.binding_select(options=options, name="learning rate " if name == "lr" else f"{name} ")
    return alt.param(name=name, value=value, bind=menu)


def _said(chart: alt.Chart, *lines: str) -> alt.Chart:
    """What a chart says in words, under it: lines with expressions in braces."""
    text = chart.transform_calculate(text=f"[{', '.join(map(_expression, lines))}]")
    text = text.mark_text(align="left", baseline="top", fontSize=12, lineHeight=16)
    text = text.encode(y=alt.value(0), text="text:N", x=alt.value(0))
    return text.properties(width=330, height=34, view={"stroke": None})


def _expression(line: str) -> str:
    """A line that names expressions, "lr {datum.lr:.2f}", as one of Vega's: "'lr ' + format(datum.lr, '.2f')"."""
    parts = re.findall(r"([^{]+)|\{(.+?)(?::([^\s}]+))?\}", line)
    return " + ".join(f"'{t}'" if t else f"format({e}, '{form}')" if form else e for t, e, form in parts)


def _page(picture, text, menus) -> alt.TopLevelMixin:
    chart = alt.vconcat(picture, text)
    chart.params = [menu.param for menu in menus]
    chart = chart.configure_axis(labelFontSize=12, titleFontSize=12)
    return chart.configure_legend(orient="top", title=None, labelFontSize=12, symbolSize=80)
