"""What the built site has beside its pages."""

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace

import pydata_sphinx_theme
import pytest
from fontTools.ttLib import TTFont
from pypdf import PdfReader
from sphinx.errors import ExtensionError

from ncutils.book import site

ROOT = Path(__file__).resolve().parents[1]


def test_the_projects_folder_is_not_built_without_outputs():
    with pytest.raises(ExtensionError, match="`make book` runs them"):
        site.setup(SimpleNamespace(srcdir=ROOT))


@pytest.fixture
def heard(tmp_path):
    """What the extension does at which event."""
    events = {}
    site.setup(SimpleNamespace(srcdir=tmp_path, connect=lambda event, call: events.setdefault(event, call)))
    return events


@pytest.mark.parametrize(
    ("repository", "base"),
    [
        ("https://github.com/Someone/a-book", "https://someone.github.io/a-book/"),
        ("https://example.org/book", ""),
        ("https://github.com/executablebooks/jupyter-book", ""),  # jupyter-book's default
        (None, ""),
    ],
)
def test_the_footer_and_the_address(heard, repository, base):
    config = SimpleNamespace(
        html_theme_options={"repository_url": repository, "path_to_docs": "x"}, html_baseurl=""
    )
    heard["config-inited"](None, config)
    assert f"ncutils {importlib.metadata.version('ncutils')}" in config.html_theme_options["extra_footer"]
    assert config.html_theme_options["path_to_docs"] == "x"
    assert config.html_baseurl == config.ogp_site_url == base


def test_one_page_draws_what_the_pages_do(heard):
    registry = SimpleNamespace(translation_handlers={"html": {"a": 1, "b": 2}, "singlehtml": {"b": 3}})
    builder = SimpleNamespace(name="singlehtml")
    heard["builder-inited"](SimpleNamespace(registry=registry, builder=builder))
    assert registry.translation_handlers["singlehtml"] == {"a": 1, "b": 3}


def test_latex_would_leave_the_figures_out(heard):
    app = SimpleNamespace(builder=SimpleNamespace(name="latex"))
    with pytest.raises(ExtensionError, match="`make pdf` prints the book"):
        heard["builder-inited"](app)


def test_an_icon_that_comes_with_a_later_build_is_in_the_font(heard, tmp_path):
    font = tmp_path / "_static" / "vendor" / "fontawesome" / "webfonts" / "fa-solid-900.ttf"
    font.parent.mkdir(parents=True)
    shutil.copy(
        Path(pydata_sphinx_theme.__file__).parent
        / "theme/pydata_sphinx_theme/static"
        / font.relative_to(tmp_path / "_static"),
        font,
    )
    whole = font.stat().st_size
    style = '.fa-sun:before{content:"\\f185"}.fa-house:before,.fa-home:before{content:"\\f015"}'
    (tmp_path / "a.css").write_text(style, encoding="ascii")
    app = SimpleNamespace(
        builder=SimpleNamespace(name="html"), outdir=tmp_path, config=SimpleNamespace(html_baseurl="")
    )
    for icons in (["sun"], ["sun", "home"], ["home"]):
        (tmp_path / "a.html").write_text(" ".join(f"<i class='fa-{i}'></i>" for i in icons), encoding="ascii")
        heard["build-finished"](app, None)
        kept = TTFont(font).getBestCmap().keys() & {0xF185, 0xF015, 0xF002}
        assert (
            kept == {{"sun": 0xF185, "home": 0xF015}[i] for i in icons} and font.stat().st_size < whole / 50
        )


@pytest.mark.parametrize("base", ["", "https://someone.github.io/a-book/"])
def test_what_a_host_needs(heard, base, tmp_path):
    app = SimpleNamespace(
        builder=SimpleNamespace(name="html"),
        outdir=tmp_path,
        config=SimpleNamespace(html_baseurl=base),
        env=SimpleNamespace(found_docs={"chapters/intro", "chapters/verdict"}),
    )
    heard["build-finished"](app, None)
    assert (tmp_path / ".nojekyll").exists() and f'href="{base or "/"}"' in (tmp_path / "404.html").read_text(
        "utf-8"
    )
    assert (tmp_path / "sitemap.xml").exists() == bool(base)
    if base:
        places = [e.text for e in ET.parse(tmp_path / "sitemap.xml").iter() if e.tag.endswith("loc")]
        assert places == [f"{base}chapters/intro.html", f"{base}chapters/verdict.html"]


