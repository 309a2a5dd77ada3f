"""The commands of devcluster."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import configs
import daemons
import machine
import network
import nodes
from layout import (
    MOST_NODES,
    Failed,
    Folder,
    Options,
    WrongUse,
    folder_from_environment,
    node_address,
    refuse_hidden_folder,
)
from processes import kill, living_pid, recorded_names, wait_for


def main(arguments: Sequence[str]) -> int:
    given = _parser().parse_args(arguments)
    os.umask(0o022)  # ordinary users read the configuration
    try:
        folder = folder_from_environment()
        if given.command == "status":
            return _status(folder, given.json)
        machine.require_rights()
        with _one_at_a_time():
            return _change(folder, given)
    except WrongUse as error:
        print(f"devcluster: {error}", file=sys.stderr)
        return 2
    except (Failed, OSError) as error:
        print(f"devcluster: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("devcluster: interrupted; `devcluster down` removes what was started", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="devcluster", description="A real Slurm cluster on this one machine.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    up = commands.add_parser("up", help="bring the cluster up and wait until every node is idle")
    up.add_argument("--nodes", type=_number(1, MOST_NODES), default=4, metavar="N", help="default 4")
    up.add_argument("--kill-wait", type=_number(1, 3600), default=5, metavar="S", help="KillWait, default 5")
    up.add_argument(
        "--slurmd-timeout", type=_number(1, 3600), default=15, metavar="S", help="SlurmdTimeout, default 15"
    )
    up.add_argument("--grace", type=_number(0, 3600), default=10, metavar="S", help="GraceTime of low, default 10")
    up.add_argument("--no-user-signal", action="store_true", help="a preempted job gets no user signal (--signal)")
    up.add_argument("--no-accounting", action="store_true", help="no slurmdbd and MariaDB: faster, but no sacct")
    commands.add_parser("down", help="end everything and leave nothing behind")
    status = commands.add_parser("status", help="say what runs (exit code 1: no complete cluster)")
    status.add_argument("--json", action="store_true", help="for programs")
    for name, text in (
        ("crash", "kill every process of a node at once"),
        ("restart", "start a crashed node again and wait until Slurm uses it"),
        ("cut", "take a node off the network; its processes run on"),
        ("heal", "put a node back on the network"),
    ):
        commands.add_parser(name, help=text).add_argument("node", metavar="NODE", help="node1, node2, ...")
    return parser


def _number(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
        return int(text)

    return parse


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """A lock that leaves no file behind and ends with this process: a name among the kernel's abstract sockets."""
    with socket.socket(socket.AF_UNIX) as lock:

        def taken() -> bool:
            try:
                lock.bind("\0distft-devcluster")
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                return False
            return True

        wait_for("another devcluster command ended", taken, 120)
        yield


def _change(folder: Folder, given: argparse.Namespace) -> int:
    if given.command == "up":
        options = Options(
            nodes=given.nodes,
            kill_wait=given.kill_wait,
            slurmd_timeout=given.slurmd_timeout,
            grace=given.grace,
            user_signal=not given.no_user_signal,
            accounting=not given.no_accounting,
        )
        up(folder, options)
    elif given.command == "down":
        down(folder)
    else:
        _of_node(folder, given.command, given.node)
    return 0


def up(folder: Folder, options: Options) -> None:
    began = time.monotonic()
    other = network.owner()
    if other not in (None, str(folder.root)) and Path(str(other)).exists():
        raise WrongUse(f"a cluster is up in {other}; end it with `DISTFT_DEVCLUSTER={other} devcluster down`")
    refuse_hidden_folder(folder)
    if folder.options() == options and _shared_daemons_live(folder, options):
        _mend(folder, options)
        word = "is up already"
    else:
        down(folder)
        try:
            _build(folder, options)
        except WrongUse:  # the machine lacks something: nothing to look at in the logs
            down(folder)
            raise
        word = "is up"
    seconds = time.monotonic() - began
    print(f"devcluster: {word}, with {options.nodes} nodes ({seconds:.1f} s)", file=sys.stderr)
    print(f"export SLURM_CONF={folder.slurm_conf}")


