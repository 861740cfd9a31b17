"""The built book in a real browser: opened from disk, no kernel, no network."""

import copy
import functools
import re
import shutil
import subprocess
import tarfile
import threading
import time
import zlib
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
from bs4 import BeautifulSoup
from fontTools.ttLib import TTFont

from ncutils.book import style
from tests.conftest import SOAK

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "_build" / "screenshots"
PACKED = {".png", ".gif", ".woff2"}
PHONE = {"width": 390, "height": 844}
# pages of every kind, kept as pictures
SHOWN = (
    "chapters/intro",
    "chapters/01_neural_collapse",
    "chapters/04_explore",
    "chapters/06_theorem_3_1",
    "chapters/14_six_settings",
)
READY = """() => [...document.querySelectorAll("[id^=chart-]")].every(c => c.querySelector("svg")) &&
  document.querySelectorAll("script[type='application/vnd.jupyter.widget-view+json']").length ==
  document.querySelectorAll("[data-ready]").length"""
# the playground's change what is trained: tests/test_playground.py
CONTROLS = (
    ".chart-menus select, .chart-menus input, .nc-widget:not(.nc-playground) :is(select, input[type=range])"
)


@pytest.fixture(scope="module")
def book(quick_book, tmp_path_factory):
    """The built pages, moved as to a USB stick: nothing beside the folder."""
    copied = tmp_path_factory.mktemp("stick") / "book"
    return shutil.copytree(quick_book / "_build" / "html", copied)


@pytest.fixture(scope="module")
def pages(book):
    """The pages that a reader comes to, as paths in the book without their ending."""
    found = [
        p.relative_to(book).with_suffix("").as_posix()
        for p in book.rglob("*.html")
        if "_static" not in p.parts
    ]
    return sorted(set(found) - {"index", "genindex", "search", "404"})


@functools.cache
def parsed(book, page):
    """A page as it was built, to be read only."""
    return BeautifulSoup((book / f"{page}.html").read_text("utf-8"), "html.parser")


def opened(browser, book, page, address=None, **options):
    """A tab that shows a page, from disk or from a server's address, and what went wrong in it: filled as it happens."""
    tab, wrong = browser.new_page(**options), []
    address = address or f"{book.as_uri()}/"
    inside = (address, "data:", "blob:")
    tab.on("request", lambda r: None if r.url.startswith(inside) else wrong.append(r.url))
    # what was still on its way when a test went on to another page is no fault
    tab.on(
        "requestfailed",
        lambda r: None if r.failure == "net::ERR_ABORTED" else wrong.append(f"failed: {r.url} ({r.failure})"),
    )
    tab.on("pageerror", lambda error: wrong.append(f"script: {error}"))
    tab.on(
        "console",
        lambda message: wrong.append(f"console: {message.text}") if message.type == "error" else None,
    )
    tab.goto(f"{address}{page}.html")
    tab.evaluate("window.MathJax?.startup?.promise")
    tab.wait_for_function(READY, timeout=20_000)
    return tab, wrong


def test_pages_open_from_disk_fit_a_phone_and_show_their_maths(browser, book, pages):
    lines, bad = [], []
    cut = "all => all.filter(t => t.offsetParent && t.scrollWidth > t.parentElement.clientWidth).length"
    PICTURES.mkdir(parents=True, exist_ok=True)
    for page in pages:
        tab, wrong = opened(browser, book, page, viewport=PHONE)
        ready = tab.evaluate("performance.now()")  # since the page was asked for, its explorers drawn
        weight = (book / f"{page}.html").stat().st_size
        lines.append(f"{page:34s} {weight / 1e6:5.2f} MB, ready after {ready / 1e3:.2f} s")
        bad += [f"{page}: {what}" for what in wrong]
        if (wide := tab.evaluate("document.documentElement.scrollWidth")) > PHONE["width"]:
            bad.append(f"{page}: {wide} pixels wide on a phone")
        if tables := tab.locator("main table.table").evaluate_all(cut):
            bad.append(f"{page}: {tables} tables are wider than their place")
        if raw := re.findall(
            r"\$\$|\\(?:frac|lVert|begin|mathrm|lambda|eta)\b", tab.locator("main").inner_text()
        ):
            bad.append(f"{page}: raw maths {raw[:3]}")
        if bare := tab.locator("main img:not([alt]), main img[alt='']").count():
            bad.append(f"{page}: {bare} images without words")
        if weight > 3e6:
            bad.append(f"{page}: {weight / 1e6:.1f} MB")
        if page in SHOWN:
            name = page.replace("/", "_")
            tab.screenshot(path=PICTURES / f"{name}_phone.png", full_page=True)
            tab.set_viewport_size({"width": 1400, "height": 1000})
            for theme in ("light", "dark"):
                tab.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)
                tab.screenshot(path=PICTURES / f"{name}_{theme}.png", full_page=True)
        tab.close()
    print("\n" + "\n".join(lines))
    assert not bad, "\n".join(bad)


