"""Neural collapse under different optimizers: metrics (NC0 to NC4) and `measure`, which takes them of any model; theory (closed
forms), training (Run -> History), a store of runs, sweeps and analysis; `ncutils.book` draws the book that stands on them.

An import only ever points from later to earlier: files, machine, metrics, measuring, theory, data, models, optimizers, census,
runs, step, training, store, sweeps, analysis; then book.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ncutils.measuring import Measurement, Tracker, measure
    from ncutils.metrics import nc_metrics
    from ncutils.store import Store
    from ncutils.training import Run, train

__all__ = ["Measurement", "Run", "Store", "Tracker", "measure", "nc_metrics", "train"]


def __getattr__(name: str):
    """The public names, imported when they are asked for: torch takes a second."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in ("Measurement", "Tracker", "measure"):
        from ncutils import measuring

        return getattr(measuring, name)
    from ncutils import metrics, store, training

    return getattr({"nc_metrics": metrics, "Store": store}.get(name, training), name)
