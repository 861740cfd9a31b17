"""A Sphinx extension: what the built site has beside its pages, and who may build it."""

from __future__ import annotations

import html
import importlib.metadata
import json
import re
import shutil
from pathlib import Path

from sphinx.errors import ExtensionError

from ncutils.book.manifest import present_commit

NOT_FOUND = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>No such page</title><style>:root {{ color-scheme: light dark }} body {{ font: 1.1rem/1.5 sans-serif; margin: 4rem auto; max-width: 32rem; padding: 1rem }}</style>
<h1>There is no such page</h1><p>It may have moved. <a href="{home}">The book's first page</a> leads to all of them.</p></html>
"""

# what jupyter-book has where no repository is named
_NOT_OURS = "https://github.com/executablebooks/jupyter-book"
# Bundles of MathJax for other pages than these
_BUNDLES = "mml-", "tex-svg", "tex-mml", "tex-chtml-", "node-", "latest", "core", "startup", "loader"
# Of the site's static files those that no page asks for; the first are for debuggers
UNUSED = (
    "**/*.map",
    "locales/**/*",
    *(f"mathjax/{name}*.js" for name in _BUNDLES),
    "mathjax/output/svg/**/*",
    "mathjax/input/mml/**/*",
    "mathjax/sre/mathmaps/[!ben]*.json",  # speech in other languages than English, "base" and "nemeth"
    "scripts/fontawesome.js*",
)
_NO_LIST = '<div role="list" class'  # docutils' of citations, whose children are no items of a list
_ICONS = re.compile(r"<script[^>]*scripts/fontawesome\.js[^>]*></script>")


def chromium() -> str | None:
    """The system's Chromium, or Chrome, if there is one on the path."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def setup(app) -> dict:
    """Refuses the project's own folder, where chapters have no outputs; sets the footer; writes what a host needs, and nothing
    that no reader asks for."""
    if (Path(app.srcdir) / "pyproject.toml").exists():
        raise ExtensionError(
            "chapters are kept without outputs: `make book` runs them and builds the book in _build/"
        )
    app.connect("config-inited", _about)
    app.connect("builder-inited", _by_builder)
    app.connect("build-finished", _beside_the_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _about(app, config) -> None:
    """Version and commit, which tell a reader what was built; the site's address, html_baseurl, or the one that GitHub Pages gives
    a repository."""
    try:
        commit = f", commit {present_commit()}"
    except ValueError:  # no git
        commit = ""
    options = dict(config.html_theme_options)
    options["extra_footer"] = f"<p>ncutils {html.escape(importlib.metadata.version('ncutils'))}{commit}</p>"
    config.html_theme_options = options
    repository = options.get("repository_url") or ""
    github = re.fullmatch(r"https://github\.com/([\w.-]+)/([\w.-]+?)/?", repository)
    if github and repository != _NOT_OURS:
        config.html_baseurl = config.html_baseurl or f"https://{github[1].lower()}.github.io/{github[2]}/"
    config.ogp_site_url = config.html_baseurl


def _by_builder(app) -> None:
    """LaTeX is refused, since it would leave the figures out. Once one extension names how its nodes are drawn in singlehtml, as
    sphinx-exercise does, Sphinx passes over what others have said of html."""
    if app.builder.name == "latex":
        raise ExtensionError("the figures are drawn for a browser: `make pdf` prints the book with them")
    handlers = app.registry.translation_handlers
    if "singlehtml" in handlers:
        handlers["singlehtml"] = handlers.get("html", {}) | handlers["singlehtml"]


def _beside_the_pages(app, error) -> None:
    """No Jekyll; a page for a wrong address, and a map, whose addresses need that of the site (html_baseurl)."""
    if error or app.builder.name != "html":
        return
    out, base = Path(app.outdir), app.config.html_baseurl
    _slim(out)
    (out / ".nojekyll").touch()
    (out / "404.html").write_text(NOT_FOUND.format(home=html.escape(base or "/")), "utf-8")
    if base:
        pages = "".join(
            f"<url><loc>{html.escape(base + page)}.html</loc></url>" for page in sorted(app.env.found_docs)
        )
        (out / "sitemap.xml").write_text(
            f'<?xml version="1.0" encoding="utf-8"?>\n<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">{pages}</urlset>\n',
            "utf-8",
        )


def _slim(out: Path) -> None:
    """Removes static files that no page needs, the theme's second set of icons (1.5 MB a page; its styles have a font of them)
    among them, and what docutils wrongly calls a list; takes from the notebooks to download what their pages hold beside
    pictures."""
    _cut_the_font_of_icons(out)
    for path in out.rglob("*.html"):
        page = path.read_text("utf-8")
        mended = _ICONS.sub("", page).replace(_NO_LIST, "<div class")
        if mended != page:
            path.write_text(mended, "utf-8")
    for pattern in UNUSED:
        for file in (out / "_static").glob(pattern):
            if file.is_file():
                file.unlink()
    for path in (out / "_sources").rglob("*.ipynb"):
        notebook = json.loads(path.read_text("utf-8"))
        notebook["metadata"].pop("widgets", None)
        for output in (o for cell in notebook["cells"] for o in cell.get("outputs", [])):
            output.get("metadata", {}).get("figure", {}).pop("numbers", None)
        path.write_text(json.dumps(notebook, ensure_ascii=False), "utf-8")


def _cut_the_font_of_icons(out: Path) -> None:
    """The theme's icons are fonts of hundreds (156 kB a page); of these stay what a page, a script or a style names."""
    import pydata_sphinx_theme
    from fontTools.subset import Subsetter
    from fontTools.ttLib import TTFont

    theme = Path(pydata_sphinx_theme.__file__).parent / "theme" / "pydata_sphinx_theme" / "static"
    styles = {path: path.read_text("utf-8") for path in out.rglob("*.css")}
    rules = re.findall(r'((?:\.fa-[\w-]+:before,?)+)\{content:"\\(\w+)"', "".join(styles.values()))
    codes = {name: code for names, code in rules for name in re.findall(r"fa-[\w-]+", names)}
    text = "".join(path.read_text("utf-8") for path in (*out.rglob("*.html"), *out.glob("_static/**/*.js")))
    named = [codes[name] for name in set(re.findall(r"fa-[\w-]+", text)) & set(codes)]
    for path, style in styles.items():
        used = re.sub(r'(\.fa-[\w-]+:before,?)+\{content:"[^"]+"', "", style)
        named += re.findall(r'"\\([ef]\w{3})"', used) + [
            f"{ord(c):x}" for c in re.findall("[\ue000-\uf8ff]", used)
        ]
        lighter = re.sub(r'url\([^)]*/fa-[^)]*\.woff2\) format\("woff2"\),', "", style)
        if lighter != style:
            path.write_text(lighter, "utf-8")
    for path in out.glob("_static/vendor/fontawesome/webfonts/*.ttf"):
        # the theme's own: Sphinx may have left the one that an earlier build has cut
        font, subsetter = TTFont(theme / path.relative_to(out / "_static")), Subsetter()
        subsetter.populate(unicodes=[int(code, 16) for code in named])
        subsetter.subset(font)
        font.save(path)
        path.with_suffix(".woff2").unlink(missing_ok=True)