def test_the_site_is_at_home_under_a_subpath(browser, book):
    """Served as GitHub Pages does, the book in a folder of the host: nothing is asked for outside of it, and search finds."""
    handler = functools.partial(Quiet, directory=book.parent)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/{book.name}/"
        for page in (*SHOWN, "chapters/12_regression", "chapters/26_playground"):
            tab, wrong = opened(browser, book, page, address)
            assert not wrong, (page, wrong)
            tab.close()
        tab = browser.new_page()  # of its own: the page that leads on has no icon
        tab.goto(address)
        tab.wait_for_url(f"{address}chapters/intro.html")
        tab.close()
        tab, wrong = opened(browser, book, "search", address)
        tab.goto(f"{address}search.html?q=underflows")
        tab.get_by_role("link", name=re.compile("Theorem 3.3")).first.wait_for(timeout=10_000)
        # a server's pages may be read
        excerpt = tab.locator("#search-results .context", has_text="underflows")
        excerpt.first.wait_for(timeout=10_000)
        assert not wrong
        tab.close()
        server.shutdown()


def test_other_sites_have_what_to_show_beside_a_link(book, pages):
    for page in (page for page in pages if page.startswith("chapters/")):
        tags = {tag.get("property"): tag["content"] for tag in parsed(book, page).select("meta[property]")}
        assert tags["og:title"] and tags["og:image"] == "_static/social.png" and tags["og:image:alt"], page
        assert not parsed(book, page).select("link[rel=canonical]"), page  # no address is known here
    assert (book / "_static" / "social.png").is_file()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_a_page_weighs_at_most_a_megabyte_as_a_server_sends_it(browser, book, pages):
    packed = functools.cache(
        lambda path: path.stat().st_size if path.suffix in PACKED else len(zlib.compress(path.read_bytes()))
    )
    heavy = []
    for page in (
        pages if SOAK else (*SHOWN, "chapters/12_regression", "chapters/26_playground", "chapters/scoreboard")
    ):
        tab, asked = browser.new_page(), set()
        tab.on("request", lambda r, asked=asked: asked.add(urldefrag(r.url)[0].partition("?")[0]))
        tab.goto((book / f"{page}.html").as_uri())
        tab.wait_for_function(READY)
        files = {Path(unquote(urlsplit(url).path)) for url in asked if url.startswith("file:")}
        weight = sum(map(packed, files))
        print(f"\n{page}: {weight / 1e3:.0f} kB")
        if weight > 1e6:
            heavy.append((page, weight, sorted(files, key=packed)[-3:]))
        tab.close()
    assert not heavy


ICONS = """() => [...document.querySelectorAll("*")].flatMap(e => ["::before", "::after"].map(which => getComputedStyle(e, which)))
  .filter(style => style.fontFamily.includes("Font Awesome"))
  .map(style => [style.fontFamily, style.fontWeight, style.content.replaceAll('"', "")])"""


def test_every_icon_of_a_page_is_in_the_font_that_was_cut_to_those_in_use(browser, book, pages):
    found, missing = set(), []
    fonts = {p.stem: TTFont(p).getBestCmap() for p in book.glob("_static/vendor/fontawesome/webfonts/*.ttf")}
    for page in (*SHOWN, "search", "chapters/12_regression"):
        tab, _ = opened(browser, book, page)
        for family, weight, icon in tab.evaluate(ICONS):
            font = "fa-solid-900" if int(weight) > 400 else "fa-regular-400"
            font = "fa-brands-400" if "Brands" in family else font
            found.add(icon)
            if len(icon) == 1 and ord(icon) not in fonts[font]:
                missing.append((page, font, hex(ord(icon))))
        tab.close()
    assert len(found) > 10 and not missing


def drawn(tab) -> str:
    """What the explorers of a page show: their visible pictures."""
    return tab.evaluate(
        "[...document.querySelectorAll('.vega-embed svg, .nc-chart svg, .nc-figure svg, .nc-bars, .nc-census')]"
        ".filter(s => s.getClientRects().length).map(s => s.innerHTML).join()"
    )


