"""An explorer in a built page: no kernel, no network, a real browser."""

import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = """
from ncutils import explorers

def draw(lr, K):
    figure, axis = explorers.canvas(xlabel="step")
    axis.plot([0, 1], [0, lr * K])
    axis.set_title(f"frame lr={lr} K={K}")
    return figure

explorers.explorer(draw, lr=[0.01, 0.1, 1.0], K=[3, 10])
"""


def run(*command, folder):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
    return done


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A book of one page with an explorer, made with the project's configuration and widget manager."""
    if not shutil.which("npm"):
        pytest.skip("needs npm, which brings the widget manager into the book")
    folder = tmp_path_factory.mktemp("book")
    run("make", "_build/html-manager/embed.js", folder=ROOT)
    (folder / "_static").mkdir()
    shutil.copy(ROOT / "_build/html-manager/embed.js", folder / "_static")
    for name in ("_config.yml", "references.bib"):
        shutil.copy(ROOT / name, folder)
    (folder / "_toc.yml").write_text("format: jb-book\nroot: index\n")
    cells = [nbformat.v4.new_markdown_cell("# An explorer"), nbformat.v4.new_code_cell(NOTEBOOK)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "in.ipynb")
    tool = Path(sys.executable).parent
    run(str(tool / "papermill"), "in.ipynb", "index.ipynb", folder=folder)
    run(str(tool / "jupyter-book"), "build", "-W", "--keep-going", ".", folder=folder)
    return folder / "_build/html/index.html"


def test_sliders_lead_to_their_frame_without_kernel_and_network(page):
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not browser:
        pytest.skip("needs a Chromium on the path")
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        tab = chromium.new_page()
        requests = []
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(page.as_uri())
        handles, frame = tab.locator(".widget-slider .noUi-handle"), tab.locator(".jupyter-widgets svg >> visible=true")

        def shown(rate, classes):
            frame.get_by_text(f"frame lr={rate} K={classes}", exact=True).wait_for(timeout=10_000)
            assert frame.count() == 1
            assert [r.text_content() for r in tab.locator(".widget-readout").all()] == [f"{rate:g}", f"{classes:g}"]

        def press(slider, key):
            handles.nth(slider).focus()
            tab.keyboard.press(key)

        shown(0.1, 10)
        for slider, key, rate, classes in (
            (0, "ArrowRight", 1.0, 10),
            (1, "ArrowLeft", 1.0, 3),
            (0, "ArrowLeft", 0.1, 3),
            (0, "ArrowLeft", 0.01, 3),
            (1, "ArrowRight", 0.01, 10),
        ):
            press(slider, key)
            shown(rate, classes)
        assert not [url for url in requests if not url.startswith(("file:", "data:"))]
        chromium.close()
