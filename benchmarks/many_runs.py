"""Many runs at once, and how time grows with the work.

16 digits runs as a chapter trains them, side by side in worker processes that have already started, against one after
another with all threads. Growth is the exponent of the time in the number of samples, epochs and runs: 1 is linear.
"""

import tempfile

import torch
from common import TOY, main, paired, row, slope

from ncutils import data
from ncutils.metrics import nc_metrics
from ncutils.store import Store
from ncutils.sweeps import train_all
from ncutils.training import Run, train

RUNS, EPOCHS, WIDTH = (2, 1, 2) if TOY else (16, 6, 8)


def digits(n, **fields):
    return [
        Run(**{"width": WIDTH, "epochs": EPOCHS, "measure": "ends", "seed": i} | fields) for i in range(n)
    ]


def side_by_side(runs, workers=None):
    with tempfile.TemporaryDirectory() as folder:
        train_all(runs, Store(folder, folder), "cpu", workers, progress=False)


def one_after_another(runs):
    for run in runs:
        train(run, "cpu", torch.get_num_threads(), progress=False)


def rows():
    runs = digits(RUNS, measure="log")
    ours, theirs, ratio = paired(lambda: side_by_side(runs), lambda: one_after_another(runs))
    yield row(f"{RUNS} digits runs, width {WIDTH}, {EPOCHS} epochs", ratio, 1.6, unit=" x",
              against=f"one after another, {torch.get_num_threads()} threads", usual=theirs, ours=ours)  # fmt: skip
    sizes = [1, 2, 4] if TOY else [1, 2, 4, 8]
    few = 15_000  # 12 ms of metrics; 1 ms of it has nothing to do with the samples
    features, labels = torch.randn(few * max(sizes), 512), torch.arange(few * max(sizes)) % 10
    weight = torch.randn(10, 512)
    torch.set_num_threads(
        1
    )  # as a narrow network trains; threads start to pay at one size and not at another
    data.load("separable", n_train=2000)
    growth = {
        "samples, of the metrics": lambda n: nc_metrics(features[: few * n], labels[: few * n], weight),
        "samples, of training": lambda n: one_after_another(
            digits(1, dataset="separable", n_train=250 * n, batch_size=125, epochs=5 * EPOCHS)
        ),
        "epochs": lambda n: one_after_another(digits(1, epochs=5 * n)),
        "runs": lambda n: side_by_side(digits(n), workers=1),
    }
    for name, call in growth.items():
        call(1)
        found = slope(call, sizes)
        yield row(f"exponent of time in the number of {name}", found, against="linear growth: 1") | {
            "goal": "0.9 to 1.1",
            "reached": "yes" if 0.9 <= found <= 1.1 else "no",
        }


if __name__ == "__main__":
    main(rows)
