"""Where we may connect to: judges an address before it is dialled, a URL before it is stored. Opens nothing itself.

Python's `is_private` and `is_global` are no guide (3.11 calls NAT64 and 6to4 forms of 169.254.169.254 global), so what
is refused is listed here by network, after IANA's special-purpose registries and the clouds' metadata addresses.
"""

import ipaddress
import re
from collections.abc import Sequence
from urllib.parse import SplitResult, urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_URL = 2000

_REFUSED_V4 = [
    (ipaddress.IPv4Network(network), why)
    for network, why in (
        ("0.0.0.0/8", "an unspecified address"),
        ("10.0.0.0/8", "a private address"),
        ("100.64.0.0/10", "a carrier-grade NAT address"),  # Alibaba's metadata is 100.100.100.200
        ("127.0.0.0/8", "a loopback address"),
        ("168.63.129.16/32", "a cloud metadata address"),  # Azure
        ("169.254.0.0/16", "a link-local or cloud metadata address"),
        ("172.16.0.0/12", "a private address"),
        ("192.0.0.0/24", "a reserved address"),  # Oracle's metadata is 192.0.0.192
        ("192.0.2.0/24", "a documentation address"),
        ("192.88.99.0/24", "a 6to4 relay address"),
        ("192.168.0.0/16", "a private address"),
        ("198.18.0.0/15", "a benchmarking address"),
        ("198.51.100.0/24", "a documentation address"),
        ("203.0.113.0/24", "a documentation address"),
        ("224.0.0.0/4", "a multicast address"),
        ("240.0.0.0/4", "a reserved address"),
    )
]

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_SIX_TO_FOUR = ipaddress.IPv6Network("2002::/16")
_TEREDO = ipaddress.IPv6Network("2001::/32")
# Whatever follows these 96 bits is an IPv4 address: `::a.b.c.d`, and the translated `::ffff:0:a.b.c.d`.
_EMBEDDING = [ipaddress.IPv6Network(network) for network in ("::/96", "::ffff:0:0:0/96")] + [_NAT64]
_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")  # all that IANA gives out as global unicast
_REFUSED_V6 = [
    (ipaddress.IPv6Network(network), why)
    for network, why in (
        ("::/128", "an unspecified address"),
        ("::1/128", "a loopback address"),
        ("64:ff9b:1::/48", "a local NAT64 address"),
        ("100::/64", "a discard address"),
        ("2001::/23", "a reserved or Teredo address"),
        ("2001:db8::/32", "a documentation address"),
        ("3fff::/20", "a documentation address"),
        ("5f00::/16", "a segment routing address"),
        ("fc00::/7", "a private address"),  # AWS's metadata is fd00:ec2::254
        ("fe80::/10", "a link-local address"),
        ("fec0::/10", "a site-local address"),
        ("ff00::/8", "a multicast address"),
    )
]

_METADATA_NAMES = {
    "metadata",
    "metadata.google.internal",
    "metadata.goog",
    "instance-data",
    "instance-data.ec2.internal",
}
# Names that no public DNS server answers: they mean this machine or the network around it.
_LOCAL_SUFFIXES = (
    ".localhost", ".localdomain", ".local", ".internal", ".intranet", ".private", ".corp", ".home", ".lan",
    ".home.arpa",
)  # fmt: skip
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
# Below 1024 only 80 and 443 are for the web; what these above it speak is never the API of a platform.
_REFUSED_PORTS = {
    1080, 1433, 1521, 1883, 2049, 2181, 2375, 2376, 2379, 2380, 3128, 3306, 3389, 4369, 5432, 5433, 5671, 5672, 5900,
    5984, 6379, 6380, 7001, 8086, 8500, 9042, 9092, 9093, 9200, 9300, 10250, 10255, 11211, 15672, 16379, 26379, 27017,
    27018, 27019, 50000, 50070,
}  # fmt: skip


