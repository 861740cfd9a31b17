"""Numbers that pages show, against the stored results, read here without the code that draws them.

The scoreboard's are compared byte for byte in test_scoreboard.py. Here: the captions of all chapters, sentences and
the table of one, and the prose of the first pages.
"""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from ncutils.analysis import gauge_fixed
from ncutils.book import published
from ncutils.optimizers import OPTIMIZERS
from ncutils.runs import Run, same_steps
from ncutils.store import Store, read_grid
from tests.test_chapters import outputs, papermill, text_of

ROOT = Path(__file__).resolve().parents[1]
NAMES = {("sgd", 0): "SGD", ("adam", 0): "Adam", ("signum", 0): "Signum"}
NAMES |= {(rule, 1): name + "W" for (rule, _), name in NAMES.items()}


def of_record(info: dict) -> dict:
    return {"samples": info["n_train"], "diverged": info["diverged_epoch"] is not None}


@pytest.fixture(scope="module")
def stored() -> pd.DataFrame:
    """One row a shipped run: its fields, first and last values as nc0_0, nc0, ...; straight from the Parquet files."""
    rows = []
    for path in (ROOT / "results").glob("*.parquet"):
        records, frame = json.loads(pq.read_metadata(path).metadata[b"ncutils"]), pd.read_parquet(path)
        for name, group in frame.groupby("run"):
            record = records[name]
            last = group.iloc[-1].drop("lr").to_dict()
            start = {f"{column}_0": group.iloc[0][column] for column in ("nc0", "nc1", "nc2", "nc3")}
            defaults = {"momentum": 0.9, "seed": 0, "coupled_wd": 0.0, "decoupled_wd": 0.0, "arch": "resnet9"}
            rows.append(last | start | defaults | record["run"] | of_record(record["info"]))
    table = pd.DataFrame(rows)
    table["optimizer"] = [NAMES.get((r.rule, int(r.decoupled_wd > 0))) for r in table.itertuples()]
    return table


@pytest.fixture(scope="module")
def chapter(tmp_path_factory):
    """Chapter 03 in the laptop profile, on a machine without FashionMNIST: nothing is trained, all is read from results/."""
    folder = tmp_path_factory.mktemp("numbers")
    patch = pytest.MonkeyPatch()
    patch.setenv("NCUTILS_RUNS", str(folder / "runs"))
    patch.setenv("NCUTILS_DATA", str(folder / "nothing"))
    done = papermill(
        ROOT / "chapters/03_adamw.ipynb",
        folder / "out.ipynb",
        "-f",
        str(ROOT / "params/laptop/03_adamw.yaml"),
    )
    patch.undo()
    assert done.returncode == 0, done.stderr[-1000:]
    assert not list((folder / "runs").glob("*.parquet"))
    return folder / "out.ipynb"


def numbers(text: str) -> list[float]:
    return [float(n.replace(",", "")) for n in re.findall(r"\d[\d,]*\.?\d*(?:e[-+]?\d+)?", text)]


def main_runs(stored: pd.DataFrame, optimizer: str) -> pd.DataFrame:
    given = yaml.safe_load((ROOT / "params/laptop/03_adamw.yaml").read_text("utf-8"))
    lr = given["lr_sgd" if optimizer.startswith("SGD") else "lr"]
    runs = stored[(stored.optimizer == optimizer) & (stored.samples == given["n_train"]) & (stored.lr == lr)]
    runs = runs[
        (runs.dataset == given["dataset"]) & (runs.epochs == given["epochs"]) & (runs.width == given["width"])
    ]
    runs = runs[(runs.coupled_wd + runs.decoupled_wd).round(9) == given["wd"]]
    assert len(runs) == given["n_seeds"]
    return runs


def captions_in(chapter) -> list[str]:
    """What the figures of an executed chapter rest on."""
    figures = [output.get("metadata", {}).get("figure", {}) for output in outputs(chapter)]
    return [about["provenance"] for about in figures if about.get("provenance")]