# a control's name: its label's words without a menu's own choices, or the attribute that stands for them; a button's text
LABEL = """c => {
    const label = (c.labels?.[0] ?? c).cloneNode(true);
    if (c.tagName === 'SELECT') label.querySelectorAll('option').forEach(option => option.remove());
    return label.textContent.trim() || c.getAttribute('aria-label');
}"""


def changed(tab, before: str) -> bool:
    for _ in range(20):
        if drawn(tab) != before:
            return True
        time.sleep(0.05)
    return False


def other_choices(control) -> list[int]:
    """The places of a menu's choices, but for what no run has; none of a slider."""
    return control.evaluate("c => [...c.options ?? []].flatMap((o, i) => o.disabled ? [] : [i])")


def changes(tab, control) -> bool:
    """Whether a menu's other choices, or a slider's next position, change what is shown."""
    before = drawn(tab)
    if choices := other_choices(control):
        chosen = control.evaluate("c => c.selectedIndex")
        found = any(k != chosen and control.select_option(index=k) and changed(tab, before) for k in choices)
        control.select_option(index=chosen)
        return found
    control.focus()
    tab.keyboard.press("ArrowRight")
    if not changed(tab, before):  # at its end
        tab.keyboard.press("ArrowLeft")
    return changed(tab, before)


def test_every_control_changes_what_is_shown(browser, book, pages):
    """A learning rate that an optimizer was not run with leaves its nearest run in place: then under another optimizer."""
    tried = 0
    for page in (
        page for page in pages if parsed(book, page).select("[id^=chart-], script[type*=widget-view]")
    ):
        tab, wrong = opened(browser, book, page)
        controls = tab.locator(CONTROLS)
        for i in range(controls.count()):
            control = controls.nth(i)
            assert control.evaluate(LABEL), (page, i)
            others = ((j, k) for j in range(i - 1, -1, -1) for k in other_choices(controls.nth(j)))
            alone = len(other_choices(control)) == 1
            assert (
                alone
                or changes(tab, control)
                or any(controls.nth(j).select_option(index=k) and changes(tab, control) for j, k in others)
            ), (page, i)
            tried += 1
        assert not wrong, (page, wrong)
        tab.close()
    assert tried >= 30
    print(f"\n{tried} controls")


def test_a_theory_chapter_answers_at_any_value(browser, book):
    """What is typed is what is computed, and the regime is named as its border is crossed."""
    tab, wrong = opened(browser, book, "chapters/06_theorem_3_1")
    for lr, wd, regime in ((0.1, 0.0131, "below critical decay"), (0.137, 0.0731, "past critical decay")):
        for label, value in (("learning rate", lr), ("weight decay", wd)):
            tab.get_by_label(re.compile(f"{label}.*any value")).fill(str(value))
            tab.keyboard.press("Enter")
        tab.get_by_text(f"ηλ = {lr * wd:.3g}, {regime}").wait_for(timeout=5000)
    assert not wrong
    tab.close()


def test_a_figure_stands_in_place_of_each_widget_without_javascript(browser, book, pages):
    context = browser.new_context(java_script_enabled=False)
    tab, tried = context.new_page(), 0
    for page in pages:
        if "widget-view+json" in (book / f"{page}.html").read_text("utf-8"):
            tab.goto((book / f"{page}.html").as_uri())
            tab.locator("noscript :is(svg, table) >> visible=true").first.wait_for(timeout=5000)
            tried += 1
    assert tried >= 9
    context.close()


STATE = re.compile(r'<script type="application/vnd.jupyter.widget-state[+]json">(.*?)</script>', re.DOTALL)


def test_what_a_page_holds_for_its_explorers_is_small(book, pages):
    """State and modules of the widgets of a page, and their host, as a server sends them: at most 400 kB."""
    host, tried = (book / "_static/book.js").read_bytes(), 0
    for page in pages:
        if found := STATE.findall((book / f"{page}.html").read_text("utf-8")):
            size = len(zlib.compress("".join(found).encode() + host))
            print(f"\n{page}: {size / 1e3:.0f} kB for its explorers")
            assert size <= 400_000, (page, size)
            tried += 1
    assert tried >= 9