class Egress:
    """The guard, with the networks in which the operator allows private addresses, plain http and any port."""

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        """`allowed`: networks in CIDR notation. Raises ValueError naming the one that is none."""
        self._allowed = [_network(text) for text in allowed if text.strip()]

    def allows(self, address: str) -> bool:
        """Whether the operator's list holds this IP address."""
        parsed = _parse(address)
        return parsed is not None and any(parsed in network for network in self._allowed)

    def refusal(self, address: str) -> str | None:
        """Why nothing may be sent to this IP address, or None."""
        parsed = _parse(address)
        if parsed is None:
            return "not an IP address"
        if any(parsed in network for network in self._allowed):
            return None
        for candidate in (parsed, *_embedded(parsed)):
            if why := _why_refused(candidate):
                return why if candidate == parsed else f"{why} inside an IPv6 address"
        return None

    def dial_refusal(self, address: str, port: int, *, tls: bool) -> str | None:
        """Why no connection may be opened to this IP address and port, or None. Asked again for every connection."""
        if why := self.refusal(address):
            return why
        if self.allows(address):
            return None
        return _transport_refusal(port, tls=tls)

    def url_refusal(self, url: str, *, hosts: Sequence[str] = (), path: str = "") -> str | None:
        """Why this URL may not be stored as an address that we send to, or None. Nothing is looked up.

        `hosts` are the only hosts the vendor has, `path` a regular expression for the whole path; neither binds
        inside the operator's networks. A name that turns out to be private is refused when it is dialled.
        """
        if why := _spelling_refusal(url):
            return why
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            return "is not a valid URL"
        if why := _shape_refusal(parts) or _host_refusal(host):
            return why
        if port == 0:
            return "has an impossible port"
        if self._literally_allowed(host):
            return None
        if why := self._name_refusal(host):
            return why
        tls = parts.scheme.lower() == "https"
        if why := _transport_refusal(port or (443 if tls else 80), tls=tls or self._locally_allowed(host)):
            return why
        if hosts and (host not in hosts or port not in (None, 443)):
            return f"must be at https://{' or https://'.join(hosts)}"
        if path and not re.fullmatch(path, parts.path):
            return "does not have the path that this platform's addresses have"
        return None

    def _literally_allowed(self, host: str) -> bool:
        if host == "localhost":
            return self.allows("127.0.0.1") or self.allows("::1")
        return self.allows(host)

    def _locally_allowed(self, host: str) -> bool:
        """A name of the network around us, such as `ollama` in a compose file, where a network is allowed at all."""
        if host == "localhost" or host.endswith(".localhost"):  # loopback, whatever else is allowed
            return False
        return _is_local_name(host) and any(not network.is_loopback for network in self._allowed)

    def _name_refusal(self, host: str) -> str | None:
        if host in _METADATA_NAMES:
            return "is a cloud metadata address"
        if _parse(host) is not None:
            why = self.refusal(host)
            return f"is {why}, which EGRESS_ALLOWED_NETWORKS does not allow" if why else None
        if _is_local_name(host) and not self._locally_allowed(host):
            return "is a name of the local network, which EGRESS_ALLOWED_NETWORKS does not allow"
        return None


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text.strip(), strict=False)
    except ValueError:
        raise ValueError(f"{text.strip()!r} is not a network in CIDR notation, such as 10.0.0.0/8") from None


def _parse(text: str) -> Address | None:
    """The address, an IPv4-mapped one as the IPv4 address that the kernel makes of it."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


def _embedded(address: Address) -> list[ipaddress.IPv4Address]:
    """The IPv4 addresses at which a gateway or tunnel would deliver this IPv6 address."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    number = int(address)
    low = number & 0xFFFFFFFF
    found = []
    if any(address in network for network in _EMBEDDING):
        found.append(low)
    if address in _SIX_TO_FOUR:
        found.append((number >> 80) & 0xFFFFFFFF)
    if address in _TEREDO:
        found += [(number >> 64) & 0xFFFFFFFF, low ^ 0xFFFFFFFF]  # its server, and the client, kept inverted
    if (number >> 32) & 0xFFFFFFFF in (0x00005EFE, 0x02005EFE):  # ISATAP
        found.append(low)
    return [ipaddress.IPv4Address(value) for value in found]


def _why_refused(address: Address) -> str | None:
    if isinstance(address, ipaddress.IPv4Address):
        return next((why for network, why in _REFUSED_V4 if address in network), None)
    for network, why in _REFUSED_V6:
        if address in network:
            return why
    # NAT64 is how an IPv6-only network reaches the public IPv4 internet; the address inside is judged for itself.
    if address in _PUBLIC_V6 or address in _NAT64:
        return None
    return "not a public address"


def _spelling_refusal(url: str) -> str | None:
    """Characters on which URL parsers disagree are refused before one of them is asked."""
    if len(url) > MAX_URL:
        return f"is longer than {MAX_URL} characters"
    if not url.isascii() or not url.isprintable() or re.search(r"[ \\\"<>^`{|}]", url):
        return "holds characters that a URL cannot have"
    return None


def _shape_refusal(parts: SplitResult) -> str | None:
    if parts.scheme.lower() not in ("https", "http") or not parts.netloc:
        return "must begin with https://"
    if "@" in parts.netloc:
        return "must not hold a user name or password"
    if parts.query or parts.fragment:
        return "must not have a query or fragment"
    if any(segment in (".", "..") for segment in re.sub("%2e", ".", parts.path, flags=re.I).split("/")):
        return "must not have . or .. in its path"
    return None


def _host_refusal(host: str) -> str | None:
    """`host` in lower case, without brackets. Only one spelling of an IP address is taken: others hide it."""
    if ":" in host:
        return None if "%" not in host and _parse(host) is not None else "has an IPv6 address that is not valid here"
    if host.endswith("."):
        return "must not end its host with a dot"
    labels = host.split(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        return "has no valid host"
    if _NUMBER.fullmatch(labels[-1]) and _parse(host) is None:
        return "must spell an IP address as four decimal numbers"
    return None


def _is_local_name(host: str) -> bool:
    return _parse(host) is None and ("." not in host or host.endswith(_LOCAL_SUFFIXES))


def _transport_refusal(port: int, *, tls: bool) -> str | None:
    """What goes for every host outside the operator's networks."""
    if not tls:
        return "must begin with https:// (http only inside EGRESS_ALLOWED_NETWORKS)"
    if (port < 1024 and port not in (80, 443)) or port in _REFUSED_PORTS:
        return f"has port {port}, which is not one of a web API"
    return None
