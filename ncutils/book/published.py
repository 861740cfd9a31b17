"""The paper's tables and protocol, as data, and what follows from Table 1 without training.

Values are the reported ones: NC0 = ||W^T 1||_2, NC2 and NC3 bare Frobenius norms (`metrics`, "reported").
"""

import numpy as np
import pandas as pd

from ncutils.optimizers import OPTIMIZERS
from ncutils.runs import Run, lr_per_step
from ncutils.theory import nc0_law

# Table 1: ResNet9, FashionMNIST, 200 epochs, batch 128. Its rates, momentum and decay are not printed: lr 0.0679 and wd 5e-4 are the
# pair of the grid that gives SGDW's change of NC0; what lr the other four have stays open. Change: percentage relative to
# initialisation, None where the paper has only a bound.
TABLE1 = {
    "SGD": {"nc0": 2.14e-4, "nc1": 0.05, "nc2": 0.29, "nc3": 0.35},
    "SGDW": {"nc0": 0.55, "nc1": 0.26, "nc2": 0.46, "nc3": 0.80},
    "Adam": {"nc0": 0.34, "nc1": 0.04, "nc2": 0.29, "nc3": 0.29},
    "AdamW": {"nc0": 5.33, "nc1": 0.20, "nc2": 0.54, "nc3": 0.78},
    "Signum": {"nc0": 0.78, "nc1": 0.13, "nc2": 0.50, "nc3": 0.58},
    "SignumW": {"nc0": 3185.69, "nc1": 0.30, "nc2": 1.15, "nc3": 1.40},
}
TABLE1_CHANGE = {
    "SGD": {"nc0": None, "nc1": -99.3, "nc2": -63.0, "nc3": -75.1},
    "SGDW": {"nc0": -68.9, "nc1": -96.3, "nc2": -42.4, "nc3": -43.5},
    "Adam": {"nc0": -80.6, "nc1": -99.5, "nc2": -63.9, "nc3": -79.5},
    "AdamW": {"nc0": None, "nc1": -97.2, "nc2": -32.4, "nc3": -45.2},
    "Signum": {"nc0": -55.3, "nc1": -98.1, "nc2": -36.8, "nc3": -59.0},
    "SignumW": {"nc0": None, "nc1": -95.7, "nc2": 44.2, "nc3": -1.2},
}
TABLE1_SETTING = {
    "arch": "resnet9",
    "width": 64,
    "dataset": "FashionMNIST",
    "n_train": 60_000,
    "epochs": 200,
    "batch_size": 128,
    "momentum": 0.9,
    "wd": 5e-4,
    "lr_sgd": 0.0679,
}

# The grid of appendix D.1: 3 learning rates x 6 momenta x 6 weight decays for each optimizer.
_SGD_LR, _ADAPTIVE_LR = (0.001, 0.01, 0.0679), (0.001, 0.005, 0.01)
_SMALL_WD, _LARGE_WD = (0, 5e-5, 5e-4, 5e-3, 0.05, 0.5), (0, 5e-4, 0.05, 0.5, 5, 10)
GRID_LR = {name: _SGD_LR if name in ("SGD", "SGDW") else _ADAPTIVE_LR for name in OPTIMIZERS}
GRID_WD = {name: _LARGE_WD if name in ("AdamW", "SignumW") else _SMALL_WD for name in OPTIMIZERS}
GRID_MOMENTUM = (0, 0.5, 0.7, 0.9, 0.95, 0.98)

# Figure 14: momentum and weight decay of the six runs of SGD that are trained for up to 2,000 epochs, at a learning rate of 0.001.
# The text says that they are of Figure 4, whose grid has neither momentum 0.97 nor weight decay 0.0025.
FIGURE14 = ((0, 0), (0.97, 5e-5), (0, 5e-4), (0.9, 5e-4), (0.9, 0), (0.95, 0.0025))

# Table 2: of each optimizer the run with the smallest NC3 and over 99 % training accuracy. The paper's text has these four.
TABLE2 = {
    "SGD": {"nc0": 1.53e-5, "nc1": 0.02, "nc2": 0.19, "nc3": 0.13},
    "SGDW": {"nc0": 1.54e-4, "nc1": 0.01, "nc2": 0.15, "nc3": 0.10},
    "Adam": {"nc0": 0.12, "nc1": 0.04, "nc2": 0.23, "nc3": 0.17},
    "AdamW": {"nc0": 8.09, "nc1": 0.01, "nc2": 0.14, "nc3": 0.49},
}

# Table 4: those runs' learning rate, momentum (beta1), weight decay
TABLE4 = {
    "SGD": (0.01, 0.9, 0.05),
    "SGDW": (0.0679, 0.5, 0.05),
    "Adam": (0.005, 0.98, 0.05),
    "AdamW": (0.005, 0.95, 5),
    "Signum": (0.001, 0.9, 0.05),
    "SignumW": (0.001, 0.98, 10),
}

# Table 5: NC3 regressed on log10 NC0, ResNet9 on FashionMNIST; the paper's confidence level is 95 %.
TABLE5 = pd.DataFrame.from_dict(
    {
        "LR=0.001": (170, 0.1903, 0.008, 24.262, 0.0, 0.175, 0.206, 0.778, 0.777, 588.6),
        "LR=0.005": (74, 0.2017, 0.012, 16.252, 0.0, 0.177, 0.226, 0.786, 0.783, 264.1),
        "LR=0.01": (114, 0.1439, 0.007, 19.892, 0.0, 0.130, 0.158, 0.779, 0.777, 395.7),
        "LR=0.0679": (41, 0.1771, 0.012, 14.367, 0.0, 0.152, 0.202, 0.841, 0.837, 206.4),
        "all": (399, 0.1582, 0.005, 32.760, 0.0, 0.149, 0.168, 0.730, 0.729, 1073.0),
    },
    orient="index",
    columns=["n", "beta", "se", "t", "p", "ci_low", "ci_high", "r2", "r2_adj", "f"],
)


def table1_rates(lr: float = TABLE1_SETTING["lr_sgd"]) -> np.ndarray:
    """Learning rate of each of the 93,800 steps of Table 1's setting, the first one being `lr`."""
    setting = TABLE1_SETTING
    run = Run(lr=lr, epochs=setting["epochs"], batch_size=setting["batch_size"])
    return lr_per_step(run, setting["n_train"])


def initial_values(exact: bool = True) -> pd.DataFrame:
    """Between which values each metric lay before training, by Table 1: `at least` and `at most`, and `from` and `by` which
    optimizer's row.

    An end v and a change c, rounded, put the start between (v - 0.005) / (1 + c + 0.0005) and (v + 0.005) / (1 + c - 0.0005). All
    optimizers start from one network, so that the bounds of all rows hold. If `exact`, SGDW's change of NC0 is that of
    `theory.nc0_law`.
    """
    ends, change = pd.DataFrame(TABLE1), pd.DataFrame(TABLE1_CHANGE, dtype=float) / 100
    least, most = (ends - 0.005) / (1 + change + 0.0005), (ends + 0.005) / (1 + change - 0.0005)
    if exact:
        kept = nc0_law(table1_rates(), TABLE1_SETTING["wd"], coupled=False)[-1]
        least.loc["nc0", "SGDW"] = (ends.loc["nc0", "SGDW"] - 0.005) / kept
        most.loc["nc0", "SGDW"] = (ends.loc["nc0", "SGDW"] + 0.005) / kept
    found = {"at least": least.max(axis=1), "from": least.idxmax(axis=1)}
    return pd.DataFrame(found | {"at most": most.min(axis=1), "by": most.idxmin(axis=1)})
