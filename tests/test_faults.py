"""`make faults`: what a test of a fault tells stands in a table, and what was not tried proves nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TESTS = """
import pytest

@pytest.mark.fault("B2")
def test_it_holds(faults):
    points = faults.sample(range(100), 5)
    faults.verdict(tried=len(points), first_page="1.2 s")

@pytest.mark.fault("B10")
@pytest.mark.parametrize("lost", [0, 1], ids=["::1", "a,very," * 30])
def test_it_loses(faults, lost):
    faults.verdict(tried=len(faults.seeds()), lost=lost)

@pytest.mark.fault("B1")
def test_it_tries_nothing(faults):
    faults.verdict(tried=0)

def test_it_is_no_fault():
    pass
"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "test_it.py").write_text(TESTS)

    def start(*options: str) -> str:
        argv = (sys.executable, "-m", "pytest", "-q", "-p", "tests.faults", "-p", "no:django", "-c", "/dev/null")
        argv += ("--rootdir", str(tmp_path), *options, str(tmp_path))
        return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300).stdout

    return start


def test_everything_is_tried_and_told_in_the_order_of_the_faults(run):
    table = run("--faults", "all", "--seed", "7", "-m", "fault", "-n", "2").partition("verdicts, seed 7")[2]
    told = [line.split() for line in table.splitlines() if line.startswith("B")]
    assert [(row[0], "holds" in row, "BROKEN" in row) for row in told] == [
        ("B1", False, True),
        ("B2", True, False),
        ("B10", True, False),
        ("B10", False, True),
    ]
    assert told[2][1:3] == ["it", "loses[::1]"]
    assert max(len(row[2]) for row in told) < 90
    assert told[1][3:7] == ["holds", "100", "0", "0"]
    assert told[1][8:] == ["first", "page", "1.2", "s"]
    assert told[3][3:7] == ["BROKEN", "3", "1", "0"]


def test_a_sample_is_the_same_each_time_and_has_no_table(run):
    out = run()
    assert "2 failed, 3 passed" in out
    assert "verdicts" not in out
