"""JSON texts: read from strangers within bounds, and written the way that every answer is."""

import json
import math
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from uuid import UUID

import orjson
import pytest
from django.utils.functional import lazystr
from hypothesis import given
from hypothesis import strategies as st
from rest_framework.exceptions import ErrorDetail

from incidents.jsontext import MAX_VALUES, TooMany, Unreadable, dumps, loads
from incidents.times import timestamp
from tests.waiting import cpu_seconds

TEN_MEGABYTES = 10 * 1024 * 1024


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        ("{}".encode("utf-16"), "byte order mark"),
        ('{"a": "ä"}'.encode("utf-16-le"), "The body is not"),
        (b'{"a": "\xff"}', "not UTF-8: byte 8"),
        (b'"\xed\xa0\x80"', "not UTF-8"),
        (b'{"a": 1,}', "line 1 column"),
        (b"[1,\n 2,\n x]", "line 3 column 2"),
        (b"{'a': 1}", "not JSON"),
        (b"[1] [2]", "not JSON"),
        (b"[01]", "not JSON"),
        (b'"\x00"', "not JSON"),
        (b'["\\ud800", x]', "line 1 column 12"),
        (b"[", "not JSON"),
    ],
)
def test_what_is_not_json_is_a_400_that_says_where(body, reason):
    with pytest.raises(Unreadable, match=reason):
        loads(body)


def test_of_duplicate_keys_the_last_one_wins_on_both_paths():
    assert loads(b'{"a": 1, "a": 2}') == {"a": 2}
    assert loads(b'{"a": 1, "a": "\\ud800"}') == {"a": "\ud800"}


def test_what_cannot_be_stored_reaches_the_check_of_its_field():
    assert loads(b'["\\ud800", "\\u0000", {"\\udfff": 1}]') == ["\ud800", "\x00", {"\udfff": 1}]
    assert loads(b"[1e400, -1e400, Infinity]") == [math.inf, -math.inf, math.inf]
    assert math.isnan(loads(b"[NaN]")[0])


@pytest.mark.parametrize("digits", [310, 400, 5_000, 1_000_000])
def test_integers_of_any_length_are_read_at_once(digits):
    body = b"[" + b"9" * digits + b", -" + b"9" * digits + b"]"
    assert loads(body) == [math.inf, -math.inf]
    assert cpu_seconds(lambda: loads(body)) < 0.1


@pytest.mark.parametrize(
    "number", ["0", "-1", "9223372036854775807", "18446744073709551615", "18446744073709551616", "-0"]
)
def test_both_paths_read_numbers_alike(number):
    fast, slow = loads(f"[{number}]".encode()), loads(f'[{number}, "\\ud800"]'.encode())
    assert (fast[0], type(fast[0])) == (slow[0], type(slow[0]))
    assert fast[0] == float(number) or fast[0] == int(number)


any_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(any_json)
def test_what_is_written_is_read_back(data):
    assert loads(json.dumps(data).encode()) == data


@given(st.binary(max_size=40) | st.text(alphabet='[]{}",:\\ud80NaIe+-.019 ', max_size=40).map(str.encode))
def test_any_bytes_are_json_or_a_clean_refusal(body):
    with suppress(Unreadable):
        loads(body)


@pytest.mark.parametrize("depth", [65, 500, 1_000, 1_024, 1_025, 20_000, 200_000])
@pytest.mark.parametrize("form", ["[%s]", '{"a":%s}'])
def test_nesting_past_64_levels_is_refused(depth, form):
    opening, closing = form.split("%s")
    for bottom in ("1", "1e400", '"\\ud800"', ""):
        with pytest.raises(Unreadable):
            loads((opening * depth + bottom + closing * depth).encode())


def test_64_levels_are_read():
    assert loads(b"[" * 64 + b"]" * 64)
    assert loads(b'["\\ud800",' + b"[" * 63 + b"]" * 64)
    for beyond in (
        b"[" * 65 + b"]" * 65,
        b'["\\ud800",' + b"[" * 64 + b"]" * 65,
        b'[1e400, "x", [' + b"[" * 900 + b"]" * 902,
    ):
        with pytest.raises(Unreadable, match="nested too deeply"):
            loads(beyond)


def test_ten_megabytes_of_brackets_cost_nothing():
    body = b"[" * TEN_MEGABYTES

    def read() -> None:
        with pytest.raises(Unreadable, match="nested too deeply"):
            loads(body)

    assert cpu_seconds(read) < 0.1


def test_too_many_values_are_a_413_before_they_are_made():
    body = b"[" + b"{}," * (MAX_VALUES + 1) + b"{}]"

    def read() -> None:
        with pytest.raises(TooMany, match="500,000 values"):
            loads(body)

    assert cpu_seconds(read) < 0.1


@pytest.mark.parametrize(
    "moment",
    [
        datetime(2024, 3, 1, 15, 30, tzinfo=UTC),
        datetime(2024, 3, 1, 15, 30, 0, 999_999, tzinfo=UTC),
        datetime(2024, 3, 1, 17, 30, tzinfo=timezone(timedelta(hours=2))),
        datetime(2024, 3, 1, 15, 30, 0, 5),
    ],
)
def test_times_are_utc_whole_seconds_and_z(moment):
    assert timestamp(moment) == "2024-03-01T15:30:00Z"
    assert dumps([moment]) == b'["2024-03-01T15:30:00Z"]'
    assert dumps([moment, "\ud800"]) == '["2024-03-01T15:30:00Z","\ufffd"]'.encode()


def test_no_time_is_null():
    assert timestamp(None) is None


def test_what_views_hand_over_can_be_written():
    data = {
        "error": ErrorDetail("bad", "invalid"),
        "label": lazystr("late"),
        "id": UUID(int=1),
        "price": Decimal("1.10"),
        "day": date(2024, 3, 1),
        "pair": (1, 2),
    }
    plain = {
        "error": "bad",
        "label": "late",
        "id": "00000000-0000-0000-0000-000000000001",
        "price": "1.10",
        "day": "2024-03-01",
        "pair": [1, 2],
    }
    assert orjson.loads(dumps(data)) == plain
    assert orjson.loads(dumps(data | {"odd": "\ud800"})) == plain | {"odd": "\ufffd"}


def test_no_row_can_spoil_a_list():
    assert (
        dumps([math.inf, math.nan, 2**64, "\ud800x", {"\udfff": 1, 5: 2}])
        == '[null,null,null,"\ufffdx",{"\ufffd":1,"5":2}]'.encode()
    )


def test_a_pair_of_surrogates_is_one_character():
    assert dumps(["\ud83d\ude00\ud800"]) == '["😀\ufffd"]'.encode()


def test_what_json_has_no_word_for_is_an_error_of_ours():
    with pytest.raises(TypeError, match="object cannot be written as JSON"):
        dumps([object()])
