"""Writes nan for NC4 into shipped rows in which all class means are equal (NC1 is nan there), where earlier versions counted
ties: python assets/undefined_nc4.py results/*.parquet. Hashes, and all other numbers, stay."""

import sys
from pathlib import Path

from ncutils.store import _read, write
from ncutils.training import History

for path in map(Path, sys.argv[1:]):
    histories = list(_read(path).values())
    wrong = [h.frame["nc1"].isna() & h.frame["nc4"].notna() for h in histories]
    if any(rows.any() for rows in wrong):
        frames = [h.frame.assign(nc4=h.frame["nc4"].mask(rows)) for h, rows in zip(histories, wrong)]
        write([History(h.run, frame, h.info) for h, frame in zip(histories, frames)], path)
        print(f"{path}: {sum(rows.sum() for rows in wrong)} rows of {sum(rows.any() for rows in wrong)} runs")
