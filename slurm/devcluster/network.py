"""The cluster's wires: a bridge, a network namespace and a cable for every node, and the nodes' names."""

from __future__ import annotations

import json
from pathlib import Path

from configs import node_host_lines
from layout import BRIDGE, CONTROLLER_ADDRESS, Failed, Folder, Options, WrongUse, node_address, node_link
from processes import run

_HOSTS = Path("/etc/hosts")
_HOSTS_MARK = "# distft-devcluster"


def build(folder: Folder, options: Options) -> None:
    # The alias says whose bridge it is, also when the folder is lost.
    bridge = [
        f"link add {BRIDGE} type bridge",
        f"link set {BRIDGE} alias {folder.root}",
        f"address add {CONTROLLER_ADDRESS}/24 dev {BRIDGE}",
        f"link set {BRIDGE} up",
    ]
    try:
        _batch(bridge)
    except Failed as error:
        raise WrongUse(f"this machine's kernel gives no network bridge, which the nodes need: {error}") from None
    for node in options.node_names():
        namespace, link = folder.namespace(node), node_link(node)
        namespace.touch()
        run(["unshare", f"--net={namespace}", "ip", "link", "set", "lo", "up"])
        _batch(
            [
                f"link add {link} type veth peer name eth0 netns {namespace}",
                f"link set {link} master {BRIDGE} up",
            ]
        )
        inside = ["nsenter", f"--net={namespace}", "ip", "-batch", "-"]
        run(inside, stdin=f"address add {node_address(node)}/24 dev eth0\nlink set eth0 up\n")
    _rewrite_hosts([f"{line} {_HOSTS_MARK}" for line in node_host_lines(options)])


def _batch(lines: list[str]) -> None:
    run(["ip", "-batch", "-"], stdin="\n".join(lines) + "\n")


def tear_down(folder: Folder) -> None:
    """Removes what is ours, whatever part of it there is. The nodes' processes must be gone."""
    if owner() == str(folder.root):
        for link in _links():
            if link.get("master") == BRIDGE:
                run(["ip", "link", "delete", str(link["ifname"])])
        run(["ip", "link", "delete", BRIDGE])
        _rewrite_hosts([])
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = Path(line.split()[4])
        if folder.root in point.parents:
            run(["umount", "--lazy", point])


def owner() -> str | None:
    """The folder of the cluster that is on this machine's wires, None without one."""
    for link in _links():
        if link["ifname"] == BRIDGE:
            return str(link.get("ifalias", ""))
    return None


def cut_off(node: str) -> bool:
    return any(link["ifname"] == node_link(node) and "UP" not in link["flags"] for link in _links())


def set_link(node: str, state: str) -> None:
    run(["ip", "link", "set", node_link(node), state])


def _links() -> list[dict[str, list[str] | str]]:
    links: list[dict[str, list[str] | str]] = json.loads(run(["ip", "-json", "link", "show"]) or "[]")
    return links


def _rewrite_hosts(ours: list[str]) -> None:
    before = _HOSTS.read_text()
    kept = [line for line in before.splitlines() if not line.endswith(_HOSTS_MARK)]
    after = "\n".join([*kept, *ours]) + "\n"
    if after != before:
        _HOSTS.write_text(after)  # in place: in a container this file is often a mount, which no rename can replace
