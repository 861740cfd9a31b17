"""The playground in Chromium: steps a second from *Play* to the end of a training, pictures and curves drawn, both networks at once.

A step counts once, though both networks take it, each in a worker of its own: with the page itself that makes three threads, and
where other work leaves them fewer cores the figure falls. What the page says of its workers' own rate stands beside it.
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path

import psutil
from common import PAIRS, TOY, main, row

from ncutils.book import explorers
from ncutils.book.site import chromium
from ncutils.files import project_folder

STEPS = 100 if TOY else 2000
SHOWN = {
    "Adam and AdamW": "optimizer_a=Adam&optimizer_b=AdamW",
    "Muon and MuonW": "optimizer_a=Muon&lr_a=0.02&wd_a=0.1&optimizer_b=MuonW&lr_b=0.02&wd_b=0.1",
}
PLAY = """async () => {
  const play = [...document.querySelectorAll("button")].find(b => b.textContent.includes("Play")), start = performance.now()
  const told = document.querySelector(".nc-told"), rates = []
  new MutationObserver(() => rates.push(+(told.textContent.match(/(\\d+) a second/)?.[1] ?? NaN))).observe(told, {childList: true})
  play.click()
  await new Promise(done => new MutationObserver(() => play.textContent.includes("Play") && done()).observe(play, {childList: true}))
  return [(performance.now() - start) / 1000, rates.filter(Number.isFinite)]
}"""


def page() -> str:
    """A page that holds the playground as a built one does."""
    widget = explorers.playground()
    state = json.dumps({"state": {widget.model_id: {"state": widget.get_state()}}}, default=str)
    parts = {"state": state.replace("</", "<\\/"), "view": json.dumps({"model_id": widget.model_id})}
    script = "<script type='application/vnd.jupyter.widget-{}+json'>{}</script>"
    host = project_folder("static/book.js").read_text("utf-8")
    return f"<!doctype html><meta charset=utf-8><script>{host}</script><body>" + "".join(
        script.format(*part) for part in parts.items()
    )


def rows():
    from playwright.sync_api import sync_playwright

    executable = chromium()
    if not executable:
        sys.exit("it needs a Chromium on the path")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as p:
        file = Path(folder) / "page.html"
        file.write_text(page(), "utf-8")
        browser = p.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        for what, view in SHOWN.items():
            times, alone = [], []
            for _ in range(PAIRS):
                tab = browser.new_page()
                tab.goto(f"{file.as_uri()}#playground:{view}&steps={STEPS}")
                tab.locator(".nc-told", has_text="step 0").wait_for()
                took, rates = tab.evaluate(PLAY)
                times.append(took)
                alone += rates
                told = tab.locator(".nc-told").inner_text()
                assert told.startswith(f"step {STEPS}"), told
                tab.close()
            took = statistics.median(times)
            what = f"playground, {what}, {STEPS:,} steps, drawn: steps a second"
            rate = f"its workers alone: {statistics.median(alone):.0f} a second" if alone else ""
            busy = f"load average {psutil.getloadavg()[0]:.0f}, {psutil.cpu_count()} cores"
            yield row(what, STEPS / took, 300, unit=" /s", ours=took, why=f"{rate}; {busy}")
        browser.close()


if __name__ == "__main__":
    main(rows)
