import io
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

import ncutils
from ncutils import store as stores
from ncutils import sweeps
from ncutils.__main__ import main
from ncutils.files import set_aside
from ncutils.optimizers import RULES
from ncutils.store import Store, table, write
from ncutils.sweeps import train_all
from ncutils.training import History, Run, train
from tests.conftest import SOAK

QUICK = {"epochs": 2, "width": 2, "measure": "ends"}

ROOT = Path(__file__).resolve().parents[1]


def same(a, b):
    pd.testing.assert_frame_equal(
        a.frame.drop(columns="gram"), b.frame.drop(columns="gram"), check_exact=True
    )
    assert np.array_equal(a.grams, b.grams) and a.run == b.run and a.info == b.info


def test_round_trip():
    history = train(Run(**QUICK))
    store = Store()
    assert store.get(history.run) is None and history.run not in store
    store.put(history)
    same(Store().get(history.run), history)
    assert history.run in Store()
    assert [p.name for p in store.folder.iterdir()] == [f"{history.run.hash}.parquet"]  # no temporary left


def test_shipped_runs_read_as_if_they_were_local(tmp_path):
    histories = [train(Run(seed=s, **QUICK)) for s in range(3)]
    (tmp_path / "results").mkdir()
    write(histories, tmp_path / "results" / "many.parquet")
    store = Store()
    for history in histories:
        same(store.get(history.run), history)
    store.put(histories[1])
    assert len(store.histories()) == 3


def test_a_file_holds_runs_with_different_columns(tmp_path):
    """Rows of an earlier version, without the columns of a later one, and networks of many classes, without `gram`."""
    new, old, wide = (train(Run(seed=s, **QUICK)) for s in range(3))
    old = History(old.run, old.frame.drop(columns=["nc3c", "nc4_test"]), old.info)
    wide = History(wide.run, wide.frame.drop(columns="gram"), wide.info)
    for order in ([new, old, wide], [wide, old, new], [old, new]):
        write(order, tmp_path / "many.parquet")
        Store(tmp_path / "own", tmp_path).histories()
        for history in order:
            back = Store(tmp_path / "own", tmp_path).get(history.run)
            assert set(back.frame) == set(history.frame) and repr(back.final) == repr(history.final)
            pd.testing.assert_frame_equal(back.frame[history.frame.columns], history.frame, check_exact=True)


def test_nc4_of_shipped_runs_is_undefined_where_nc1_is():
    """Where all class means are equal, no mean is nearest."""
    seen = 0
    for path in (ROOT / "results").glob("*.parquet"):
        frame = pq.read_table(path, columns=["nc1", "nc4"]).to_pandas()
        assert (
            frame["nc4"][frame["nc1"].isna()].isna().all()
            and frame["nc4"][frame["nc1"].notna()].notna().all()
        ), path
        seen += frame["nc1"].isna().sum()
    assert seen > 500


def test_train_all_trains_each_run_once(monkeypatch):
    runs = [
        Run.named("Adam", 0, lr=0.001, **QUICK),
        Run.named("AdamW", 0, lr=0.001, **QUICK),
        Run(seed=1, **QUICK),
    ]
    histories = train_all(runs, workers=2)
    assert [h.run for h in histories] == runs
    assert len(Store().histories()) == 2  # Adam and AdamW at wd 0 are one run
    monkeypatch.setattr(sweeps, "train", None)  # whoever trains now fails
    for first, again in zip(histories, train_all(runs, workers=2)):
        same(first, again)


def test_a_worker_gives_what_this_process_gives():
    run = Run(**QUICK)
    in_worker = next(h for h in train_all([run, Run(seed=1, **QUICK)], workers=2) if h.run == run)
    assert in_worker.frame["nc0"].tolist() == train(run).frame["nc0"].tolist()


def test_a_failing_run_leaves_the_finished_ones():
    with pytest.raises(ValueError, match="batch_size = 128 is not allowed with 129 training images"):
        train_all([Run(**QUICK), Run(n_train=129, **QUICK)], workers=1)
    assert Run(**QUICK) in Store()


