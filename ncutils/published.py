"""The paper's tables and protocol, as data.

Values are the reported ones: NC0 = ||W^T 1||_2, NC2 and NC3 bare Frobenius norms (`metrics`, "reported").
"""

OPTIMIZERS = ("SGD", "SGDW", "Adam", "AdamW", "Signum", "SignumW")

# Table 1: ResNet9, FashionMNIST, 200 epochs, batch 128, momentum 0.9, wd 5e-4; lr 0.0679 for SGD and SGDW,
# not stated for the other four. Change: percentage relative to initialisation, None where the paper has only a bound.
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