def _shared_daemons_live(folder: Folder, options: Options) -> bool:
    return all(living_pid(folder, name) is not None for name in daemons.names(options))


def _build(folder: Folder, options: Options) -> None:
    machine.install_missing(options.accounting)
    folder.create()
    configs.write_all(folder, options)
    tables = daemons.begin_database(folder) if options.accounting else None
    network.build(folder, options)
    daemons.start_munged(folder)
    if tables is not None:
        daemons.start_accounting(folder, tables)
    daemons.start_controller(folder)
    since = time.time()
    for node in options.node_names():
        nodes.boot(folder, node)
    nodes.wait_until_usable(folder, options.node_names(), since)
    folder.mark_complete(options)


def _mend(folder: Folder, options: Options) -> None:
    """An `up` of a cluster that is up leaves no node crashed or cut off."""
    began = time.time()
    crashed = [node for node in options.node_names() if living_pid(folder, node) is None]
    for node in options.node_names():
        network.set_link(node, "up")
    for node in crashed:
        nodes.boot(folder, node)
    nodes.wait_until_usable(folder, crashed, began)
    nodes.wait_until_usable(folder, options.node_names(), 0)


def down(folder: Folder) -> None:
    nodes.end_jobs(folder)
    kill(folder, recorded_names(folder))
    network.tear_down(folder)
    folder.remove()


def _of_node(folder: Folder, command: str, node: str) -> None:
    options = folder.options()
    if options is None:
        raise WrongUse("the cluster is not up; `devcluster up` starts it")
    if node not in options.node_names():
        raise WrongUse(f"there is no {node!r}; the nodes are node1 to node{options.nodes}")
    lives, cut = living_pid(folder, node) is not None, network.cut_off(node)
    if command == "crash":
        if not lives:
            raise WrongUse(f"{node} is down already")
        nodes.crash(folder, node)
    elif command == "restart":
        if lives:
            raise WrongUse(f"{node} runs; only a crashed node can be restarted")
        if cut:
            raise WrongUse(f"{node} is cut off, so Slurm could not see it come back; heal it first")
        since = time.time()
        nodes.boot(folder, node)
        nodes.wait_until_usable(folder, [node], since)
    else:
        network.set_link(node, "down" if command == "cut" else "up")


def _status(folder: Folder, as_json: bool) -> int:
    options = folder.options()
    report = {"up": False, "folder": str(folder.root), "slurm_conf": str(folder.slurm_conf), "options": None}
    lines: list[dict[str, str | int | None]] = []
    shared: dict[str, int | None] = {}
    if options is not None:
        shared = {name: living_pid(folder, name) for name in daemons.names(options)}
        report |= {"up": all(shared.values()), "options": dataclasses.asdict(options)}
        lines = _node_lines(folder, options, bool(shared["slurmctld"]))
    if as_json:
        print(json.dumps({**report, "daemons": shared, "nodes": lines}, indent=1))
    elif options is None:
        print(f"no cluster is up in {folder.root}")
    else:
        for name, pid in shared.items():
            print(f"{name:10} {'up' if pid else 'down':5} pid {pid or '-'}")
        for line in lines:
            print("{name:10} {condition:5} pid {pid} {address} slurm says {slurm}".format(**line))
    return 0 if report["up"] else 1


def _node_lines(folder: Folder, options: Options, ask_slurm: bool) -> list[dict[str, str | int | None]]:
    said: dict[str, tuple[str, int]] = {}
    if ask_slurm:  # without a controller the question would hang
        with contextlib.suppress(Failed):
            said = nodes.states(folder)
    lines: list[dict[str, str | int | None]] = []
    for node in options.node_names():
        pid = living_pid(folder, node)
        condition = "down" if pid is None else "cut" if network.cut_off(node) else "up"
        slurm = said[node][0] if node in said else None
        lines.append({"name": node, "condition": condition, "pid": pid, "address": node_address(node), "slurm": slurm})
    return lines
