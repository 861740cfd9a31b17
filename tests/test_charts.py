"""The plane of the geometry, and what the charts hold. What their menus do is tested in a browser."""

import dataclasses
import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from ncutils import theory
from ncutils.book import charts, figures, style
from ncutils.book.figures import polygon
from ncutils.training import Run, train
from tools import scripts


def grams(means, weights):
    means = means - means.mean(0)
    return means, np.stack([means @ means.T, weights @ weights.T, weights @ means.T])


@pytest.mark.parametrize("K", [3, 4, 10])
def test_collapse_is_a_regular_polygon(K):
    etf = theory.simplex_etf(K) @ np.linalg.qr(np.random.default_rng(0).normal(size=(K - 1, K - 1)))[0]
    means, weights = polygon(grams(3 * etf, 0.2 * etf)[1])
    np.testing.assert_allclose(means, weights, atol=1e-12)
    angle = 2 * np.pi * np.arange(K) / K
    corners = np.column_stack([np.sin(angle), np.cos(angle)]) * np.sqrt(2 / (K * (K - 1)))
    np.testing.assert_allclose(means, corners, atol=1e-12)


def test_three_means_keep_their_distances_and_products():
    rng = np.random.default_rng(1)
    m, g = grams(rng.normal(size=(3, 8)), w := rng.normal(size=(3, 8)))
    means, weights = polygon(g.astype(np.float32))
    unit = m / np.linalg.norm(m)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.linalg.norm(means[i] - means[j]) == pytest.approx(
            np.linalg.norm(unit[i] - unit[j]), rel=1e-5
        )
    np.testing.assert_allclose(weights @ means.T, w @ unit.T / np.linalg.norm(w), atol=1e-6)


def test_the_plane_does_not_depend_on_the_features_coordinates():
    rng = np.random.default_rng(2)
    m, w, turn = (
        rng.normal(size=(10, 16)),
        rng.normal(size=(10, 16)),
        np.linalg.qr(rng.normal(size=(16, 16)))[0],
    )
    for here, there in zip(polygon(grams(m, w)[1]), polygon(grams(m @ turn, w @ turn)[1])):
        np.testing.assert_allclose(here, there, atol=1e-10)


@pytest.fixture(scope="module")
def groups():
    common = {"epochs": 3, "width": 2, "dataset": "digits3", "lr": 0.01}
    return {name: [train(Run.named(name, 0.1, **common))] for name in ("Adam", "AdamW")}


def test_a_line_of_words_is_a_vega_expression():
    assert charts._expression("R² {datum.r:.3f}{datum.n}, {(a < 0 ? ' - ' : ' + ')}{abs(b):.1%} runs") == (
        "'R² ' + format(datum.r, '.3f') + datum.n + ', ' + (a < 0 ? ' - ' : ' + ') + format(abs(b), '.1%') + ' runs'"
    )


def test_a_rule_without_a_name_in_the_paper_is_drawn_too():
    assert style.look("lion 0.1")["color"] == "grey" and style.look("AdamW 0.1")["mfc"] == "white"
    several = style.looks(["lion 0", "lion 1", "Adam"])
    assert len({(tuple(look["color"]), look["marker"]) for look in several.values()}) == 3


def test_an_undefined_value_is_null(groups):
    """JSON has no nan, and a browser would refuse the whole chart."""
    undefined = {
        name: [dataclasses.replace(h, frame=h.frame.assign(nc3=np.nan)) for h in histories]
        for name, histories in groups.items()
    }
    spec = charts.heat_map(undefined).to_dict()
    assert "null" in json.dumps(spec, allow_nan=False)
    (drawn,) = figures.heat_maps(groups["Adam"], "test", ("nc0",)).axes
    # one scheme in the book
    assert re.findall(r'"scheme": "(\w+)"', json.dumps(spec)) == [drawn.images[0].get_cmap().name]


def test_a_chart_of_valid_runs_is_empty_where_none_is(groups):
    failed = {
        name: [dataclasses.replace(h, frame=h.frame.assign(train_acc=0.5)) for h in of]
        for name, of in groups.items()
    }
    spec = charts.metric_against_nc0(failed).to_dict()
    assert "resnet9 on digits3" in json.dumps(spec) and not any(spec.get("datasets", {}).values())


@pytest.fixture
def shown(groups, monkeypatch):
    """What a cell with a chart gives a notebook, the first one in its kernel."""
    bundles = []
    monkeypatch.setattr(charts, "_count", itertools.count())
    monkeypatch.setattr(charts, "display", lambda bundle, raw: bundles.append(bundle))
    charts.show(charts.heat_map(groups))
    return bundles[0]


def test_a_chart_is_shown_live_and_in_the_page(shown):
    page = shown.pop("text/html")
    assert set(shown) == {"application/vnd.vegalite.v6+json"}
    assert (
        set(re.findall(r'"(#[0-9a-f]{6})"', page)) == {*style.ON_COLOUR} and "light-dark(#dddddd, #" in page
    )
    assert [f'<script src="../_static/{name}.min.js">' in page for name in charts._SCRIPTS] == [True] * 3
    packages = {f"{name}@{version}" for name, version in charts._SCRIPTS.items()}
    assert packages == set(scripts.PACKAGES)


def test_a_chart_draws_in_a_live_notebook_with_vega_from_a_cdn(shown, browser, tmp_path):
    """Where no `_static` is beside the page: the CDN's files in their order, served here from npm's; without, it says so."""
    if not shutil.which("npm"):
        pytest.skip("needs npm, which has what the CDN has")
    for package, files in scripts.PACKAGES.items():
        scripts.bring(package, files, tmp_path)
    if (tmp_path / "vega.min.js").read_text("utf-8").startswith("document.write"):
        pytest.skip("needs npm's registry, which has what the CDN has")
    tab, asked = browser.new_page(), []
    tab.route(
        "https://cdn.jsdelivr.net/npm/**",
        lambda route: (
            asked.append(route.request.url) or route.fulfill(path=tmp_path / Path(route.request.url).name)
        ),
    )
    tab.goto("about:blank")
    ink = "<style>:root { --pst-color-text-base: rgb(1, 2, 3) }</style>"
    tab.set_content(f"<!doctype html>{ink}<body>{shown['text/html']}</body>")
    tab.wait_for_selector("#chart-0 svg", timeout=20_000)
    assert tab.locator("#menus-0 select").count() > 0
    fill = "t => getComputedStyle(t).fill"
    assert tab.locator(".role-axis-label text").first.evaluate(fill) == "rgb(1, 2, 3)"
    assert asked == [charts._CDN.format(name, version) for name, version in charts._SCRIPTS.items()]
    for url in asked:
        package, _, file = url.removeprefix("https://cdn.jsdelivr.net/npm/").partition("/")
        assert file in scripts.PACKAGES[package]
    tab.unroute("https://cdn.jsdelivr.net/npm/**")
    tab.route("https://cdn.jsdelivr.net/npm/**", lambda route: route.abort())
    tab.set_content(f"<!doctype html><script>delete window.vegaEmbed</script>{shown['text/html']}")
    tab.wait_for_function("document.body.innerText.includes('vega.min.js cannot be loaded')")
    tab.close()
