"""What `make mutate` found, as the book shows it: results/mutants.csv counts, results/survivors.csv says why one may live.

Call: python tools/mutants.py _build/mutate results. A module counts once all its mutants were tried. A survivor's `reason`
is written by hand; one that is there already stays with its change, whatever the number of the mutant has become.
"""

import csv
import json
import subprocess
import sys
from pathlib import Path

NOTICED = {1, 3, 24, 36, 152, 255, -24}  # exit codes: a test failed, or the mutant took too long


def change(mutant: str, folder: Path) -> tuple[str, str]:
    """The line as it is and as it was made."""
    show = [sys.executable, "-m", "mutmut", "show", mutant]
    diff = subprocess.run(
        show, cwd=folder, capture_output=True, text=True, check=True, encoding="utf-8"
    ).stdout
    lines = [line for line in diff.splitlines() if not line.startswith(("+++", "---"))]
    was, became = (" ".join(line[1:].strip() for line in lines if line.startswith(sign)) for sign in "-+")
    return was, became


def rows(path: Path) -> list[dict]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [*csv.DictReader(file)]


def main(folder: Path, results: Path) -> None:
    counts, survivors = results / "mutants.csv", results / "survivors.csv"
    reasons = {(row["module"], row["was"], row["became"]): row["reason"] for row in rows(survivors)}
    tried = {}
    for meta in (folder / "mutants" / "ncutils").rglob("*.meta"):
        codes = json.loads(meta.read_text(encoding="utf-8"))["exit_code_by_key"]
        if codes and None not in codes.values():
            tried[meta.relative_to(folder / "mutants").as_posix().removesuffix(".meta")] = codes
    counted = [row for row in rows(counts) if row["module"] not in tried]
    found = [row for row in rows(survivors) if row["module"] not in tried]
    for module, codes in tried.items():
        lived = [mutant for mutant, code in codes.items() if code not in NOTICED]
        counted.append({"module": module, "mutants": len(codes), "noticed": len(codes) - len(lived)})
        for was, became in (change(mutant, folder) for mutant in lived):
            reason = reasons.get((module, was, became), "")
            found.append({"module": module, "was": was, "became": became, "reason": reason})
    for path, columns, lines in (
        (counts, ("module", "mutants", "noticed"), counted),
        (survivors, ("module", "was", "became", "reason"), found),
    ):
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(sorted(lines, key=lambda line: line["module"]))
    for row in sorted(counted, key=lambda row: row["module"]):
        print(f"{row['module']}: {row['noticed']} of {row['mutants']} noticed")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
