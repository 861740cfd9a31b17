"""What `make mutate` found, as the book shows it: results/mutants.csv counts, results/survivors.csv says why one may live.

Call: python tools/mutants.py _build/mutate results. A module counts as far as its mutants were tried in the order in which
they are drawn, from LEAST on or whole: a random sample, whoever chose what to try. With `--draw ncutils/metrics.py 200` in
place of the results it names the next of them that were not tried, for `make mutate MUTANTS=...`. A survivor's `reason` is
written by hand; one that is there already stays with its change, whatever the number of the mutant has become.
"""

import argparse
import csv
import json
import random
import subprocess
import sys
from pathlib import Path

NOTICED = {1, 3, 24, 36, 152, 255, -24}  # exit codes: a test failed, or the mutant took too long
LEAST = 100  # of a sample: fewer say too little


def exit_codes(folder: Path) -> dict[str, dict[str, int | None]]:
    """By module, the exit code of each mutant, None where it was not tried."""
    metas = sorted((folder / "mutants" / "ncutils").rglob("*.meta"))
    codes = [json.loads(meta.read_text(encoding="utf-8"))["exit_code_by_key"] for meta in metas]
    names = [meta.relative_to(folder / "mutants").as_posix().removesuffix(".meta") for meta in metas]
    return dict(zip(names, codes))


def drawn(codes: dict[str, int | None]) -> list[str]:
    """The mutants of a module in an order drawn once and for all."""
    return random.Random(0).sample(sorted(codes), len(codes))


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
    tried, of_all = {}, exit_codes(folder)
    for module, codes in of_all.items():
        order = drawn(codes)
        until = next((i for i, mutant in enumerate(order) if codes[mutant] is None), len(order))
        sample = set(order[:until])
        if sample and len(sample) >= min(LEAST, len(codes)):
            tried[module] = {mutant: codes[mutant] for mutant in codes if mutant in sample}
    counted = [row for row in rows(counts) if row["module"] not in tried]
    found = [row for row in rows(survivors) if row["module"] not in tried]
    for module, codes in tried.items():
        lived = [mutant for mutant, code in codes.items() if code not in NOTICED]
        numbers = {"mutants": len(of_all[module]), "tried": len(codes), "noticed": len(codes) - len(lived)}
        counted.append({"module": module} | numbers)
        for was, became in (change(mutant, folder) for mutant in lived):
            reason = reasons.get((module, was, became), "")
            found.append({"module": module, "was": was, "became": became, "reason": reason})
    for path, columns, lines in (
        (counts, ("module", "mutants", "tried", "noticed"), counted),
        (survivors, ("module", "was", "became", "reason"), found),
    ):
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(sorted(lines, key=lambda line: line["module"]))
    for row in sorted(counted, key=lambda row: row["module"]):
        print(f"{row['module']}: {row['noticed']} of {row['tried']} noticed, of {row['mutants']}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("results", type=Path, nargs="?", default=Path("results"))
    parser.add_argument("--draw", nargs=2, metavar=("MODULE", "NUMBER"))
    options = parser.parse_args()
    if options.draw:
        module, number = options.draw
        codes = exit_codes(options.folder)[module]
        left = [mutant for mutant in drawn(codes) if codes[mutant] is None]
        print(*left[: int(number)], sep="\n")
    else:
        main(options.folder, options.results)
