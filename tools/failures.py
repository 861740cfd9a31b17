"""Names each executed chapter of a folder that ended in an error, with its cell and the error; exits with 1 if there is one."""

import sys
from pathlib import Path

import nbformat

failed = 0
for path in sorted(Path(sys.argv[1]).glob("*.ipynb")):
    for number, cell in enumerate(nbformat.read(path, as_version=4).cells, start=1):
        errors = [output for output in cell.get("outputs", []) if output.output_type == "error"]
        if errors:
            failed += 1
            print(
                f"chapter {path.stem} failed in cell {number}: {errors[0].ename}: {errors[0].evalue}",
                file=sys.stderr,
            )
sys.exit(failed > 0)
