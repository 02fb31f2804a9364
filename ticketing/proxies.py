"""Who is behind a proxy: what it forwards is believed only of the proxies that TRUSTED_PROXIES lists.

Everybody else's X-Forwarded-* headers change nothing. They stay in the request, because one that came through any proxy
is not local. `Forwarded` (RFC 7239) is never believed.
"""

import ipaddress
from collections.abc import Sequence

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MOST_HOPS = 20


class Proxies:
    """The proxies in front of us. `networks`: CIDRs."""

    def __init__(self, networks: Sequence[str]) -> None:
        self._networks = [ipaddress.ip_network(network, strict=False) for network in networks]

    def settle(self, environ: dict) -> None:
        """Puts the true peer, scheme and host in the place of the proxy's own, in a WSGI environment."""
        if not self._networks or not self._trusts(_address(environ.get("REMOTE_ADDR", ""))):
            return
        environ["REMOTE_ADDR"] = self._peer(environ["REMOTE_ADDR"], environ.get("HTTP_X_FORWARDED_FOR", ""))
        # Of a list each proxy wrote its own word at the end.
        scheme = environ.get("HTTP_X_FORWARDED_PROTO", "").rpartition(",")[2].strip().lower()
        if scheme in ("http", "https"):
            environ["wsgi.url_scheme"] = scheme
        host = environ.get("HTTP_X_FORWARDED_HOST", "").rpartition(",")[2].strip()
        if host:
            environ["HTTP_HOST"] = host  # whether it is one of ours, Django judges

    def _peer(self, proxy: str, forwarded: str) -> str:
        """The last address that none of our proxies has. What is no address was written by no proxy of ours."""
        peer = proxy
        for text in reversed(forwarded.split(",")[-MOST_HOPS:]):
            address = _address(text)
            if address is None:
                break
            peer = str(address)
            if not self._trusts(address):
                break
        return peer

    def _trusts(self, address: Address | None) -> bool:
        return address is not None and any(address in network for network in self._networks)


def _address(text: str) -> Address | None:
    """An address as proxies write it, also with a port. IPv4 inside IPv6 is IPv4."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
