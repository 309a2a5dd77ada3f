"""Two nodes with a network each, whose own names stand for their loopback, as Debian's installer writes it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.dist.launch import ROOT
from tests.e2e.command import until

RANK = """
import os, socket, sys
import torch, torch.distributed as td
from launchers.parent import Claim, rank_environment
from launchers.slurm.node import NodePlace
index = int(sys.argv[1])
node = NodePlace("7", 0, index, ["node1", "node2"], 1, None).node("node1", 20000, 60.0)
os.environ.update(rank_environment(node, Claim(1, ""), 0))
td.init_process_group("gloo")
total = torch.tensor([float(index + 1)])
td.all_reduce(total)
print(os.environ["GLOO_SOCKET_IFNAME"], total.item())
td.destroy_process_group()
"""


def node(folder: Path, index: int) -> subprocess.Popen[bytes]:
    """A machine that runs the program as soon as its cable is there."""
    other = 2 - index
    names = f"127.0.0.1 localhost\n127.0.1.1 node{index + 1}\n10.8.0.{other} node{other}\n"
    (folder / f"hosts{index}").write_text(names)
    script = (
        f"hostname node{index + 1} && mount --bind {folder}/hosts{index} /etc/hosts && ip link set lo up && "
        f'until [ -e {folder}/cable ]; do sleep 0.05; done; exec "$@"'
    )
    with (folder / f"out{index}").open("wb") as output:
        return subprocess.Popen(
            ["unshare", "--net", "--mount", "--uts", "sh", "-c", script, "sh", sys.executable, "-c", RANK, str(index)],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={key: value for key, value in os.environ.items() if key != "GLOO_SOCKET_IFNAME"},
        )


def lay_cable(folder: Path, pids: list[int]) -> None:
    ip = f"link add eth0 netns {pids[0]} type veth peer name eth0 netns {pids[1]}\n"
    subprocess.run(["ip", "-batch", "-"], input=ip, text=True, check=True)
    for index, pid in enumerate(pids):
        inside = ["nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-batch", "-"]
        ip = f"address add 10.8.0.{index + 1}/24 dev eth0\nlink set eth0 up\n"
        subprocess.run(inside, input=ip, text=True, check=True)
    (folder / "cable").touch()


def network(process: subprocess.Popen[bytes]) -> str:
    return os.readlink(f"/proc/{process.pid}/ns/net")


def test_gloo_takes_the_cable_though_each_nodes_name_is_its_loopback(tmp_path: Path) -> None:
    if os.geteuid() != 0 or subprocess.run(["unshare", "--net", "--mount", "--uts", "true"], check=False).returncode:
        pytest.skip("only root can make a network")
    here, nodes = os.readlink("/proc/self/ns/net"), [node(tmp_path, index) for index in range(2)]
    try:
        until(lambda: here not in map(network, nodes), "both are in a network of their own", 10.0)
        lay_cable(tmp_path, [one.pid for one in nodes])
        codes = [one.wait(timeout=120.0) for one in nodes]
    finally:
        for one in nodes:
            one.kill()
            one.wait()
    said = [(tmp_path / f"out{index}").read_text() for index in range(2)]
    assert codes == [0, 0], said
    assert [text.splitlines()[-1] for text in said] == ["eth0 3.0"] * 2
