"""Durations as operators write them."""

from datetime import timedelta

import pytest

from config import durations


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("1s", 1), ("90s", 90), ("15m", 900), ("2h", 7200), ("1d", 86400), ("30d", 2592000), ("015m", 900)],
)
def test_a_number_and_a_unit_is_a_duration(written, seconds):
    assert durations.parse(written) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "written",
    [
        "",
        "15",
        "m",
        "15 m",
        " 15m",
        "15M",
        "-15m",
        "1.5h",
        "1h30m",
        "15m\n",
        "١٥m",
        pytest.param("9" * 5000 + "s", id="5,000 digits"),
        900,
        None,
        True,
    ],
)
def test_anything_else_is_refused_with_advice(written):
    with pytest.raises(ValueError, match=r"such as 90s, 15m, 2h or 1d"):
        durations.parse(written)


@pytest.mark.parametrize("written", ["0s", "0d", "31d", "721h", "2592001s"])
def test_the_range_is_a_second_to_thirty_days(written):
    with pytest.raises(ValueError, match="between 1s and 30d"):
        durations.parse(written)


@pytest.mark.parametrize(
    ("written", "shown"), [("90s", "90s"), ("60m", "1h"), ("24h", "1d"), ("36h", "36h"), ("30d", "30d")]
)
def test_a_duration_is_written_the_shortest_exact_way(written, shown):
    assert durations.text(durations.parse(written)) == shown
    assert durations.parse(shown) == durations.parse(written)
