"""Draws the README's picture from the runs that ship: `make assets/adam_adamw.png`."""

from pathlib import Path

import matplotlib.pyplot as plt

from ncutils import figures
from ncutils.store import Store

shipped = [h for h in Store().histories() if h.run.dataset == "FashionMNIST" and h.run.lr == 0.005]
groups = {
    name: [h for h in shipped if h.run.optimizer == name and h.run.coupled_wd + h.run.decoupled_wd == 0.025]
    for name in ("Adam", "AdamW")
}
figures.set_style()
figures.training_curves(groups, "laptop", columns=["nc0", "nc3"])
plt.savefig(Path(__file__).with_name("adam_adamw.png"), dpi=160)