def with_records(content: bytes, old: bytes, new: bytes) -> bytes:
    """A store's file with other records, as another program would write them: the checksum is right."""
    table, record = (
        pq.read_table(io.BytesIO(content)),
        pq.read_metadata(io.BytesIO(content)).metadata[b"ncutils"],
    )
    assert old in record
    record = record.replace(old, new)
    with pq.ParquetWriter(out := io.BytesIO(), table.schema) as writer:
        writer.write_table(table)
        checksum = zlib.crc32(record, zlib.crc32(out.getvalue()))
        writer.add_key_value_metadata({b"ncutils": record, b"crc32": str(checksum)})
    return out.getvalue()


def damaged(content: bytes) -> dict[str, bytes]:
    pd.DataFrame({"x": [1]}).to_parquet(foreign := io.BytesIO())
    return {
        "empty": b"",
        "truncated": content[:-50],
        "half": content[: len(content) // 2],
        "one byte wrong": content[:60] + bytes([content[60] ^ 255]) + content[61:],
        "text": b"not a Parquet file",
        "foreign": foreign.getvalue(),
        "no record": with_records(content, b'"run"', b'"nur"'),
        "a record of another kind": with_records(content, b'"info": {', b'"info": 5, "x": {'),
    }


DAMAGES = (
    "empty",
    "truncated",
    "half",
    "one byte wrong",
    "text",
    "foreign",
    "no record",
    "a record of another kind",
)


@pytest.mark.counts("damaged files set aside")
@pytest.mark.parametrize("how", DAMAGES)
def test_a_file_that_cannot_be_used_is_named_set_aside_and_its_run_retrained(how):
    run, store = Run(**QUICK), Store()
    (history,) = train_all([run], store, workers=1)
    path = store.folder / f"{run.hash}.parquet"
    content = damaged(path.read_bytes())[how]
    path.write_bytes(content)
    with pytest.warns(
        UserWarning, match=f"{path.name} is set aside as {path.name}.unreadable: it "
    ) as warned:
        (again,) = train_all([run], store, workers=1)
    assert len(warned) == 1 and "\n" not in str(warned[0].message)
    pd.testing.assert_frame_equal(again.frame.drop(columns="gram"), history.frame.drop(columns="gram"))
    assert path.with_name(f"{path.name}.unreadable").read_bytes() == content
    same(Store().get(run), again)  # silent now
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="is set aside"):
        assert store.histories() == [] and run not in store


def test_a_wrong_byte_anywhere_is_seen_or_does_not_matter(count):
    store, run = Store(), Run(**QUICK)
    train_all([run], store, workers=1)
    path = store.folder / f"{run.hash}.parquet"
    content, history = path.read_bytes(), store.get(run)
    metadata = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    draw = np.random.default_rng(0).choice
    places = [*draw(metadata, 150, replace=False), *range(metadata, len(content), 1 if SOAK else 20)]
    for place in places:
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = store.get(run)
        if found:
            same(found, history)
    count("damaged files set aside", len(places))


@pytest.mark.counts("damaged files set aside")
@pytest.mark.parametrize(
    "change", [(b'"seed": 0', b'"seed": 1'), (b'"width"', b'"widht"'), (b'"sgd"', b'"lionX"')]
)
def test_a_run_of_another_version_is_left_where_it_is_but_never_taken_for_this_one(change):
    run, store = Run(**QUICK), Store()
    train_all([run], store, workers=1)
    path = store.folder / f"{run.hash}.parquet"
    content = with_records(path.read_bytes(), *change)
    path.write_bytes(content)
    with pytest.warns(
        UserWarning, match=f"{path.name}: run {run.hash} is not known to this version and left out: "
    ):
        assert store.histories() == []
    assert path.read_bytes() == content
    with pytest.warns(UserWarning, match="set aside as .*: it does not hold the run that it is named after"):
        train_all([run], store, workers=1)
    assert path.with_name(f"{path.name}.unreadable").read_bytes() == content and len(store.histories()) == 1


def test_what_is_shipped_is_never_renamed(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "many.parquet").write_bytes(b"PAR1")
    with pytest.warns(UserWarning, match="many.parquet is left out: it is not whole"):
        assert Store().histories() == []
    assert [f.name for f in (tmp_path / "results").iterdir()] == ["many.parquet"]


