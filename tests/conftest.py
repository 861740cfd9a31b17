import os

import pytest
import torch

from ncutils import data


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    """Each test has an empty store, and no shipped results."""
    monkeypatch.setenv("NCUTILS_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr("ncutils.store.project_folder", lambda name: tmp_path / name)
    data._load.cache_clear()
    torch.set_num_threads(1)


@pytest.fixture
def real_data():
    """NCUTILS_DATA with MNIST and FashionMNIST in it, or a skip that says what is missing."""
    folder = os.environ.get("NCUTILS_DATA", "")
    for name in ("MNIST", "FashionMNIST"):
        if not os.path.isdir(os.path.join(folder, name, "raw")):
            pytest.skip(f"needs {name} under NCUTILS_DATA, which is {folder or 'not set'}")
    return folder
