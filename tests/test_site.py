"""What the built site has beside its pages."""

import importlib.metadata
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace

import pytest
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
        (None, ""),
    ],
)
def test_the_footer_and_the_address(heard, repository, base):
    config = SimpleNamespace(
        html_theme_options={"repository_url": repository, "path_to_docs": "x"}, html_baseurl=""
    )
    heard["config-inited"](None, config)
    assert f"ncutils {importlib.metadata.version('ncutils')}" in config.html_theme_options["extra_footer"]
    assert config.html_theme_options["path_to_docs"] == "x" and config.html_baseurl == base


@pytest.mark.parametrize("base", ["", "https://someone.github.io/a-book/"])
def test_what_a_host_needs(heard, base, tmp_path):
    app = SimpleNamespace(
        builder=SimpleNamespace(name="html"),
        outdir=tmp_path,
        config=SimpleNamespace(html_baseurl=base),
        env=SimpleNamespace(found_docs={"chapters/intro", "chapters/verdict"}),
    )
    heard["build-finished"](app, None)
    assert (tmp_path / ".nojekyll").exists() and f'href="{base or "/"}"' in (
        tmp_path / "404.html"
    ).read_text()
    assert (tmp_path / "sitemap.xml").exists() == bool(base)
    if base:
        places = [e.text for e in ET.parse(tmp_path / "sitemap.xml").iter() if e.tag.endswith("loc")]
        assert places == [f"{base}chapters/intro.html", f"{base}chapters/verdict.html"]


def test_a_failed_build_or_another_builder_leaves_nothing(heard, tmp_path):
    app = SimpleNamespace(builder=SimpleNamespace(name="latex"), outdir=tmp_path)
    heard["build-finished"](app, None)
    app.builder.name = "html"
    heard["build-finished"](app, ValueError())
    assert not [*tmp_path.iterdir()]
