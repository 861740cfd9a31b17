"""The book as one PDF: `pdf.py PAGE.html OUT.pdf` prints Sphinx's single page with the system's Chromium.

It is printed twice: the first time tells on which page each heading falls, the second has these numbers in its contents.
"""

import importlib.metadata
import shutil
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright
from pypdf import PdfReader

from ncutils.book.site import chromium

FOOTER = '<div style="font-size: 8px; width: 100%; text-align: center"><span class="pageNumber"></span></div>'
STYLE = """
@page { size: A4; margin: 18mm 16mm 20mm }
#jb-print-docs-body, .bd-header, .bd-sidebar, .bd-header-article, .bd-footer, .bd-footer-article, .headerlink, #pst-skip-link, .pst-scrollable-table-container > button { display: none !important }
.cover { break-after: page; padding-top: 30vh; text-align: center }
.cover h1 { font-size: 2rem }
.contents { break-after: page }
.contents p { display: flex; margin: 0.15rem 0; gap: 0.5rem }
.contents p.inner { margin-left: 1.5rem; font-size: 0.9rem }
.contents a { flex: 1; color: inherit; text-decoration: none }
section > h1, span[id^="document-"] + section { break-before: page }
h1, h2, h3, h4 { break-after: avoid; break-inside: avoid }
table.dataframe { white-space: normal !important; font-size: 60% !important }
.cell_output, .cell_output .output { overflow: visible !important }
"""
# cover and contents: [id, title, level, page or ""] each
FRONT = """([entries, about]) => {
  document.querySelector('.front')?.remove()
  const front = document.createElement('div'), escaped = document.createElement('p')
  const text = words => (escaped.textContent = words, escaped.innerHTML)
  front.className = 'front'
  front.innerHTML = `<div class="cover"><h1>${text(document.title)}</h1><p>${text(about)}</p></div><div class="contents"><h2>Contents</h2>` +
    entries.map(([id, title, level, page]) => `<p class="${level > 1 ? 'inner' : ''}"><a href="#${id}">${text(title)}</a><span>${page}</span></p>`).join('') + '</div>'
  document.querySelector('main article, main').prepend(front)
}"""
HEADINGS = """() => [...document.querySelectorAll('main section > :is(h1, h2)')].map(h => {
  const copy = h.cloneNode(true)
  copy.querySelectorAll('.headerlink').forEach(link => link.remove())
  return [h.parentElement.id, copy.textContent.trim(), Number(h.tagName[1])]
})"""


def numbered(headings, pdf: Path):
    """Headings with the page, from 1, to which the contents' links to them lead."""
    reader = PdfReader(pdf)
    pages = {
        name.lstrip("/"): reader.get_destination_page_number(to) + 1
        for name, to in reader.named_destinations.items()
    }
    return [(ident, title, level, pages.get(ident, "")) for ident, title, level in headings]


def main(source: Path, out: Path) -> None:
    executable = chromium()
    if not executable:
        sys.exit("make pdf needs a Chromium on the path")
    about = f"ncutils {importlib.metadata.version('ncutils')}, {time.strftime('%Y-%m-%d')}"
    with sync_playwright() as p, tempfile.TemporaryDirectory() as folder:
        browser = p.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        page = browser.new_page(color_scheme="light")
        # its links are those of a page at the site's root, where it is not
        page.goto(shutil.copy(source, source.parent.parent / "book.html").resolve().as_uri())
        page.wait_for_function("window.MathJax?.startup?.promise?.then(() => true) ?? true", timeout=600_000)
        page.add_style_tag(content=STYLE)
        headings = page.evaluate(HEADINGS)
        entries = [(*heading, "") for heading in headings]
        for target in (Path(folder) / "first.pdf", out):
            page.evaluate(FRONT, [entries, about])
            page.pdf(path=target, format="A4", print_background=True, display_header_footer=True, header_template="<span></span>", footer_template=FOOTER, outline=True, tagged=True)  # fmt: skip
            entries = numbered(headings, target)
        browser.close()
    lost = [title for _, title, _, number in entries if not number]
    if lost:
        sys.exit(f"{out}: no page was found for {', '.join(lost)}")
    print(f"{out}: {len(PdfReader(out).pages)} pages, {out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
