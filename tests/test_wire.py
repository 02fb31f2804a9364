"""JSON in and out: what a body may be, what it costs at most, and how an answer is written."""

import pytest
from django.test import RequestFactory
from rest_framework.exceptions import ParseError, UnsupportedMediaType
from rest_framework.renderers import JSONRenderer as AnotherRenderer
from rest_framework.request import Request

from tests.waiting import cpu_seconds
from ticketing.wire import MAX_BODY, JSONNegotiation, JSONParser, JSONRenderer, TooLarge


def sent(body, content_type="application/json", **headers):
    """The data that a view would see of such a request."""
    request = RequestFactory().generic("POST", "/", body, content_type, **headers)
    return Request(request, parsers=[JSONParser()], negotiator=JSONNegotiation()).data


class Untouchable:
    """A stream that must not be touched."""

    def read(self, size):
        raise AssertionError("a body announced as too large was read")


# What a body may be


def test_a_body_is_read():
    assert sent(b' {"a": [1, 2.5, "\xc3\xa4", null, true]} ') == {"a": [1, 2.5, "ä", None, True]}
    assert sent(b"[]") == []
    assert sent(b'"x"') == "x"
    assert sent(b"null") is None


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "Application/JSON", "application/json; charset=utf-8", 'application/json;charset="UTF-8"'],
)
def test_the_media_type_is_json_in_utf_8(content_type):
    assert sent(b"{}", content_type) == {}


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "text/plain",
        "*/*",
        "application/*",
        "application/json+x",
        "multipart/form-data; boundary=x",
        "application/x-www-form-urlencoded",
        "application/json; charset=utf-16",
        "application/json; charset=latin-1",
        "application/json; charset=bz2_codec",
        "application/json; " + "x" * 10_000,
    ],
)
def test_another_media_type_is_a_415(content_type):
    with pytest.raises(UnsupportedMediaType):
        sent(b"{}", content_type)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, identity", "GZIP"])
def test_a_compressed_body_is_a_415_unread(encoding):
    with pytest.raises(UnsupportedMediaType, match="uncompressed"):
        sent(b"\x1f\x8b", HTTP_CONTENT_ENCODING=encoding)


def test_a_charset_that_cannot_be_read_is_a_415():
    with pytest.raises(UnsupportedMediaType):
        JSONParser().parse(Untouchable(), "application/json; charset*=none''utf-8", {})


def test_identity_is_no_compression():
    assert sent(b"{}", HTTP_CONTENT_ENCODING="identity") == {}


# What it costs at most


def test_a_body_of_the_limit_is_read_and_one_byte_more_is_a_413():
    longest = b'["' + b"x" * (MAX_BODY - 4) + b'"]'
    assert len(sent(longest)[0]) == MAX_BODY - 4
    with pytest.raises(TooLarge):
        sent(longest + b" ")


class Lying:
    """A stream that goes on, whatever was announced, and counts what was taken from it."""

    taken = 0

    def read(self, size):
        self.taken += size
        return b" " * size


def parse(stream, length):
    request = RequestFactory().generic("POST", "/", b"", "application/json", CONTENT_LENGTH=length)
    return JSONParser().parse(stream, "application/json", {"request": Request(request)})


@pytest.mark.parametrize("announced", [str(MAX_BODY + 1), pytest.param("9" * 5000, id="5,000 digits")])
def test_a_body_announced_as_too_large_is_not_read(announced):
    with pytest.raises(TooLarge) as refused:
        parse(Untouchable(), announced)
    assert refused.value.status_code == 413


@pytest.mark.parametrize("announced", ["", "5", "-1", "x"])
def test_a_body_longer_than_announced_is_read_to_the_limit_only(announced):
    stream = Lying()
    with pytest.raises(TooLarge):
        parse(stream, announced)
    assert stream.taken == MAX_BODY + 1


@pytest.mark.parametrize("body", [b"[1,", b"[" * 65 + b"]" * 65, b"[" * 5000, b"\xff", b"[" + b"9" * 5000])
def test_what_cannot_be_read_is_a_400(body):
    with pytest.raises(ParseError) as refused:
        sent(body)
    assert refused.value.status_code == 400


def test_too_many_values_are_a_413():
    with pytest.raises(TooLarge, match="500,000 values"):
        sent(b"[" + b"1," * 500_001 + b"1]")


def test_a_client_that_hangs_up_is_a_400():
    class HungUp:
        def read(self, size):
            raise OSError("gone")

    with pytest.raises(ParseError, match="broke off"):
        parse(HungUp(), "10")


# How an answer is written


def test_an_answer_is_compact_utf_8():
    assert JSONRenderer().render({"a": [1, "ä", None]}) == '{"a":[1,"ä",null]}'.encode()
    assert JSONRenderer().render(None) == b""
    assert JSONRenderer().render([]) == b"[]"


def test_whatever_accept_says_the_answer_is_the_views_own_renderer():
    ours = JSONRenderer()
    many = ",".join(f'text/x{number};q="{"9" * 50}"' for number in range(10_000))

    def choose() -> None:
        for accept in (many, "text/html", "*/*", "", "\x00", "application/xml;q=1"):
            request = Request(RequestFactory().get("/?format=html", HTTP_ACCEPT=accept))
            chosen = JSONNegotiation().select_renderer(request, [ours, AnotherRenderer()], "xml")
            assert chosen == (ours, "application/json")

    assert cpu_seconds(choose) < 0.05