def test_files_that_no_page_asks_for_and_what_notebooks_hold_twice_are_left_out(heard, tmp_path):
    kept = [
        "mathjax/tex-chtml.js",
        "mathjax/output/chtml/fonts/a.woff2",
        "mathjax/sre/mathmaps/en.json",
        "book.css",
    ]
    dropped = [
        "scripts/a.js.map",
        "locales/fr/LC_MESSAGES/a.mo",
        "mathjax/tex-svg-full.js",
        "mathjax/output/svg/f.js",
        "mathjax/sre/mathmaps/fr.json",
        "scripts/fontawesome.js",
    ]
    for name in [*kept, *dropped]:
        (tmp_path / "_static" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "_static" / name).write_text("x")
    page = '<script defer src="../_static/scripts/{}.js?digest=1"></script>'
    (tmp_path / "a.html").write_text(page.format("fontawesome") + page.format("bootstrap"))
    figure = {
        "metadata": {"figure": {"name": "Figure 1", "numbers": "x,y"}},
        "data": {"image/svg+xml": ["<svg/>"]},
    }
    notebook = {
        "cells": [{"source": "1", "outputs": [figure]}, {"source": "text"}],
        "metadata": {"widgets": {}, "kernelspec": {}},
    }
    path = tmp_path / "_sources" / "chapters" / "a.ipynb"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(notebook, indent=1))
    app = SimpleNamespace(
        builder=SimpleNamespace(name="html"), outdir=tmp_path, config=SimpleNamespace(html_baseurl="")
    )
    heard["build-finished"](app, None)
    left = {
        str(p.relative_to(tmp_path / "_static")) for p in (tmp_path / "_static").rglob("*") if p.is_file()
    }
    assert left == set(kept) and (tmp_path / "a.html").read_text("utf-8") == page.format("bootstrap")
    found = json.loads(path.read_text("utf-8"))
    assert found["metadata"] == {"kernelspec": {}} and "\n" not in path.read_text("utf-8")
    (output,) = found["cells"][0]["outputs"]
    assert output == {"metadata": {"figure": {"name": "Figure 1"}}, "data": figure["data"]}


def test_a_failed_build_or_another_builder_leaves_nothing(heard, tmp_path):
    app = SimpleNamespace(builder=SimpleNamespace(name="latex"), outdir=tmp_path)
    heard["build-finished"](app, None)
    app.builder.name = "html"
    heard["build-finished"](app, ValueError())
    assert not [*tmp_path.iterdir()]


def test_the_pdf_has_cover_contents_and_the_pages_of_its_headings(tmp_path):
    """Printed by Chromium; each heading is then looked for in the text of the page that the contents name."""
    if not site.chromium():
        pytest.skip("needs a Chromium on the path")
    long = "<p>word</p>" * 150
    page = (
        "<!doctype html><title>A book</title><main><article>"
        f'<section id="one"><h1>One &amp; only<a class="headerlink" href="#one">#</a></h1>{long}<section id="two"><h2>Inner</h2>{long}</section></section>'
        f'<section id="three"><h1>Last one</h1>{long}</section></article></main>'
    )
    (tmp_path / "html" / "chapters").mkdir(parents=True)
    source, out = tmp_path / "html" / "chapters" / "intro.html", tmp_path / "book.pdf"
    source.write_text(page)
    done = subprocess.run(
        [sys.executable, ROOT / "tools/pdf.py", source, out], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "book.pdf: " in done.stdout, done.stderr[-500:]
    pages = [" ".join(p.extract_text().split()) for p in PdfReader(out).pages]
    assert "A book" in pages[0] and pages[1].startswith("Contents")
    found = re.findall(r"(One & only|Inner|Last one) (\d+)", pages[1])
    assert [title for title, _ in found] == ["One & only", "Inner", "Last one"]
    for title, number in found:
        assert title in pages[int(number) - 1] and pages[int(number) - 1].endswith(number)
    assert int(found[0][1]) == 3 < int(found[1][1]) < int(found[2][1])
