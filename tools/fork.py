"""Chapters that run in Colab: `fork.py https://github.com/OWNER/NAME [CHAPTER ...]` gives each a first cell that fetches that repository
where its project is not at hand. A second call sets another address."""

import sys
from pathlib import Path

import nbformat

CELL = """# Where the notebook comes without its project, as in Colab, this fetches it; elsewhere it does nothing.
import importlib.util
import os
import subprocess
import sys

if importlib.util.find_spec("ncutils") is None:
    subprocess.run(["git", "clone", "--depth", "1", "{address}", "project"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--editable", "project[book]"], check=True)
    os.chdir("project")
    sys.path.insert(0, os.getcwd())  # a kernel that runs already does not see the installation"""


def give_address(path: Path, address: str) -> None:
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if "fetches-project" not in cell.metadata.get("tags", [])]
    first = next(i for i, cell in enumerate(cells) if cell.cell_type == "code")
    tags = {"tags": ["fetches-project", "remove-cell"]}
    cells.insert(
        first, nbformat.v4.new_code_cell(CELL.format(address=address), metadata=tags, id="fetches-project")
    )
    notebook.cells = cells
    nbformat.write(notebook, path)


if __name__ == "__main__":
    address, *chapters = sys.argv[1:]
    if not address.startswith("https://"):
        sys.exit(
            f"REPOSITORY = {address!r} is not allowed: it must be an address such as https://github.com/OWNER/NAME"
        )
    for path in map(Path, chapters):
        give_address(path, address)
    print(f"{len(chapters)} chapters fetch {address} where they come alone; commit them")
