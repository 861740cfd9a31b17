"""The widgets in Chromium: the playground's arithmetic against torch, the theory's against `ncutils.theory`, the census's rows
against its files; what the playground's presets promise; what a reader may stop."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from ncutils import census, theory
from ncutils.book import explorers
from ncutils.files import project_folder
from ncutils.metrics import nc_metrics
from ncutils.optimizers import NAMES, make_optimizer

HOST = project_folder("static/book.js")
IMPORT = "const load = esm => import(URL.createObjectURL(new Blob([esm], {type: 'text/javascript'})));"
TRAIN = (
    "async ([esm, made, options, steps]) => {"
    + IMPORT
    + """
  const {engine} = await load(esm), {create, step, draw, measure} = engine(), net = create(made)
  const found = {images: [...net.images], labels: net.labels, start: [...net.params], rows: [], loss: [], W: [], law: [], metrics: []}
  const head = net.layers[2]
  for (let t = 0; t < steps; t++) {
    if (t % 20 == 0) found.metrics.push(measure(net))
    found.rows.push(draw(net, options.batch))
    found.loss.push(step(net, options, found.rows[t]))
    found.W.push([...head.W])
    found.law.push(net.law.s)
  }
  found.metrics.push(measure(net))
  return found
}"""
)


@pytest.fixture
def tab(browser):
    page = browser.new_page()
    page.goto("about:blank")
    yield page
    page.close()


@pytest.fixture(scope="module")
def made():
    widget = explorers.playground()
    return {"pixels": widget.pixels, "labels": widget.labels}, widget.get_state()["_esm"]


PLAYED = NAMES | {"Muon": ("muon", "coupled_wd"), "MuonW": ("muon", "decoupled_wd")}


class Muon:
    """Torch's own Muon for matrices, its Adam for biases, each with the decay as torch has it, or inside the gradient."""

    def __init__(self, params, lr, momentum, coupled_wd=0, decoupled_wd=0):
        self.params, self.coupled = params, coupled_wd
        common = {"lr": lr, "weight_decay": decoupled_wd}
        matrices, biases = ([p for p in params if p.ndim == n] for n in (2, 1))
        adam = torch.optim.AdamW(biases, betas=(momentum, 0.999), **common)
        self.parts = torch.optim.Muon(matrices, momentum=momentum, **common), adam

    def zero_grad(self):
        for part in self.parts:
            part.zero_grad()

    def step(self):
        for p in self.params:
            p.grad += self.coupled * p.detach()
        for part in self.parts:
            part.step()