def test_an_interrupted_write_leaves_what_was_there(monkeypatch):
    store, history = Store(), train(Run(**QUICK))
    store.put(history)
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    others = train(Run(**QUICK, lr=0.5)), History(history.run, history.frame.assign(nc0=1.0), history.info)
    for other in others:
        with pytest.raises(OSError, match="parquet cannot be written: Input/output error$"):
            store.put(other)
    assert [f.name for f in store.folder.iterdir()] == [f"{history.run.hash}.parquet"]
    same(Store().get(history.run), history)


def test_a_list_reads_no_frame_until_it_is_asked_for(monkeypatch):
    store, trained = Store(), [train(Run(seed=seed, **QUICK)) for seed in range(3)]
    for history in trained:
        store.put(history)
    frames, read = [], stores._frames
    monkeypatch.setattr(stores, "_frames", lambda *at: frames.append(at) or read(*at))
    listed = store.histories()
    pd.testing.assert_frame_equal(
        table(sorted(listed, key=lambda h: h.run.seed)), table(trained), check_exact=True
    )
    assert not any(h.valid for h in listed) and not frames
    for history in listed:
        same(history, trained[history.run.seed])
    assert len(frames) == 3


@pytest.mark.counts("damaged files set aside")
@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda content: content[:-9], "it is not whole, .*"),
        (
            lambda content: with_records(content, b'"nc0"', b'"nc9"'),
            "it does not end with the row that its record names",
        ),
    ],
)
def test_a_frame_that_is_not_what_the_list_said_is_an_error_that_names_the_file(damage, sentence):
    store, run = Store(), Run(**QUICK)
    store.put(train(run))
    (listed,) = store.histories()
    (path,) = store.folder.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{sentence}: .*{path.name}$"):
        _ = (listed if "whole" in sentence else store.histories()[0]).frame
    with pytest.warns(UserWarning, match="is set aside"):
        assert run not in store


def test_runs_as_csv(capsys):
    train_all(
        [Run.named("AdamW", 5, lr=0.001, **QUICK), Run.named("Adam", 0.05, lr=0.001, **QUICK)], workers=1
    )
    assert main(["runs", "--csv"]) == 0
    listed = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert len(listed) == 2 and {
        "run",
        "rule",
        "coupled_wd",
        "decoupled_wd",
        "nc0",
        "nc3",
        "train_acc",
    } <= set(listed)
    row = listed[listed["decoupled_wd"] == 5].iloc[0]
    assert row["optimizer"] == "AdamW" and row["lr"] == 0.001
    assert row["nc0"] == pytest.approx(Store().get(Run.named("AdamW", 5, lr=0.001, **QUICK)).final["nc0"])
    assert main(["runs", "--where", "rule=adam", "coupled_wd=0.05"]) == 0
    assert capsys.readouterr().out.count("Adam") == 1


def test_pack(tmp_path, capsys):
    histories = train_all([Run(seed=s, **QUICK) for s in range(2)], workers=1)
    assert main(["pack", str(tmp_path / "results" / "two.parquet"), "--where", "dataset=digits"]) == 0
    assert "2 runs in" in capsys.readouterr().out
    elsewhere = Store(tmp_path / "empty", shipped=tmp_path / "results")
    same(elsewhere.get(histories[0].run), histories[0])


