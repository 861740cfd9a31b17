"""Benchmarks at toy size: that they run, not how fast."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(script, *arguments):
    environment = os.environ | {"NCUTILS_TOY": "1"}
    command = [sys.executable, ROOT / "benchmarks" / script, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize(
    "script", ["metrics.py", "many_classes.py", "training_step.py", "many_runs.py", "playground.py"]
)
def test_a_benchmark_writes_rows(script, tmp_path, request):
    if script == "playground.py":
        request.getfixturevalue("browser")  # or a skip
    run(script, tmp_path / "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text("utf-8"))
    assert rows and all(r["what"] and r["figure"] and r["reached"] in ("yes", "no", "") for r in rows)
    assert all(bool(r["goal"]) == bool(r["reached"]) for r in rows)


def test_the_gpu_job_runs_without_a_gpu(tmp_path):
    assert "TOY SIZE" in run("gpu.py", tmp_path / "out")
    kept = json.loads((tmp_path / "out" / "gpu.json").read_text("utf-8"))
    assert kept["toy"] and set(kept["tflops"]) == {"bf16", "float32"}
    assert all(way["samples_s"] > 0 and way["share"] > 0 for way in kept["ways"])
