"""Which network interface leads to another node: what gloo takes in place of whatever the hostname resolves to."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator, Mapping, Sequence

import psutil

Addresses = Mapping[str, Sequence[str]]
"""The addresses of each interface, in the order of the system."""

_ANY_PORT = 9  # nothing is sent


def interface_to(host: str) -> str | None:
    """The interface of this machine on the way to a host; None if there is no way to tell.

    The ranks meet over IPv4 where there is some. A name that stands for this machine's loopback does not help as long
    as there is another address: on many systems /etc/hosts has one such line for the machine's own name.
    """
    found = list(dict.fromkeys(local_addresses(host)))
    found.sort(key=lambda address: ipaddress.ip_address(address).is_loopback)
    known = interfaces()
    return next(filter(None, (named(address, known) for address in found)), None)


def local_addresses(host: str) -> Iterator[str]:
    """From which of this machine's addresses packets to a host go, for each address that the host has."""
    try:
        there = socket.getaddrinfo(host, _ANY_PORT, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        return
    for family, kind, protocol, _, address in sorted(there, key=lambda entry: entry[0] != socket.AF_INET):
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(address)  # a route is looked up, and no packet sent
                yield _plain(probe.getsockname()[0])
        except OSError:  # no route there
            continue


def interfaces() -> dict[str, list[str]]:
    """Interfaces of this machine that are up."""
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    families = (socket.AF_INET, socket.AF_INET6)
    return {
        name: [_plain(entry.address) for entry in entries if entry.family in families]
        for name, entries in psutil.net_if_addrs().items()
        if name in up or ":" in name  # eth0:1 is another name of eth0, with addresses of its own
    }


def named(address: str, known: Addresses) -> str | None:
    """The interface that has an address. Of several the one whose first address it is: gloo looks no further."""
    having = [name for name, addresses in known.items() if address in addresses]
    return min(having, key=lambda name: known[name].index(address), default=None)


def _plain(address: str) -> str:
    """Without the scope of a link-local one, in the usual spelling."""
    return str(ipaddress.ip_address(address.partition("%")[0]))
