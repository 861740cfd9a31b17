"""Draws the README's picture, the one beside links to the book and the first page's moving one, from the runs that ship:
`python tools/picture.py`.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from ncutils.book import figures, pages, style
from ncutils.book.published import TABLE1_SETTING
from ncutils.store import Store


def adam_and_adamw():
    """NC0 and NC3 by the paper's own protocol, at its width (chapter 03)."""
    groups = pages.protocol(width=64, wd=TABLE1_SETTING["wd"])["width 64"]
    two = {name: groups[name] for name in ("Adam", "AdamW")}
    return figures.training_curves(two, "protocol", columns=["nc0", "nc3"])


def social(folder: Path) -> None:
    """What sites show beside a link: 1,200 by 630 points."""
    figure = adam_and_adamw()
    figure.set_size_inches(8, 4.2)
    figure.get_layout_engine().set(rect=(0.02, 0.02, 0.96, 0.76))
    figure.legends.clear()
    for axis in figure.axes:
        style.name_lines(axis)
    figure.text(0.5, 0.91, "Optimizer choice and neural collapse", ha="center", fontsize=19)
    figure.text(0.5, 0.83, "an executable reproduction: theorems, trained networks, explorers", ha="center")
    figure.savefig(folder / "social.png", dpi=150, bbox_inches=figure.bbox_inches)


def curves(folder: Path) -> None:
    """The README's."""
    figure = adam_and_adamw()
    below = {"ha": "center", "va": "top", "fontsize": 8, "color": "0.35", "wrap": True}
    figure.text(0.5, -0.02, figure.provenance, **below)  # where a picture is all there is
    plt.savefig(folder / "adam_adamw.png", dpi=160)


def collapse(folder: Path) -> None:
    """Three digits under Adam and AdamW at one weight decay (chapter 04): means and weights, epoch by epoch."""
    stored = {
        h.run.optimizer: h for h in Store().histories() if h.run.dataset == "digits3" and h.run.wd == 0.1
    }
    shown = [stored[name] for name in ("Adam", "AdamW")]
    figure, axes = plt.subplots(1, 2, figsize=(6.4, 3.6), layout="none")
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.02, top=0.82, wspace=0.02)
    angle = 2 * np.pi * np.arange(4) / 3
    corners = np.column_stack([np.sin(angle), np.cos(angle)]) / np.sqrt(3)

    def draw(row):
        for axis, history in zip(axes, shown):
            axis.clear()
            axis.plot(*corners.T, "o-", color="0.7", lw=0.8, ms=16, mfc="none")
            means, weights = figures.polygon(history.grams[row])
            for mean, weight, colour in zip(means, weights, style.CLASSES):
                axis.plot(*mean, "o", ms=9, color=colour)
                axis.plot(*np.column_stack([(0, 0), weight]), color=colour, lw=2.2)
                axis.plot(*weight, "D", ms=5, color=colour)
            now = history.frame.iloc[row]
            title = f"{history.run.optimizer}, epoch {now['epoch']:.0f}\nNC0 {now['nc0']:.2f}   NC3 {now['nc3']:.2f}"
            axis.set_title(title, fontsize=12)
            axis.set(xlim=(-0.85, 0.85), ylim=(-0.7, 0.85), xticks=[], yticks=[], aspect="equal")
            axis.grid(visible=False)

    frames = []
    for row in range(len(shown[0].frame)):
        draw(row)
        figure.canvas.draw()
        frames.append(Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB"))
    frames[-1].save(folder / "collapse.png")  # for who wants no motion, and on paper
    times = [250] * (len(frames) - 1) + [2000]
    palette = frames[-1].quantize(32)
    first, *others = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    # it plays once: a picture that goes on and on distracts
    first.save(folder / "collapse.gif", save_all=True, append_images=others, duration=times)


if __name__ == "__main__":
    figures.set_style()
    social(Path(__file__).parents[1] / "static")
    curves(Path(__file__).parents[1] / "static")
    collapse(Path(__file__).parents[1] / "static")
