"""A pytest plugin: how thoroughly faults are tried, from which seed, and what came of each.

A test of a fault carries `@pytest.mark.fault("B1")` and asks for the fixture `faults`. `make test` tries a sample;
`make faults` tries everything (`-m fault --faults all`) and ends with a table of verdicts. A failure is repeated by the
seed that the table's head names.
"""

import random
from collections.abc import Iterator, Sequence
from typing import TypeVar

import pytest

Point = TypeVar("Point")
COLUMNS = ("fault", "what", "verdict", "tried", "lost", "doubled", "seconds", "figures")
LONGEST_NAME = 90  # characters: a row is to fit on a screen


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", choices=("sample", "all"), default="sample", help="how many points of each fault")
    parser.addoption("--seed", type=int, default=1, help="the first seed of the faults that draw lots")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(name): a fault that the product is tried against")
    config.pluginmanager.register(_Verdicts(config), "verdicts")


class Faults:
    """What a test of a fault asks before, and tells after."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._request = request
        self.thorough = request.config.getoption("faults") == "all"
        self.seed = request.config.getoption("seed")
        self.dice = random.Random(f"{self.seed} {request.node.nodeid}")

    def seeds(self) -> range:
        return range(self.seed, self.seed + (3 if self.thorough else 1))

    def sample(self, points: Sequence[Point], size: int) -> list[Point]:
        """All points, or as many of them drawn by lot, in their order."""
        if self.thorough or size >= len(points):
            return list(points)
        return [points[index] for index in sorted(self.dice.sample(range(len(points)), size))]

    def verdict(self, *, tried: int, lost: int = 0, doubled: int = 0, **figures: object) -> None:
        """What the table says of this test, and that nothing was lost or doubled. Told once, at its end.

        `figures` are further columns in words: `first_page="1.2 s"`.
        """
        told = {"tried": tried, "lost": lost, "doubled": doubled}
        told["figures"] = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in figures.items())
        self._request.node.user_properties.append(("verdict", told))
        assert tried, "nothing was tried: this proves nothing"
        assert (lost, doubled) == (0, 0)


@pytest.fixture
def faults(request: pytest.FixtureRequest) -> Faults:
    return Faults(request)


class _Verdicts:
    """Gathers what the tests tell, wherever they run."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._rows: list[tuple[str, ...]] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Iterator[None]:
        report = yield
        if report.when == "call" and (mark := item.get_closest_marker("fault")):
            report.user_properties.append(("fault", mark.args[0]))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        told = dict(report.user_properties)
        if report.when != "call" or "fault" not in told:
            return
        verdict = told.get("verdict", {})
        self._rows.append(
            (
                told["fault"],
                _words(report.nodeid),
                {"passed": "holds", "failed": "BROKEN"}.get(report.outcome, report.outcome),
                *(str(verdict.get(name, "")) for name in ("tried", "lost", "doubled")),
                f"{report.duration:.1f}",
                verdict.get("figures", ""),
            )
        )

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._config.getoption("faults") != "all" or not self._rows:
            return
        rows = [COLUMNS, *sorted(self._rows, key=lambda row: (int("0" + row[0].strip("BC")), row[1]))]
        widths = [max(len(row[index]) for row in rows) for index in range(len(COLUMNS))]
        terminalreporter.section(f"verdicts, seed {self._config.getoption('seed')}")
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            terminalreporter.write_line("  ".join(cells).rstrip())


def _words(nodeid: str) -> str:
    """A test's name as a sentence, and which of its parameters it ran with."""
    name = nodeid.partition("::")[2].removeprefix("test_").replace("_", " ")
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