def check_caption(caption: str, stored: pd.DataFrame) -> int:
    """Every number of a caption is one of stored runs that are like it; returns how many there are."""
    part = re.match(
        r"(?:All stored runs|Profile (?:quick|laptop|protocol(?:, width \d+)?)): (.+?), width ([\d, ]+), ([A-Za-z].*?), ([\d, ]+) training images, ([\d, ]+) epochs, lr (.*), momentum "
        r"([\d., ]+?)\. Seeds? ([\d, ]+)\. (\d+) runs?, (none|\d+) .*?((?:\d+ %, )*\d+ %) training accuracy(?:, (\d+) diverged)?",
        caption,
    )
    assert part, caption
    networks, width, sets, images, epochs, rates, momenta, seeds, n, dropped, least, diverged = part.groups()
    runs = stored[stored.width.isin(numbers(width))]
    for column, listed in (("arch", networks.split(", ")), ("dataset", sets.split(", "))):
        assert set(listed) <= set(runs[column]), caption
        runs = runs[runs[column].isin(listed)]
    # "1,437, 2,000": a comma inside a number has no space behind it
    runs = runs[
        runs.samples.isin([numbers(n)[0] for n in images.split(", ")]) & runs.epochs.isin(numbers(epochs))
    ]
    for column, listed in (("lr", rates), ("momentum", momenta), ("seed", seeds)):
        assert set(numbers(listed)) <= set(runs[column]), caption
        runs = runs[runs[column].isin(numbers(listed))]
    needed = {network: 50 if network == "vit" else 99 for network in networks.split(", ")}
    assert set(numbers(least)) == set(needed.values()), caption
    failed = int((runs.diverged | (runs.train_acc < runs.arch.map(needed) / 100)).sum())
    assert 0 < int(n) <= len(runs) and (0 if dropped == "none" else int(dropped)) <= failed, caption
    assert int(diverged or 0) <= int(runs.diverged.sum()), caption
    return len(numbers(caption))


def test_captions_name_what_is_stored(chapter, stored, count):
    captions = captions_in(chapter)
    assert len(captions) >= 5
    count("numbers found in the results", sum(check_caption(caption, stored) for caption in captions))


def test_captions_of_all_chapters_name_what_is_stored(quick_book, stored, count):
    """All but the one of chapter 19, whose optimizers are the notebook's own and are trained in it."""
    found = {path.stem: captions_in(path) for path in (quick_book / "chapters").glob("*.ipynb")}
    found.pop("19_your_optimizer")
    captions = [caption for captions in found.values() for caption in captions]
    assert len(captions) >= 25
    count("numbers found in the results", sum(check_caption(caption, stored) for caption in captions))


def test_sentences_and_table_say_what_is_stored(chapter, stored, count):
    claims = re.findall(
        r"(\w+) takes NC0 from ([\d.]+) to ([\d.e-]+) and ends with NC3 = (\d+\.\d+)", text_of(chapter)
    )
    assert {name for name, *_ in claims} == set(OPTIMIZERS)
    ends = {name: float(end) for name, _, end, _ in claims}
    assert ends["Adam"] < 1 < ends["AdamW"]
    for name, start, end, nc3 in claims:
        runs = main_runs(stored, name)
        assert start == f"{runs.nc0_0.mean():.3g}" and end == f"{runs.nc0.mean():.3g}", name
        assert nc3 == f"{runs.nc3.mean():.2f}", name
    table, _digits = [t for o in outputs(chapter) for t in tables_of(o) if set(OPTIMIZERS) <= set(t.index)]
    for name in OPTIMIZERS:
        runs = main_runs(stored, name)
        for column in ("nc0", "nc1", "nc2", "nc3"):
            mean, spread = table.loc[name, (column.upper(), "here")].split()[:3:2]
            assert mean == f"{runs[column].mean():.3g}" and spread == f"{runs[column].std():.2g}", (
                name,
                column,
            )
            assert float(table.loc[name, (column.upper(), "paper")]) == published.TABLE1[name][column]
    count("numbers found in the results", 3 * len(claims) + 3 * 4 * 6)


