import pytest

from platforms.egress import Egress

CLOSED = Egress()
LOOPBACK = Egress(["127.0.0.0/8"])
OFFICE = Egress(["10.0.0.0/8", " fd00:1::/32 ", ""])

SLACK = {"hosts": ("hooks.slack.com", "hooks.slack-gov.com"), "path": r"/services/.+"}

NOT_PUBLIC = """
    0.0.0.0 0.1.2.3 10.1.2.3 100.64.0.1 100.100.100.200 127.0.0.1 127.9.9.9 168.63.129.16 169.254.169.254 172.16.0.1
    172.31.255.255 192.0.0.192 192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1
    240.0.0.1 255.255.255.255
    :: ::1 ::127.0.0.1 ::169.254.169.254 ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:169.254.169.254 ::ffff:0:127.0.0.1
    64:ff9b::a9fe:a9fe 64:ff9b::127.0.0.1 64:ff9b:1::1 100::1 2001::1 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:db8::1
    2002:a9fe:a9fe:: 2002:7f00:1:: 2002:0a00:1::1 2a00:1450::5efe:10.0.0.1 3fff::1 4000::1 5f00::1 fc00::1 fd00:ec2::254
    fe80::1 fe80::1%eth0 fec0::1 ff02::1
""".split()

# Everything that was ever used to write a private address as something else, and other things that are no platform's.
NOT_STORABLE = (
    """
    https://127.0.0.1 https://127.1 https://2130706433 https://0x7f000001 https://0177.0.0.1 https://0 https://0x0
    https://127.0.0.0x1 https://1.2.3.4.5 https://[::1] https://[::] https://[::ffff:169.254.169.254]
    https://[64:ff9b::a9fe:a9fe] https://[2002:a9fe:a9fe::] https://[::169.254.169.254] https://[fd00:ec2::254]
    https://[fe80::1%25eth0] https://[fe80::1%eth0] https://100.100.100.200 https://192.0.0.192 https://168.63.129.16
    https://metadata.google.internal https://METADATA.google.internal https://metadata https://localhost.
    https://sub.localhost https://db.local https://redis https://a.svc.internal https://user@example.com
    https://user:pw@example.com https://example.com@127.0.0.1 https://@example.com https://example.com\\@evil.com
    https://example.com:6379 https://example.com:22 https://example.com:0 https://example.com:65536
    https://example.com:http file:///etc/passwd gopher://example.com ftp://example.com javascript:alert(1) //example.com
    example.com https:// https:///path https://example.com. https://example.com/../x https://example.com/a/%2E./b
    https://example.com?x=1 https://example.com#x https://ex%61mple.com https://１２７.0.0.1 https://exаmple.com
    https://-a.com https://a..com http://example.com http://8.8.8.8 https://[::1 https://[1.2.3.4]
""".split()
    + ["", "https://example.com\r\nX: y", "https://example.com/\n", " https://example.com", "https://a\tb.com"]
)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_an_address_that_is_not_public_is_refused_with_a_reason(address):
    assert CLOSED.refusal(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "172.32.0.1", "2606:4700::1111", "64:ff9b::8.8.8.8", "::ffff:8.8.8.8"])
def test_a_public_address_is_not_refused(address):
    assert CLOSED.refusal(address) is None


def test_what_is_no_address_is_refused():
    assert CLOSED.refusal("example.com")
    assert CLOSED.refusal("127.1")


def test_the_operators_networks_are_the_only_way_round():
    assert OFFICE.refusal("10.1.2.3") is None
    assert OFFICE.refusal("::ffff:10.1.2.3") is None
    assert OFFICE.refusal("fd00:1::5") is None
    assert OFFICE.refusal("192.168.1.1")
    assert OFFICE.refusal("64:ff9b::10.1.2.3"), "a gateway's way into the network is not the network"
    assert not CLOSED.allows("8.8.8.8")
    assert OFFICE.allows("10.0.0.1")


def test_a_network_that_is_none_is_named():
    with pytest.raises(ValueError, match=r"'10\.0\.0\.0/99'"):
        Egress(["10.0.0.0/99"])


def test_plain_http_and_odd_ports_are_dialled_only_inside_the_operators_networks():
    assert CLOSED.dial_refusal("8.8.8.8", 443, tls=True) is None
    assert CLOSED.dial_refusal("8.8.8.8", 80, tls=False)
    assert CLOSED.dial_refusal("8.8.8.8", 6379, tls=True)
    assert OFFICE.dial_refusal("10.0.0.1", 6379, tls=False) is None
    assert OFFICE.dial_refusal("127.0.0.1", 443, tls=True)


@pytest.mark.parametrize("url", NOT_STORABLE)
def test_a_url_that_means_something_private_or_odd_is_refused(url):
    assert CLOSED.url_refusal(url)
    # Names of the local network are judged when they are dialled, where a network is allowed.
    assert OFFICE.url_refusal(url) or url in ("https://redis", "https://db.local", "https://a.svc.internal")


@pytest.mark.parametrize("url", NOT_STORABLE)
def test_allowing_loopback_lets_nothing_but_loopback_through(url):
    refused = LOOPBACK.url_refusal(url)
    assert refused is None if url == "https://127.0.0.1" else refused


@pytest.mark.parametrize(
    "url",
    ["https://acme.atlassian.net", "https://jira.example.com:8443/jira", "https://8.8.8.8", "HTTPS://Example.COM/v1"],
)
def test_an_ordinary_platforms_url_passes(url):
    assert CLOSED.url_refusal(url) is None


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:18090/x", "http://localhost:18090", "https://localhost", "http://127.0.0.1:6379"]
)
def test_loopback_is_for_those_who_allow_it(url):
    assert LOOPBACK.url_refusal(url) is None
    assert CLOSED.url_refusal(url)
    assert OFFICE.url_refusal(url)


def test_ipv6_loopback_allows_localhost_too():
    assert Egress(["::1/128"]).url_refusal("http://localhost:1234") is None
    assert Egress(["::1/128"]).url_refusal("http://[::1]:1234") is None


def test_a_name_of_the_local_network_passes_where_a_network_is_allowed():
    assert OFFICE.url_refusal("http://ollama:11434/v1") is None
    assert OFFICE.url_refusal("http://example.com")
    assert LOOPBACK.url_refusal("http://ollama:11434/v1")


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.slack.com/services/T.../B.../...",
        "https://hooks.slack-gov.com/services/T0/B0/abc",
        "https://HOOKS.slack.com:443/services/T0/B0/abc",
    ],
)
def test_a_fixed_vendors_url_passes(url):
    assert CLOSED.url_refusal(url, **SLACK) is None


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.slack.com.evil.com/services/T0/B0/abc",
        "https://evil.com/services/T0/B0/abc",
        "https://hooks.slack.com/other",
        "https://hooks.slack.com/services/",
        "https://hooks.slack.com:8443/services/T0/B0/abc",
        "https://hooks.slack.com/services/../x",
        "http://hooks.slack.com/services/T0/B0/abc",
    ],
)
def test_another_host_or_path_than_the_vendors_is_refused(url):
    assert CLOSED.url_refusal(url, **SLACK)
    assert LOOPBACK.url_refusal(url, **SLACK)


def test_a_stand_in_for_a_fixed_vendor_may_be_inside_the_operators_networks():
    assert LOOPBACK.url_refusal("http://127.0.0.1:9/hook", **SLACK) is None
    assert CLOSED.url_refusal("http://127.0.0.1:9/services/T/B/x", **SLACK)