@pytest.mark.counts("bad inputs refused")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(["--where", "wdth=8"], "unknown field 'wdth'"), (["--where", "dataset"], "FIELD=VALUE")],
)
def test_cli_errors_are_one_line(arguments, sentence, capsys):
    assert main(["runs", *arguments]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_shipped_runs_are_listed_by_the_module():
    """The store that a newcomer has: nothing local, the laptop profile's runs of chapter 03."""
    command = [sys.executable, "-m", "ncutils", "runs", "--csv", "--where", "dataset=FashionMNIST"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    listed = pd.read_csv(io.StringIO(done.stdout))
    assert set(listed["optimizer"]) >= {"SGD", "SGDW", "Adam", "AdamW", "Signum", "SignumW", "lion"}
    assert listed["run"].is_unique and set(listed["seed"]) == {0, 1, 2, 3141}  # that of the released code


def test_table_keeps_the_initial_and_the_final_rate():
    row = table([train(Run(lr=0.1, epochs=3, width=2))]).iloc[0]
    assert row["lr"] == 0.1 and row["final_lr"] == pytest.approx(0.001)


def test_installed_elsewhere_no_stranger_is_read(tmp_path):
    """Without a clone around the module, results/ in the current folder is somebody else's."""
    shutil.copytree(ROOT / "ncutils", tmp_path / "site" / "ncutils")
    shutil.copytree(ROOT / "results", tmp_path / "here" / "results")
    code = "import ncutils; s = ncutils.Store(); print(ncutils.__file__, s.folder, s.shipped, len(s.histories()))"
    environment = {k: v for k, v in os.environ.items() if k != "NCUTILS_RUNS"} | {
        "PYTHONPATH": str(tmp_path / "site")
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "here",
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    module, folder, shipped, n = done.stdout.split()
    assert (
        module.startswith(str(tmp_path))
        and folder == str(tmp_path / "here" / "runs")
        and (shipped, n) == ("None", "0")
    )


def test_reading_runs_needs_neither_workers_nor_a_cluster():
    """The library's analysis imports what it uses; the package itself next to nothing."""
    code = (
        "import sys, ncutils; light = len(sys.modules); import ncutils.analysis; print(light, *sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    light, *modules = done.stdout.split()
    assert not {"joblib", "ray", "matplotlib", "IPython", "ncutils.sweeps", "ncutils.book"} & set(modules)
    assert int(light) < 150 and "ncutils.store" in modules
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = ncutils.trian
    assert ncutils.train is train and ncutils.Store is Store


def test_the_page_on_results_names_every_column_field_and_fact_that_ships():
    named = set(re.findall(r"`([a-z0-9_]+)`", (ROOT / "chapters/results.md").read_text("utf-8")))
    found = set()
    for path in (ROOT / "results").glob("*.parquet"):
        metadata = pq.read_metadata(path)
        found |= {*pq.read_schema(path).names}
        for record in json.loads(metadata.metadata[b"ncutils"]).values():
            found |= {*record["run"]} | {*record["info"]}
    for path in (ROOT / "results").glob("*.csv"):
        found |= {*pd.read_csv(path, nrows=0).columns}
    assert found - named == set() and len(found) > 60


def test_a_store_stays_where_it_was_when_the_current_folder_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NCUTILS_RUNS", "mine")
    stores = Store(), Store("runs")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert [store.folder for store in stores] == [tmp_path / "mine", tmp_path / "runs"]


def test_a_run_given_twice_is_written_once(tmp_path):
    """At wd 0 a run stands under both its optimizers."""
    history = train(Run(**QUICK))
    write([history, history], tmp_path / "two.parquet")
    (found,) = Store(shipped=tmp_path).histories()
    same(found, history)


def test_a_later_versions_field_at_its_default_changes_nothing(monkeypatch):
    history, dump = train(Run(**QUICK)), Run.model_dump
    with monkeypatch.context() as later:
        later.setattr(
            Run,
            "model_dump",
            lambda self, **how: dump(self, **how) | ({} if how.get("exclude_defaults") else {"later": None}),
        )
        Store().put(history)
    same(Store().get(history.run), history)
    assert not [*Store().folder.glob("*.unreadable")]


def test_what_is_no_file_is_passed_over(tmp_path):
    history = train(Run(**QUICK))
    Store().put(history)
    (Store().folder / "folder.parquet").mkdir()
    with pytest.warns(UserWarning, match="left out"):
        (found,) = Store().histories()
    same(found, history)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "link.parquet").symlink_to(tmp_path / "nowhere")
    assert Store(tmp_path / "none", tmp_path / "results").histories() == []


def test_a_shipped_folder_stays_where_it_was(tmp_path, monkeypatch):
    history = train(Run(**QUICK))
    write([history], tmp_path / "shipped.parquet")
    monkeypatch.chdir(tmp_path)
    (found,) = Store("none", ".").histories()
    monkeypatch.chdir("/")
    same(found, history)


def test_runs_from_a_generator_are_trained():
    (history,) = train_all((Run(seed=s, **QUICK) for s in range(1)), workers=1, progress=False)
    assert history.run in Store()


def test_a_run_that_cannot_be_read_now_is_left_where_it_is(monkeypatch):
    """For want of a file handle, say."""
    (history,) = train_all([Run(arch="mlp", width=1, epochs=1, n_train=40)], device="cpu", workers=1)
    path, of_a_file = Store().folder / f"{history.run.hash}.parquet", Path.read_bytes

    def refused(self):
        if self == path:
            raise OSError(24, "Too many open files")
        return of_a_file(self)

    monkeypatch.setattr(Path, "read_bytes", refused)
    os.utime(path)  # nothing that was read before stands for it
    with pytest.raises(OSError, match="Too many open files"):
        Store().get(history.run)
    monkeypatch.undo()
    assert path.exists() and not [*path.parent.glob("*.unreadable")]


def test_a_full_memory_is_not_the_files_fault(monkeypatch):
    (history,) = train_all([Run(**QUICK)], workers=1)
    path = Store().folder / f"{history.run.hash}.parquet"

    def full(*_, **__):
        raise MemoryError("realloc of size 4194304 failed")

    os.utime(path)  # nothing that was read before stands for it
    (found,) = Store().histories()
    stores._frames.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(stores.pq, "ParquetFile", full)
        with pytest.raises(OSError, match="cannot be read now: the memory is full"):
            found.frame  # noqa: B018
        os.utime(path)
        with pytest.raises(OSError, match="cannot be read now: the memory is full"):
            Store().get(history.run)
    assert path.exists() and not [*path.parent.glob("*.unreadable*")]
    same(Store().get(history.run), history)


def test_what_was_set_aside_stays_when_more_is(tmp_path):
    path, kept = tmp_path / "a.parquet", []
    for text in ("one", "two", "three"):
        path.write_text(text)
        with pytest.warns(UserWarning, match="is set aside as a.parquet.unreadable"):
            set_aside(path, "it is text")
        kept.append(text)
        assert sorted(p.read_text("utf-8") for p in tmp_path.iterdir()) == sorted(kept)


@pytest.mark.counts("bad inputs refused")
def test_pack_writes_over_nothing_that_would_be_lost(tmp_path, capsys, monkeypatch):
    train_all([Run(seed=s, **QUICK) for s in range(3)], workers=1)
    file, text = tmp_path / "runs.parquet", tmp_path / "precious.txt"
    assert main(["pack", str(file), "--where", "seed=0"]) == 0
    assert main(["pack", str(file)]) == 0 == main(["pack", str(file)])  # as many, or more
    capsys.readouterr()
    before = file.read_bytes()
    assert main(["pack", str(file), "--where", "seed=1"]) == 2
    assert f"{file} holds 2 other runs: remove it first, or name another one" in capsys.readouterr().err
    with monkeypatch.context() as patch:  # a notebook's own rule, which a later session does not know
        patch.setitem(RULES, "mine", lambda params, lr, momentum, wd, *_: torch.optim.SGD(params, lr))
        own = tmp_path / "own.parquet"
        write([History(Run(rule="mine", **QUICK), h.frame, h.info) for h in Store().histories()[:1]], own)
    assert main(["pack", str(own)]) == 2
    assert f"{own} holds 1 other runs" in capsys.readouterr().err
    text.write_text("precious")
    assert main(["pack", str(text)]) == 2
    assert f"{text} is there and no file of runs: name another one" in capsys.readouterr().err
    assert file.read_bytes() == before and text.read_text("utf-8") == "precious"


def test_conditions_may_come_in_several_options(capsys):
    train_all([Run(seed=s, **QUICK) for s in range(2)], workers=1)
    assert main(["runs", "--where", "dataset=digits", "--where", "seed=1"]) == 0
    assert len(capsys.readouterr().out.strip().splitlines()) == 2
    assert main(["runs", "--where", "dataset=digitz"]) == 0
    assert "no run with dataset=digitz is stored in" in capsys.readouterr().err


def test_a_table_of_no_runs_can_be_asked_for_the_valid_ones():
    empty = table([])
    assert list(empty[empty["valid"]].columns) == list(empty.columns) and empty["nc0"].dtype == float