def test_pairs_are_counted_apart_where_adamws_decay_has_acted_little(chapter, stored, count):
    """AdamW against Adam in the laptop grid: paired here anew, and the budget added up from the schedule."""
    names = {run.hash for _, run in read_grid(ROOT / "params/laptop/grid.yaml")}
    runs = stored[stored.run.isin(names) & (stored.arch == "resnet9") & (stored.dataset == "FashionMNIST")]
    runs = runs[(runs.train_acc >= 0.99) & ~runs.diverged & (runs.rule == "adam")]
    alike, columns = ["lr", "momentum", "seed"], ("nc0", "nc1", "nc2", "nc3")
    pairs = {True: [], False: []}
    for _, run in runs[runs.decoupled_wd > 0].iterrows():
        coupled = runs[(runs.coupled_wd > 0) & (runs.coupled_wd <= run.decoupled_wd)]
        coupled = coupled[(coupled[alike] == run[alike]).all(axis=1)]
        if len(coupled):
            steps = 16 * (20 + 2 + 0.2)  # 16 an epoch; the learning rate drops after epochs 20 and 40
            has_acted = run.decoupled_wd * run.lr * steps >= 1
            pairs[has_acted].append((run, coupled.loc[coupled.coupled_wd.idxmax()]))
    said = {}
    for has_acted, found in pairs.items():
        higher = {column: sum(run[column] > other[column] for run, other in found) for column in columns}
        nc0, nc1, nc2, nc3 = higher.values()
        said[has_acted] = (
            f"the larger NC0 in {nc0} of {len(found)} pairs, the larger NC1 in {nc1}, NC2 in {nc2} and NC3 in {nc3}."
        )
    sentence = f"(a budget under 1), AdamW ends with {said[False]} Where it takes more (1 or more), AdamW ends with {said[True]}"
    assert sentence in text_of(chapter)
    assert len(pairs[False]) > len(pairs[True]) > 0
    count("numbers found in the results", 2 * (1 + len(columns)))


def tables_of(output) -> list[pd.DataFrame]:
    """The tables with two rows of headings in an output."""
    found = []
    for html in re.findall(r"<table.*?</table>", output.get("data", {}).get("text/html", ""), re.DOTALL):
        rows = []
        for row in re.findall(r"<tr.*?</tr>", html, re.DOTALL):
            cells = re.findall(r"<t[hd]([^>]*)>(.*?)</t[hd]>", row, re.DOTALL)
            spans = [int((re.findall(r'colspan="(\d+)"', head) or [1])[0]) for head, _ in cells]
            rows.append(
                [
                    re.sub(r"<[^>]*>", " ", text).strip()
                    for (_, text), n in zip(cells, spans)
                    for _ in range(n)
                ]
            )
        if len(rows) > 2 and len(set(map(len, rows))) == 1 and "here" in rows[1]:
            header = pd.MultiIndex.from_arrays([rows[0][1:], rows[1][1:]])
            found.append(
                pd.DataFrame(
                    [row[1:] for row in rows[2:]], index=[row[0] for row in rows[2:]], columns=header
                )
            )
    return found


