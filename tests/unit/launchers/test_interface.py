"""Through which interface gloo goes. The machine's real tables are asked, within a network that a test makes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from launchers.interface import Addresses, interface_to, named
from launchers.parent import GLOO_INTERFACE, Claim, Node, rank_environment
from launchers.slurm.node import NodePlace

ROOT = Path(__file__).parents[3]
CABLES = """\
link add eth0 type veth peer name far0
link add ib0 type veth peer name far1
link add down0 type veth peer name far2
address add 10.9.0.1/24 dev eth0
address add 10.9.0.11/24 dev eth0
address add 10.9.1.1/24 dev ib0
address add fd09::1/64 dev ib0 nodad
address add 10.9.2.1/24 dev down0
link set lo up
link set eth0 up
link set far0 up
link set ib0 up
link set far1 up
"""
HOSTS = """\
127.0.0.1 localhost
127.0.1.1 node1
10.9.0.1 node1
10.9.0.2 node2
10.9.1.2 node3
fd09::4 node4
127.0.0.1 alone
fd09::5 node5
10.9.0.5 node5
"""


def test_ranks_on_several_nodes_are_told_the_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    claim = Claim(1, "token")
    monkeypatch.delenv(GLOO_INTERFACE, raising=False)
    assert rank_environment(Node(2), claim, 0)[GLOO_INTERFACE] == "lo"
    assert rank_environment(Node(2, nodes=2, interface="eth1"), claim, 0)[GLOO_INTERFACE] == "eth1"
    assert GLOO_INTERFACE not in rank_environment(Node(2, nodes=2, interface=None), claim, 0)
    assert "NCCL_SOCKET_IFNAME" not in rank_environment(Node(2, nodes=2, interface="eth1"), claim, 0)
    monkeypatch.setenv(GLOO_INTERFACE, "ib0")
    assert GLOO_INTERFACE not in rank_environment(Node(2, nodes=2, interface="eth1"), claim, 0)


@pytest.mark.parametrize(
    ("index", "hosts"), [(0, ["nosuchhost.invalid", "127.0.0.1"]), (1, ["127.0.0.1", "x.invalid"])]
)
def test_the_first_node_looks_at_another_and_the_others_at_it(index: int, hosts: list[str]) -> None:
    made = NodePlace("7", 0, index, hosts, 2, None).node(hosts[0], 20000, 60.0)
    assert (made.interface, made.index, made.nodes, made.address) == ("lo", index, 2, hosts[0])


def test_a_host_that_nobody_knows_is_left_to_gloo(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert interface_to("nowhere") is None


@pytest.mark.parametrize(
    ("address", "known", "name"),
    [
        ("10.0.0.1", {"lo": ["127.0.0.1"], "eth0": ["10.0.0.1"]}, "eth0"),
        ("10.0.0.1", {"br0": ["10.0.0.9", "10.0.0.1"], "eth0": ["10.0.0.1"]}, "eth0"),  # of br0 gloo takes the other
        ("10.0.0.1", {"eth0": ["10.0.0.9", "10.0.0.1"]}, "eth0"),
        ("10.0.0.2", {"eth0": ["10.0.0.1"]}, None),
    ],
)
def test_of_interfaces_that_share_an_address(address: str, known: Addresses, name: str | None) -> None:
    assert named(address, known) == name


def in_a_network(tmp_path: Path, *hosts: str) -> dict[str, str | None]:
    """What `interface_to` finds for each host, where the cables and names are those above."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a network")
    (tmp_path / "hosts").write_text(HOSTS)
    code = (
        "import json, sys; from launchers.interface import interface_to; "
        "print(json.dumps({host: interface_to(host) for host in sys.argv[1:]}))"
    )
    script = f'ip -batch - && mount --bind {tmp_path}/hosts /etc/hosts && exec "$@"'
    done = subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-c", script, "sh", sys.executable, "-c", code, *hosts],
        input=CABLES, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode and "Traceback" not in done.stderr:
        pytest.skip(f"this machine gives no network: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    found: dict[str, str | None] = json.loads(done.stdout)
    return found


def test_the_interface_is_that_of_the_route(tmp_path: Path) -> None:
    wanted = {
        "node2": "eth0",
        "node3": "ib0",
        "node4": "ib0",  # IPv6 alone
        "node5": "eth0",  # IPv6 by ib0 too, but the ranks meet over IPv4
        "node1": "eth0",  # its first address is one of this machine's loopback
        "alone": "lo",  # all that there is
        "10.9.0.7": "eth0",
        "10.9.2.7": None,  # the interface is down, and there is no other way
        "fd77::1": None,
    }
    assert in_a_network(tmp_path, *wanted) == wanted
