"""All benchmarks, each in a process of its own: prints one table and keeps it in results/bench.json.

The page "What a run costs" shows that file. A script beside this one that ends in `main(rows)` takes part. `run.py NAME ...`
measures the named scripts alone and keeps the other rows as they are.
"""

import contextlib
import datetime
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import PAIRS, TOY, machine, table

from ncutils.files import project_folder

if __name__ == "__main__":
    here, failed = Path(__file__).parent, []
    known = project_folder("results/bench.json")
    before = json.loads(known.read_text("utf-8")) if sys.argv[1:] else {"rows": []}
    found = before["rows"]
    for script in sorted(here.glob("*.py")):
        asked = not sys.argv[1:] or script.name in sys.argv
        if not asked or "\n    main(rows)\n" not in script.read_text("utf-8"):
            continue
        print(script.name, file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "rows.json"
            if subprocess.run([sys.executable, script, out], check=False).returncode:
                failed.append(script.name)
            else:
                rows = [row | {"script": script.name} for row in json.loads(out.read_text("utf-8"))]
                found = [row for row in found if row["script"] != script.name] + rows
    print(f"{machine()}; medians of {PAIRS} pairs")
    print(table(found))
    git, commit = ["git", "-C", str(here), "describe", "--always", "--dirty"], ""
    with contextlib.suppress(OSError):  # git is missing
        commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    if sys.argv[1:]:  # the other rows are of the commit that they were
        commit = f"{before['commit']}, of {' and '.join(sys.argv[1:])} {commit}"
    kept = {
        "machine": machine(),
        "pairs": PAIRS,
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "rows": found,
    }
    if failed:
        sys.exit(f"failed, so that nothing was kept: {', '.join(failed)}")
    found.sort(key=lambda row: row["script"])  # stable: a script's rows stay in their order
    if not TOY:
        known.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