def test_stored_runs_are_chosen_played_and_named_in_the_address(browser, book):
    tab, wrong = opened(browser, book, "chapters/04_explore")
    page = tab.locator(".nc-widget").first
    scrubber, pictures = page.get_by_label("epoch", exact=True), page.locator(".nc-pair")
    page.get_by_role("button", name="Play").click()
    tab.wait_for_timeout(1500)
    assert 2 <= int(scrubber.input_value()) < int(scrubber.get_attribute("max"))
    page.get_by_role("button", name="Pause").click()
    held = pictures.inner_html()
    tab.wait_for_timeout(1000)
    assert pictures.inner_html() == held
    page.get_by_role("switch").click()  # the gauge
    assert pictures.inner_html() != held and pictures.locator("dd").first.inner_text() == "0"
    # a dot, then one of the menus: what no run has is disabled
    command = page.locator("code").first
    before = command.inner_text()
    dots = page.locator(".nc-chart").first.locator("circle.nc-dot")
    dots.first.click(force=True)  # dots may lie on one another: the nearest is meant
    dots.last.click(force=True)
    assert command.inner_text() != before
    assert page.locator("option:disabled").count() > 0
    tab.wait_for_function("location.hash.startsWith('#runs:')")
    assert not wrong
    tab.close()


def test_the_fitted_line_is_the_regression(browser, book):
    """What the page computes in the browser is what statsmodels gives."""
    from ncutils import analysis
    from ncutils.store import Store

    tab, _ = opened(browser, book, "chapters/12_regression")
    words = tab.locator(".vega-embed").first.get_by_text("log10 NC0").all_text_contents()
    groups, _ = analysis.stored_grid(
        ROOT / "params/quick/grid.yaml", Store(shipped=ROOT / "results"), arch="resnet9"
    )
    fit = analysis.regression(analysis.valid(groups)).loc["all"]
    said = next(re.search(r"NC3 = (-?[\d.]+) ([+-]) ([\d.]+) log10", w) for w in words if "NC3 =" in w)
    assert float(said[1]) == pytest.approx(fit["intercept"], abs=6e-4)
    assert float(said[2] + said[3]) == pytest.approx(fit["beta"], abs=6e-4)
    tab.get_by_text(f"{fit['n']:.0f} valid runs").wait_for(timeout=5000)
    tab.close()


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    """The checks of accessibility of axe-core, from npm."""
    folder = tmp_path_factory.mktemp("axe")
    done = subprocess.run(
        ["npm", "pack", "--silent", "axe-core@4"], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("npm cannot fetch axe-core")
    with tarfile.open(folder / done.stdout.split()[-1]) as files:
        return files.extractfile("package/axe.min.js").read().decode("utf-8")


def test_no_serious_fault_keeps_anyone_out(browser, book, pages, axe):
    """axe-core's serious and critical rules, light and dark; of all pages in a soak."""
    sample = (
        "intro",
        "scoreboard",
        "03_adamw",
        "04_explore",
        "12_regression",
        "08_theorem_3_4",
        "14_six_settings",
        "26_playground",
        "references",
    )
    run = "axe.run(document, {resultTypes: ['violations']})"
    bad = []
    for page in pages if SOAK else [f"chapters/{name}" for name in sample]:
        for scheme in ("light", "dark"):
            tab, _ = opened(browser, book, page, color_scheme=scheme)
            tab.evaluate(axe)
            for found in tab.evaluate(f"{run}.then(r => r.violations)"):
                if found["impact"] in ("serious", "critical"):
                    places = [
                        n["html"][:100] for n in found["nodes"] if "theme-switch-button" not in n["html"]
                    ]  # the theme's own
                    bad += [f"{page}, {scheme}: {found['id']}: {place}" for place in places[:3]]
            tab.close()
    assert not bad, "\n".join(bad)


def test_figures_have_a_name_a_caption_words_and_numbers(book, pages):
    bad, n = [], 0
    for page in pages:
        soup, names = parsed(book, page), []
        for figure in soup.select("figure.drawn"):
            n, name, svg = n + 1, figure["id"], figure.svg
            names += [name, *(place["id"] for place in figure.select("span[id]"))]
            words = figure.figcaption.p.get_text()
            label = svg.get("aria-label", "")
            if svg.get("role") != "img" or not label or re.search(r"\.(svg|png)|[0-9a-f]{12}", label):
                bad.append(f"{page}#{name}: label {label[:60]!r}")
            if not re.match(r"(Figure|Table) \w+", words) or not words.rstrip().endswith((".", ":")):
                bad.append(f"{page}#{name}: caption {words[-60:]!r}")
            rows = unquote(figure.select_one("a[download]")["href"]).partition(",")[2].splitlines()
            if rows[0].strip() != "panel,label,x,y" or len(rows) < 2:
                bad.append(f"{page}#{name}: numbers {rows[:2]}")
        bad += [f"{page}: two figures are called {name}" for name in set(names) if names.count(name) > 1]
        bad += [f"{page}: a picture without caption" for _ in soup.select(".cell_output img")]
    assert not bad, "\n".join(bad)
    assert n >= 40


def test_a_page_shows_its_parameters_folded_and_nothing_of_stderr(book, pages):
    for page in pages:
        soup = parsed(book, page)
        assert not soup.select(".output.stderr"), page
        named = {summary.get_text(" ", strip=True) for summary in soup.select("details summary")}
        chapter = (ROOT / f"{page}.ipynb").exists()
        assert not chapter or any("Parameters of this page" in words for words in named), page
        assert str(ROOT) not in soup.get_text() and "site-packages" not in soup.get_text(), page


def test_what_sets_a_page_up_is_one_line(browser, book):
    tab, wrong = opened(browser, book, "chapters/03_adamw")
    names = tab.locator("details.above-input > summary p.collapsed").all_inner_texts()
    assert names[0] == "Parameters of this page" and not [
        n for n in names[1:] if re.match("Parameters of|Imports", n)
    ]
    tab.locator("details.above-input > summary").first.click()
    shown = tab.locator("details.above-input").first.inner_text()
    assert "lr_sgd" in shown and 'profile = "quick"' in shown and "import" in shown
    assert not wrong
    tab.close()


def test_on_paper_nothing_asks_to_be_pressed_and_code_is_whole(browser, book, pages):
    tab = browser.new_page(viewport={"width": 794, "height": 1123})  # A4 at 96 dots an inch
    tab.emulate_media(media="print")
    for page in pages if SOAK else (*SHOWN, "chapters/02_weight_decay", "chapters/26_playground"):
        tab.goto((book / f"{page}.html").as_uri())
        tab.wait_for_function(READY)
        pressed = "button, input:not([inputmode], [type=number]), details.hide > summary"
        seen = (
            tab.locator("main")
            .locator(pressed)
            .evaluate_all("all => all.filter(e => e.getClientRects().length).map(e => e.outerHTML)")
        )
        cut = tab.locator("main pre").evaluate_all(
            "all => all.filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent)"
        )
        assert not seen and not cut, (page, seen, cut)
    tab.close()


def test_every_line_of_the_scoreboard_leads_to_its_figure(book):
    links = [a["href"] for a in parsed(book, "chapters/scoreboard").select(".board h4 a")]
    assert len(links) > 50
    missing = []
    for link in links:
        page, place = link.split("#")
        if not parsed(book, f"chapters/{page.removesuffix('.html')}").find(id=place):
            missing.append(link)
    assert not missing


def test_the_scoreboard_is_filtered(browser, book):
    tab, wrong = opened(browser, book, "chapters/scoreboard")
    lines = "document.querySelectorAll('.statement:not([hidden])').length"
    everything = tab.evaluate("document.querySelectorAll('.statement').length")
    assert tab.evaluate(lines) == everything > 100
    tab.select_option("[name=verdict]", "mixed")
    mixed = tab.locator(".statement[data-verdict='mixed']").count()
    assert (
        tab.evaluate(lines) == mixed > 0
        and tab.locator(".board-filter output").inner_text() == f"{mixed} statements"
    )
    shown = tab.locator(".claim:not([hidden])").evaluate_all(
        "all => all.map(c => c.querySelectorAll('.statement:not([hidden])').length)"
    )
    assert min(shown) > 0 and sum(shown) == mixed
    tab.select_option("[name=verdict]", "")
    tab.select_option("[name=optimizer]", "AdamW")
    assert 0 < tab.evaluate(lines) == tab.locator(".statement[data-optimizers~='AdamW']").count() < everything
    assert not wrong
    tab.close()


def test_a_table_of_words_is_read_value_by_value_on_a_phone(browser, book):
    tab, _ = opened(browser, book, "chapters/verdict", viewport=PHONE)
    first = tab.locator("table.stacked tbody tr").first
    values, names = (first.locator("td").all_inner_texts(), tab.locator("thead").first.locator("th"))
    after = "e => getComputedStyle(e, '::before').content"
    shown = [cell.evaluate(after) for cell in first.locator("td").all()]
    assert shown == ["none", *(f'"{name}: "' for name in names.all_text_contents()[1:])], shown
    assert values[2] in ("supported", "not decided") and not names.first.is_visible()
    tab.set_viewport_size({"width": 1280, "height": 900})
    assert names.first.is_visible() and not tab.locator("table.stacked").count()
    tab.close()


def test_the_first_screen_has_a_sentence_three_facts_and_three_ways_on(browser, book):
    tab, _ = opened(browser, book, "chapters/intro", viewport={"width": 1280, "height": 900})
    seen = "all => all.filter(e => { const b = e.getBoundingClientRect(); return b.height && b.bottom < innerHeight }).length"
    assert tab.locator("main .sd-card").evaluate_all(seen) == 3
    assert tab.locator("main .buttons a").evaluate_all(seen) == 3
    assert tab.locator("main section > p > strong").first.inner_text().endswith(".")
    tab.close()


def test_a_figure_takes_the_colours_of_the_page(browser, book):
    colours = {}
    for theme in ("light", "dark"):
        tab, _ = opened(browser, book, "chapters/03_adamw")
        tab.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)
        ground = tab.locator("#figure-5 svg #patch_1 path").first.evaluate("e => getComputedStyle(e).fill")
        page = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        words = tab.locator("#figure-5 svg text").first.evaluate("e => getComputedStyle(e).fill")
        colours[theme] = (ground, page, words)
        tab.close()
    for ground, page, words in colours.values():
        assert ground == page != words
    assert colours["light"] != colours["dark"]
    red, green, blue = (int(style.DARK[i : i + 2], 16) for i in (1, 3, 5))
    assert colours["dark"][1] == f"rgb({red}, {green}, {blue})"  # on which colours are chosen