@pytest.mark.parametrize("classes", [3, 10])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("name", PLAYED)
def test_the_playground_trains_as_torch_does(name, momentum, classes, tab, made, count, monkeypatch):
    """From the same weights on the same batches, in float64: loss, W and NC0 to NC3 over 200 steps, to 1e-9."""
    rule, decay = PLAYED[name]
    monkeypatch.setattr(torch, "bfloat16", torch.float64)  # in which torch's Muon computes
    lr, wd = (0.05, 0.02) if rule == "sgd" else (0.002, 0.05 if decay == "coupled_wd" else 2)
    options = {"rule": rule, "lr": lr, "momentum": momentum, "batch": 64, "coupled_wd": 0, "decoupled_wd": 0}
    options[decay] = wd
    data, esm = made
    found = tab.evaluate(TRAIN, [esm, data | {"classes": classes, "seed": 1}, options, 200])

    pixels, digits = load_digits(n_class=classes, return_X_y=True)
    images, labels = (
        torch.from_numpy((pixels - pixels.mean()) / pixels.std()),
        torch.from_numpy(digits).long(),
    )
    np.testing.assert_allclose(np.reshape(found["images"], (-1, 64)), images, atol=1e-12)
    assert found["labels"] == labels.tolist()
    parts = (torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 16), torch.nn.ReLU())
    body, head = torch.nn.Sequential(*parts).double(), torch.nn.Linear(16, classes).double()
    params = [*body.parameters(), *head.parameters()]
    torch.nn.utils.vector_to_parameters(torch.tensor(found["start"], dtype=torch.float64), params)
    if rule == "muon":
        optimizer = Muon(params, lr, momentum, **{decay: wd})
    else:
        optimizer = make_optimizer(params, rule, lr=lr, momentum=momentum, **{decay: wd})

    def compare(measured):
        with torch.no_grad():
            features = body(images)
            loss = F.cross_entropy(head(features), labels).item()
        expected = nc_metrics(features, labels, head.weight, head.bias)
        for key in ("nc0", "nc1", "nc2", "nc3", "nc3c"):
            assert measured[key] == pytest.approx(expected[key], rel=1e-9, abs=1e-9), (key, measured["step"])
        assert measured["loss"] == pytest.approx(loss, rel=1e-9, abs=1e-9)
        share = classes * measured["lift"] ** 2
        assert share == pytest.approx(expected["gauge_share"], rel=1e-9, abs=1e-12)

    largest = 0.0
    for t, rows in enumerate(found["rows"]):
        if t % 20 == 0:
            compare(found["metrics"][t // 20])
        loss = F.cross_entropy(head(body(images[rows])), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        off = abs(loss.item() - found["loss"][t])
        w = torch.tensor(found["W"][t], dtype=torch.float64).reshape(classes, 16)
        largest = max(largest, off, (w - head.weight.detach()).abs().max().item())
    compare(found["metrics"][-1])
    assert largest < 1e-9
    assert found["loss"][-1] < found["loss"][0]  # it trained
    law = theory.nc0_law(np.full(200, lr), wd, momentum, coupled=decay == "coupled_wd")
    np.testing.assert_allclose(found["law"], law[1:] * found["metrics"][0]["nc0"], rtol=1e-9, atol=1e-12)
    if rule == "sgd" or name == "MuonW":  # its step keeps the row sums, too: chapter 23
        assert found["metrics"][-1]["nc0"] == pytest.approx(found["metrics"][-1]["law"], rel=1e-9)
    count("steps of the playground compared with torch", 200)


THEORY = (
    "async ([esm, call]) => {" + IMPORT + " const {theory} = await load(esm); return eval(call)(theory) }"
)


def drawn(n=50):
    """Settings drawn at random over the sliders' ranges."""
    rng = np.random.default_rng(5)
    for _ in range(n):
        yield {
            "lr": float(10 ** rng.uniform(-3, 0)),
            "wd": float(10 ** rng.uniform(-3, 0.3)),
            "momentum": float(rng.choice([0, rng.uniform(0, 0.999)])),
            "K": int(rng.integers(2, 60)),
            "steps": 400,
        }


def test_theory_in_the_browser_is_that_of_the_library(tab):
    """At 50 settings, to 1e-9: law, critical decay, rate and exponential of Theorem 3.1, the limit and the course of 3.3, 3.4's
    course, T1 both ways and T2."""
    settings, esm = list(drawn()), explorers.theory("theorem31").get_state()["_esm"]
    call = f"""T => {json.dumps(settings)}.map(v => ({{
      law: T.nc0Law(v), critical: T.criticalDecay(v), rate: T.alphaRate(v), bound: Math.exp(-v.steps * T.boundRate(v)),
      limit: T.signgdwLimit(v), course: [0, 1, 7, 400].map(t => T.theorem33(v, t)), alpha: T.signgd(v),
      t1: T.t1(v), printed: T.t1(v, true), t2: T.t2(v)}}))"""
    answers = tab.evaluate(THEORY, [esm, call])
    for v, found in zip(settings, answers, strict=True):
        K, wd, lr, beta, steps = (v[name] for name in ("K", "wd", "lr", "momentum", "steps"))
        alpha = theory.signgd(K, wd, lr, steps, coupled=True)
        close = {"rel": 1e-9, "abs": 1e-12}
        law = theory.nc0_law(np.full(steps, lr), wd, beta)
        np.testing.assert_allclose(found["law"], law, rtol=1e-9, atol=1e-12 * abs(law).max())
        np.testing.assert_allclose(found["alpha"], alpha, rtol=1e-9, atol=1e-12 * (1 + alpha.max()))
        assert found["critical"] == pytest.approx(float(theory.critical_decay(lr, beta)), **close)
        assert found["rate"] == pytest.approx(float(theory.alpha_rate(lr, wd, beta)), **close)
        assert found["bound"] == pytest.approx(theory.theorem31_bound(lr, wd, beta, steps)[-1], **close)
        assert found["limit"] == pytest.approx(float(theory.signgdw_limit(K, wd)), **close)
        course = theory.theorem33(K, wd, lr, steps)[[0, 1, 7, 400]]
        np.testing.assert_allclose(found["course"], course, rtol=1e-9, atol=1e-12 * (1 + abs(course).max()))
        assert found["t1"] == pytest.approx(float(theory.t1(K, wd, lr)), **close)
        assert found["printed"] == pytest.approx(float(theory.t1(K, wd, lr, as_printed=True)), **close)
        assert found["t2"] == pytest.approx(float(theory.t2(K, wd, lr)), **close)


def test_the_gauge_in_the_browser_is_that_of_the_library(tab):
    """A random network whose mean row has length NC0 / K: its metrics to 1e-9, its loss and accuracy to the logits' four decimals."""
    generator = torch.Generator().manual_seed(2)
    features, weight, bias = (
        torch.randn(*size, generator=generator, dtype=torch.float64) for size in ((300, 12), (5, 12), (5,))
    )
    labels = torch.arange(300) % 5
    state = explorers.gauge(features, labels, weight, bias).get_state()
    call = IMPORT + " const {gaugeAt, computed} = await load(state._esm)"
    call = f"async state => {{ {call}; return [0, 0.3, 2, 40].map(n => [gaugeAt(n, state), computed(n, state)]) }}"
    centred, mean = weight - weight.mean(0), weight.mean(0)
    for nc0, (metrics, now) in zip([0, 0.3, 2, 40], tab.evaluate(call, state), strict=True):
        at = centred + mean / mean.norm() * nc0 / 5
        expected = nc_metrics(features, labels, at, bias)
        for key in ("nc2w", "nc2wc", "nc3", "nc3c"):
            assert metrics[key] == pytest.approx(expected[key], rel=1e-9), (key, nc0)
        assert metrics["share"] == pytest.approx(expected["gauge_share"], rel=1e-9, abs=1e-15)
        logits = features @ at.T + bias
        assert now["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), abs=1e-4)
        assert now["right"] == pytest.approx((logits.argmax(1) == labels).double().mean().item(), abs=1e-9)


@pytest.fixture
def shown(browser, tmp_path):
    """Opens a page from disk that holds a widget as a built page does; returns the tab and what went wrong in it."""
    tabs = []

    def show(widget, hash="", **options):
        state = {widget.model_id: {"state": widget.get_state()}}
        state = json.dumps({"state": state}, default=str).replace("</", "<\\/")
        view = json.dumps({"model_id": widget.model_id})
        kind = "<script type='application/vnd.jupyter.widget-{}+json'>{}</script>"
        page = f"<!doctype html><meta charset=utf-8><script>{HOST.read_text('utf-8')}</script><body>"
        (tmp_path / "page.html").write_text(page + kind.format("state", state) + kind.format("view", view))
        tab, wrong = browser.new_page(**options), []
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("request", lambda r: None if r.url.startswith(("file:", "blob:")) else wrong.append(r.url))
        tab.goto((tmp_path / "page.html").as_uri() + hash)
        tab.wait_for_selector("[data-ready]", state="attached")
        tabs.append(tab)
        return tab, wrong

    yield show
    for tab in tabs:
        tab.close()


def reading(tab, side, key) -> float:
    return float(
        tab.locator(".nc-readout").nth(side).locator(f"[data-key={key}]").get_attribute("data-value")
    )


def played(tab, preset):
    """The preset trained to its end: NC0 at the start and, for both sides, what the readouts say then."""
    tab.get_by_label("what to look at").select_option(preset)
    tab.locator(".nc-told", has_text="step 0").wait_for()
    start = reading(tab, 0, "nc0")
    tab.get_by_role("button", name="Play").click()
    tab.get_by_role("button", name="Pause").wait_for()
    tab.get_by_role("button", name="Play").wait_for(timeout=300_000)
    return start, [
        {key: reading(tab, s, key) for key in ("nc0", "nc3", "accuracy", "largest")} for s in (0, 1)
    ]


def test_every_preset_shows_what_its_sentences_promise(shown):
    tab, wrong = shown(explorers.playground())
    presets = tab.get_by_label("what to look at").locator("option").all_inner_texts()[1:]
    assert len(presets) == 6

    start, (adam, adamw) = played(tab, "Adam collapses")
    assert adam["nc0"] < start / 20 and adamw["nc0"] > start / 4
    assert adam["nc3"] < 0.6 * adamw["nc3"] and adam["accuracy"] == adamw["accuracy"] == 1

    start, (adamw, adam) = played(tab, "AdamW, and its gauge")
    tab.get_by_role("switch", name="Fix the gauge").click()
    tab.wait_for_function("document.querySelector('.nc-readout [data-key=nc0]').dataset.value == 0")
    fixed = reading(tab, 0, "nc3")
    assert fixed < 0.6 * adamw["nc3"] and abs(fixed - adam["nc3"]) < 0.05
    assert reading(tab, 0, "accuracy") == adamw["accuracy"]
    moved = tab.locator(".nc-note").inner_text().split(": ")[1].rstrip(".")
    assert float(moved) < 1e-14
    tab.get_by_role("switch", name="Fix the gauge").click()
    tab.wait_for_function("document.querySelector('.nc-readout [data-key=nc0]').dataset.value > 0")

    start, (signumw, signum) = played(tab, "Theorem 3.3: W runs to the box's corner")
    assert 0.19 < signumw["largest"] < 0.2 + 1e-5 and signumw["nc0"] > start / 2
    assert signum["nc0"] < start / 20

    start, (muonw, adamw) = played(tab, "Muon: decoupled, and on the law")
    # late gradients are small beside what they are the difference of, and Muon amplifies that rounding
    assert muonw["nc0"] == pytest.approx(start * (1 - 0.02 * 0.1) ** 2000, rel=1e-3)
    assert muonw["nc0"] < start / 50 and adamw["nc0"] > start / 2

    start, (sgd, adam) = played(tab, "No decay")
    assert sgd["nc0"] == pytest.approx(start, rel=1e-12) and 0.01 < abs(adam["nc0"] / start - 1) < 0.1
    assert sgd["accuracy"] == adam["accuracy"] == 1

    start, (less, more) = played(tab, "Past critical decay")
    assert max(less["nc0"], more["nc0"]) < 20 * start * 0.95**300  # beta^(t/2) after 600 steps
    assert not wrong


def test_a_view_is_sent_by_its_address(shown):
    tab, wrong = shown(
        explorers.playground(), "#playground:optimizer_a=SignumW&wd_a=2.5&steps=100&gauge=true"
    )
    assert tab.get_by_label("optimizer").first.evaluate("m => m.selectedOptions[0].textContent") == "SignumW"
    assert tab.get_by_label("weight decay, any value").first.input_value() == "2.5"
    assert tab.get_by_role("switch").get_attribute("aria-checked") == "true"
    assert tab.get_by_label("what to look at").input_value() == ""  # no preset
    tab.get_by_label("learning rate", exact=True).first.focus()
    tab.keyboard.press("ArrowRight")
    tab.wait_for_function("location.hash.includes('lr_a=0.00102')")
    tab.get_by_label("weight decay, any value").first.fill("-3")
    tab.keyboard.press("Enter")
    assert "weight decay = -3 is not allowed: it must be a number from 0.00001 to 20, or 0" in tab.content()
    assert not wrong


def test_a_chart_answers_within_50_ms_and_a_phone_holds_it(shown):
    """Between a slider's event and the chart that it draws; what a page holds for it is small when compressed."""
    import zlib

    for law in ("theorem31", "theorem33", "theorem34"):
        widget = explorers.theory(law)
        tab, wrong = shown(widget, viewport={"width": 390, "height": 844})
        times = tab.evaluate("""() => [...document.querySelectorAll("input[type=range]")].flatMap(slider => [0.2, 0.5, 0.8].map(share => {
          slider.value = +slider.min + share * (slider.max - slider.min)
          const start = performance.now(), before = document.querySelector(".nc-chart").innerHTML
          slider.dispatchEvent(new Event("input"))
          return [performance.now() - start, document.querySelector(".nc-chart").innerHTML != before]
        }))""")
        times, drawn = zip(*times)
        assert np.median(times) < 50, times  # the median: other work may take any one of them longer
        assert all(drawn), drawn
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        small = "[...document.querySelectorAll('input, button, select')].filter(c => c.getBoundingClientRect().height < 44).length"
        assert tab.evaluate(small) == 0 and not wrong
        assert len(zlib.compress(json.dumps(widget.get_state(), default=str).encode())) < 20_000
    assert len(zlib.compress(json.dumps(explorers.playground().get_state(), default=str).encode())) < 100_000


def census_files():
    """Both files side by side, as they lie on the disk: no column is computed."""
    leaks, says = (
        pd.read_csv(project_folder(name), index_col="rule", keep_default_na=False)
        for name in ("results/census.csv", "ncutils/rules.csv")
    )
    both = leaks.join(says.rename(columns={"reason": "why"}))
    return both.assign(**{column: pd.to_numeric(both[column]) for column in census.COLUMNS})


def expected(rules, says, search, sort, descending) -> list[str]:
    order = ["keeps", "exact", "scales", "breaks", "second copy", "untried"]
    text = rules.index + " " + rules["theory"] + " " + rules["why"] + " " + rules["why_not"]
    kept = rules["theory"].isin(order if says == "all" else [says])
    for word in search.split():
        kept &= text.str.contains(word, case=False, regex=False)
    key = {"rule": rules.index.to_series(), "theory": rules["theory"].map(order.index)}.get(sort)
    key = rules[sort] if key is None else key
    key = key.str.lower() if sort in ("rule", "why") else key
    return list(key[kept].sort_values(kind="stable", ascending=not descending, na_position="last").index)


HEADS = {"rule": "rule", "theory": "theory says", "float64": "leak", "float32": "in float32", "k2": "K = 2"}
HEADS |= {"label_smoothing": "label smoothing", "squared_error": "squared error", "why": "why"}


def test_the_census_sorts_searches_and_filters_as_pandas_does(shown, count):
    rules = census_files()
    tab, wrong = shown(explorers.census(rules), "#census:sort=nonsense&search=%25&says=keeps")
    search, says, sort = (tab.get_by_label(name, exact=True) for name in ("search", "theory says", "sort by"))
    assert (search.input_value(), tab.get_by_role("status").inner_text()) == ("%", "0 of 138 rules")
    lines = tab.locator(".nc-census tbody tr")
    for what, words in (
        ("keeps", ""),
        ("all", ""),
        ("breaks", "second MOMENT"),
        ("untried", ""),
        ("exact", "newton"),
        ("all", "muon"),
        ("second copy", "no such rule"),
    ):
        n = len(rules) if what == "all" else (rules["theory"] == what).sum()
        says.select_option(f"{what} ({n})")
        search.fill(words)
        for column, title in HEADS.items():
            head = tab.get_by_role("columnheader", name=title, exact=True)
            for descending in (False, True):
                head.get_by_role("button").click()
                found = lines.locator("th").all_inner_texts()
                assert found == expected(rules, what, words, column, descending), (what, words, column)
                assert head.get_attribute("aria-sort") == ("descending" if descending else "ascending")
                count("orders of the census compared with pandas")
            assert sort.evaluate("m => m.selectedOptions[0].textContent") == title
        assert tab.get_by_role("status").inner_text() == f"{len(found)} of {len(rules)} rules"
    # the address names the view, and leads back to it
    says.select_option(f"all ({len(rules)})")
    search.fill("50 % & adam=1")
    tab.wait_for_function("location.hash.includes('adam')")
    tab.reload()
    tab.wait_for_selector("[data-ready]", state="attached")
    assert search.input_value() == "50 % & adam=1" and not wrong


def test_a_row_of_the_census_is_what_the_files_hold(shown):
    rules = census_files()
    tab, wrong = shown(explorers.census(rules))
    texts = tab.evaluate(
        "[...document.querySelectorAll('.nc-census tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
    )
    assert len(texts) == len(rules) > 100
    for rule, what, *leaks, why in texts:
        row = rules.loc[rule]
        assert what == row["theory"] and why.startswith(row["why"]) and row["why_not"] in why
        for text, column in zip(leaks, census.COLUMNS, strict=True):
            if np.isfinite(row[column]):  # two digits: within half of the second one's unit
                assert float(text) == pytest.approx(row[column], rel=0.05, abs=0), (rule, column)
            else:
                assert text == "–", (rule, column)
    assert not wrong


def test_the_census_answers_within_50_ms_by_keyboard_and_on_a_phone(shown):
    widget = explorers.census(census_files())
    for options in ({}, {"viewport": {"width": 390, "height": 844}}):
        tab, wrong = shown(widget, **options)
        times = tab.evaluate("""() => Array.from("adam muon sgd", (_, i) => {
          const field = document.querySelector("input[type=search]"), start = performance.now()
          field.value = "adam muon sgd".slice(0, i)
          field.dispatchEvent(new Event("input"))
          document.querySelector(".nc-scroll tr:last-child")?.getBoundingClientRect() // laid out, too
          return performance.now() - start
        })""")
        assert np.median(times) < 50, times
        assert tab.evaluate("document.documentElement.scrollWidth") <= (390 if options else 1280)
        small = "[...document.querySelectorAll('input, button, select')].filter(c => c.getClientRects().length && c.getBoundingClientRect().height < 44).length"
        assert tab.evaluate(small) == 0 and not wrong
    # no mouse: from the search to the order's button, the heads and the table, and what a screen reader is told
    tab, wrong = shown(widget)
    tab.get_by_label("search", exact=True).focus()
    tab.keyboard.type("lion")
    for _ in range(3):
        tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    assert tab.get_by_role("button", name="descending").evaluate("b => b == document.activeElement")
    assert tab.get_by_role("columnheader", name="leak").get_attribute("aria-sort") == "descending"
    told = f"{tab.locator('.nc-census tbody tr').count()} of {len(widget.rows)} rules"
    assert tab.get_by_role("status").inner_text() == told
    tab.keyboard.press("Tab")
    assert tab.get_by_role("region", name="the census").evaluate("r => r == document.activeElement")
    assert not wrong


LIVE = (
    "async state => {"
    + IMPORT
    + """
  const {default: {render}} = await load(state._esm), heard = {}, el = document.body.appendChild(document.createElement("div"))
  const model = {
    get: name => state[name],
    set: (name, value) => { state[name] = value; for (const listener of heard[`change:${name}`] ?? []) listener() },
    on: (event, listener) => (heard[event] ??= []).push(listener),
    save_changes() {},
  }
  await render({model, el})
  const lines = () => el.querySelectorAll("tbody tr").length, before = lines()
  model.set("search", "lion")
  model.set("says", "breaks")
  const [field, menu] = [el.querySelector("input"), el.querySelector("select")]
  return {before, after: lines(), field: field.value, menu: menu.selectedOptions[0].textContent, shown: state.shown, hash: location.hash}
}"""
)


def test_what_python_sets_in_a_notebook_the_table_shows_and_python_reads_its_rows(tab):
    """The module between a model and its view, as a notebook's front end runs it."""
    rules = census_files()
    found = tab.evaluate(LIVE, explorers.census(rules).get_state())
    lions = expected(rules, "breaks", "lion", "float64", False)
    assert found["shown"] == lions and found["after"] == len(lions) < found["before"] == len(rules)
    assert found["field"] == "lion" and found["menu"].startswith("breaks (") and not found["hash"]


def corners(tab):
    return tab.locator(".nc-edge").evaluate_all("lines => lines.map(l => l.getAttribute('x1'))")


def pictures_of_a_fixed_gauge(tab) -> int:
    return tab.evaluate("""async () => {
      let drawn = 0
      const seen = new MutationObserver(() => drawn++)
      seen.observe(document.querySelector(".nc-picture"), {childList: true})
      document.querySelector("[role=switch]").click()
      await new Promise(done => setTimeout(done, 900))
      return drawn
    }""")


def test_what_moves_can_be_paused(shown):
    """The playground's training and its turning tetrahedron."""
    tab, wrong = shown(explorers.playground(), "#playground:classes=4&steps=20000")
    start = corners(tab)
    tab.get_by_role("button", name="Play").click()
    tab.wait_for_function("+document.querySelector('.nc-told').textContent.match(/[0-9]+/)[0] > 3")
    tab.get_by_role("button", name="Pause").click()
    tab.wait_for_timeout(500)  # the step that was asked for comes back
    held = tab.locator(".nc-told").inner_text(), corners(tab)
    tab.wait_for_timeout(700)
    assert (tab.locator(".nc-told").inner_text(), corners(tab)) == held
    assert held[1] != start and pictures_of_a_fixed_gauge(tab) > 2 and not wrong


def test_nothing_moves_by_itself_where_motion_is_not_wanted(shown):
    """The tetrahedron stands while the network trains, and a gauge is fixed in one picture."""
    tab, wrong = shown(explorers.playground(), "#playground:classes=4&steps=60", reduced_motion="reduce")
    tab.locator(".nc-edge").first.wait_for(state="attached")
    start = corners(tab)
    tab.get_by_role("button", name="Play").click()
    tab.locator(".nc-told", has_text="step 60").wait_for(timeout=60_000)
    assert corners(tab) == start and pictures_of_a_fixed_gauge(tab) == 1 and not wrong