@pytest.mark.parametrize("page", ["README.md", "chapters/intro.md", "chapters/sweeps.md"])
def test_the_prose_counts_what_is_there(page, count):
    """Every number of three digits or more outside code, links and the scoreboard is a parameter, a count of a grid, or
    in the paper's tables."""
    known = set()
    for path in (ROOT / "params").glob("*/*.yaml"):
        known |= set(numbers(path.read_text("utf-8")))
    for path in itertools.chain(*((ROOT / "params").glob(f"*/{name}.yaml") for name in ("grid", "rules"))):
        entries = read_grid(path)
        known |= {len(entries), len({run.hash for _, run in entries})}
        known |= {len({same_steps(run).hash for _, run in entries})}
    known |= {value for row in published.TABLE1.values() for value in row.values()}
    known |= {v for row in published.TABLE1_CHANGE.values() for v in row.values() if v is not None}
    text = (ROOT / page).read_text("utf-8")
    for what in ("scoreboard", "facts"):
        text = re.sub(f"<!-- {what} -->.*<!-- end of {what} -->", "", text, flags=re.DOTALL)
    text = re.sub(
        r"```.*?```|<[^>]+>|`[^`]*`|\]\([^)]*\)|\{cite\}`[^`]*`|https?://\S+", " ", text, flags=re.DOTALL
    )
    found = [n for n in numbers(text) if n >= 100]
    assert not [n for n in found if n not in known]
    count("numbers found in the results", len(found))


def test_the_caption_of_the_first_picture_is_its_runs():
    runs = [h for h in Store(shipped=ROOT / "results").histories() if h.run.dataset == "digits3"]
    (adamw,) = (h for h in runs if h.run.optimizer == "AdamW")
    nc3, fixed = adamw.final["nc3"], gauge_fixed(adamw)["nc3c"].iloc[-1]
    assert f"fixing it takes NC3 from {nc3:.2f} to {fixed:.2f}" in (ROOT / "chapters/intro.md").read_text(
        "utf-8"
    )


def test_how_far_another_machine_and_another_seed_change_a_run(quick_book):
    """Chapter 20's medians of NC3, and the shares of NC3 and NC1 over the runs that both comparisons have, from the files alone: the same hashes, and runs whose fields differ in the seed alone."""
    defaults = {name: field.default for name, field in Run.model_fields.items()}

    def ends(*paths):
        """By hash: the fields, the last NC1 and NC3, and whether the run passes the filter."""
        found = {}
        for path in paths:
            records = json.loads(pq.read_metadata(path).metadata[b"ncutils"])
            last = pd.read_parquet(path, columns=["run", "nc1", "nc3", "train_acc"]).groupby("run").last()
            for name, (nc1, nc3, accuracy) in last.iterrows():
                fits = accuracy >= 0.99 and records[name]["info"].get("diverged_epoch") is None
                found[name] = (
                    defaults | records[name]["run"],
                    np.array([nc1, nc3]),
                    fits,
                )  # a file has the fields of its time
        return found

    again = ends(ROOT / "results/again/laptop_resnet9_FashionMNIST.parquet")
    now = ends(*(ROOT / "results").glob("*.parquet"))
    by_fields = {json.dumps(fields, sort_keys=True): name for name, (fields, *_) in now.items()}
    apart: dict = {"machines": {}, "seeds": {}}
    alone = 0
    for name, (fields, ends_then, fits) in again.items():
        other = by_fields.get(json.dumps(now[name][0] | {"seed": fields["seed"] + 1}, sort_keys=True))
        alone += fits != now[name][2]
        if fits and now[name][2]:
            apart["machines"][name] = abs(np.log(now[name][1] / ends_then))
        if other and now[other][2] and now[name][2]:
            apart["seeds"][name] = abs(np.log(now[other][1] / now[name][1]))
    (n, machines), (m, seeds) = ((len(of), np.exp(np.median([*of.values()], 0)[1])) for of in apart.values())
    alike = [of for name, of in apart["machines"].items() if name in apart["seeds"]]
    nc1, nc3 = np.median(alike, 0) / np.median([*apart["seeds"].values()], 0)
    said = text_of(quick_book / "chapters/20_tested.ipynb")
    assert len(again) == 183 and n > 100 and m > 20
    assert (
        f"Over {n} pairs NC3 differs between the machines by a factor of {machines:.3f} in the median" in said
    )
    assert (
        f"between seeds, over {m} pairs, by {seeds:.3f}: in logarithms, over the runs of those {m} pairs, the machine makes {nc3:.0%} of a seed's difference in NC3, {nc1:.0%} in NC1"
        in said
    )
    assert f"{alone} of the 183 runs pass it on one alone" in said
