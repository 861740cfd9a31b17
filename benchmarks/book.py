"""`make book`: every chapter from stored results, then with nothing changed, then after new prose in one chapter."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import main, row, seconds

from ncutils.files import project_folder

ROOT, PROFILE = project_folder("."), "quick"
CHAPTER = "chapters/06_theorem_3_1.ipynb"


def rows():
    with tempfile.TemporaryDirectory() as site:
        command = [
            "make",
            "book",
            f"SITE={site}",
            f"PROFILE={PROFILE}",
            f"BIN={Path(sys.executable).parent}",
            "ENV=",
        ]
        environment = os.environ | {"NCUTILS_RUNS": f"{site}/runs"}

        def book():
            subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)

        whole = seconds(book)
        trained = len(list(Path(site).glob("runs/*.parquet")))
        nothing = seconds(book)
        os.utime(ROOT / CHAPTER)  # as saved with another sentence: the code is the same
        prose = seconds(book)
    limits = {"at_most": True, "unit": " s"}
    what = f"make book, {PROFILE}, all chapters from stored results"
    yield row(what, whole, 150, why=f"{trained} runs trained" if trained else "", **limits)
    yield row("make book, nothing changed", nothing, 20, **limits)
    yield row("make book, new prose in one chapter", prose, 20, **limits)


if __name__ == "__main__":
    main(rows)
