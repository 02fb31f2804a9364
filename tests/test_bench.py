"""`make bench` measures every part, says what it ran on, and leaves nothing. What it finds is not judged here."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.bench.report import Figure, Target, percentile, table
from tests.waiting import until
from ticketing.processes import ROOT

PARTS = {"single", "arrays", "page", "memory", "lists", "acknowledge"}
SHORT = ("--seconds", "0.2", "--rounds", "1", "--incidents", "1000")


@pytest.fixture(scope="module")
def run():
    """One short run: what it printed, and what it wrote."""
    folder = Path(tempfile.mkdtemp(prefix="ticketing-tests-"))  # pytest's own may not be passed by PostgreSQL's user
    folder.chmod(0o711)
    yield folder, *measured(folder)
    shutil.rmtree(folder)


def measured(folder: Path) -> tuple[str, dict]:
    environment = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "BROKER_URL")}
    done = subprocess.run(
        (sys.executable, "-m", "tests.bench", *SHORT, "--engine", os.environ["ENGINE"], "--json", folder / "figures"),
        cwd=ROOT,
        env=environment | {"TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((folder / "figures").read_text())


def test_every_part_has_figures_and_each_target_a_verdict(run):
    _, printed, written = run
    parts = {figure["part"] for figure in written["figures"]}
    assert parts == PARTS or not Path("/proc").exists() and parts == PARTS - {"memory"}
    for figure in written["figures"]:
        assert figure["product"]["low"] <= figure["product"]["median"] <= figure["product"]["high"]
        assert figure["product"]["low"] > 0
        assert (figure["floor"] is None) == (figure["ratio"] is None)
        assert figure["verdict"] in (("ok", "missed") if figure["target"] else (None,))
        assert figure["name"] in printed
    assert sum(figure["target"] is not None for figure in written["figures"]) == 11


def test_a_run_says_what_it_was_measured_on(run):
    _, printed, written = run
    assert written["engine"] == os.environ["ENGINE"]
    assert written["durability"].get("fsync", "on") == "on"
    assert written["cores"] >= 1
    assert len(written["loadAtStart"]) == 3
    assert written["versions"].keys() >= {"Django", "waitress"}
    assert f"{written['cores']} cores" in printed


def test_a_run_leaves_neither_processes_nor_files(run):
    folder = run[0]
    assert [path.name for path in folder.iterdir()] == ["figures"]
    # One that was killed takes a moment to be gone.
    until(lambda: not [path for path in Path("/proc").glob("[0-9]*/environ") if _names(path, folder)])


def _names(environ: Path, folder: Path) -> bool:
    try:
        return str(folder).encode() in environ.read_bytes()
    except OSError:  # gone meanwhile, or not ours
        return False


def test_a_ratio_is_of_figures_measured_side_by_side():
    figure = Figure("x", "events", "1/s", [10, 40, 30], [20, 50, 100], Target("≥ 0.6 of floor", ratio=0.6))
    assert figure.ratio == 0.5
    assert figure.verdict == "missed"
    assert Figure("x", "quick", "ms", [29], target=Target("≤ 30 ms", most=30)).verdict == "ok"
    assert Figure("x", "many", "1/s", [4999], target=Target("≥ 5000", least=5000)).verdict == "missed"
    assert "10.0–40.0" in table([figure])


def test_a_percentile_is_a_value_that_was_measured():
    assert percentile([3, 1, 2], 0.5) == 2
    assert percentile(range(1, 101), 0.99) == 99
    assert percentile([7], 0.99) == 7