@pytest.mark.parametrize("page", ["02_weight_decay", "12_regression"])
def test_a_chart_stands_on_the_ground_of_a_dark_page(browser, book, page):
    """The theme puts what it does not know on a light ground there, on which light words are lost."""
    tab, _ = opened(browser, book, f"chapters/{page}", color_scheme="dark")
    grounds = """e => { const found = []; for (; e && e != document.body; e = e.parentElement) found.push(getComputedStyle(e).backgroundColor)
      return found.find(colour => !/, 0\\)$/.test(colour)) ?? getComputedStyle(document.body).backgroundColor }"""
    ground = tab.locator(".vega-embed").first.evaluate(grounds)
    assert ground == tab.evaluate("getComputedStyle(document.body).backgroundColor")
    tab.close()


def test_search_finds(browser, book):
    tab, wrong = opened(browser, book, "search")
    tab.goto((book / "search.html").as_uri() + "?q=underflows")
    tab.get_by_role("link", name=re.compile("Theorem 3.3")).first.wait_for(timeout=10_000)
    assert not wrong
    tab.close()


def test_links_inside_the_book_lead_somewhere(book, pages):
    soups = {page: parsed(book, page) for page in pages}
    anchors = {page: {tag["id"] for tag in soup.find_all(id=True)} for page, soup in soups.items()}
    broken, outside = [], set()
    for page, soup in soups.items():
        for link in soup.find_all("a", href=True):
            address, anchor = urldefrag(unquote(link["href"]))
            if re.match(r"\w+:", address):
                outside.add(address)
                continue
            target = (book / page).parent / address if address else book / f"{page}.html"
            if not target.is_file():
                broken.append(f"{page}: {link['href']}")
                continue
            name = target.resolve().relative_to(book.resolve()).with_suffix("").as_posix()
            if anchor and name in anchors and anchor not in anchors[name]:
                broken.append(f"{page}: {link['href']}")
    assert not broken, "\n".join(broken)
    assert not [a for a in outside if a.startswith("http:")], "a link without TLS"


def test_names_are_spelled_one_way(book, pages):
    wrong = r"\b(Pytorch|pyTorch|Adamw|ADAMW|adamW|SignumSGD|Fashion[- ]MNIST|FMNIST|Cifar|CIFAR 10|Resnet\d|VGG-9|"
    wrong += r"weight-decay|Neural Collapse metrics|Papermill|softmax-|Jupyter book|jupyter-notebook|sgdw|simplex-ETF)\b"
    for page in pages:
        main = copy.copy(parsed(book, page).find("main"))
        for code in main.find_all(["code", "pre", "script", "cite"]):
            code.decompose()
        assert not re.findall(wrong, main.get_text()), page
