"""Programs that are connected to the ports of a run without belonging to it."""

import os
import socket
import subprocess
from collections import namedtuple

import psutil
import pytest

from gpt2x.runtime.strangers import describe, strangers

Address = namedtuple("Address", "ip port")
Socket = namedtuple("Socket", "laddr raddr status pid")
RUN = {10, 11}


def at(port: int, ip: str = "127.0.0.1") -> Address:
    return Address(ip, port)


def both_ends(port: int, other: int, pid: int | None, *, status: str = "ESTABLISHED", owner: int | None = 10) -> list:
    """A connection of process `pid` from the port `other` to a port of process `owner`."""
    return [Socket(at(port), at(other), "ESTABLISHED", owner), Socket(at(other), at(port), status, pid)]


def said(*sockets: Socket) -> list[str]:
    listening = [Socket(at(port), (), "LISTEN", pid) for port, pid in ((8118, 10), (8374, 11), (9000, 99))]
    lines = describe([*listening, *sockets], RUN, lambda pid: f"program {pid}").splitlines()
    assert not lines or lines.pop(0) == ""
    return [line.split(" and does not belong")[0].strip() for line in lines]


def test_who_is_named():
    assert said(*both_ends(8118, 50_000, 77)) == ["process 77 (program 77) is connected to port 8118 of this run"]
    assert said(*both_ends(8374, 50_000, None, owner=None)) == [  # not accepted yet
        "a process of a different user or container is connected to port 8374 of this run"
    ]
    many = [end for number in range(200) for end in both_ends(8118, 50_000 + number, 77)]
    assert said(*many, *both_ends(8374, 60_000, 78)) == [
        "process 77 (program 77) is connected to port 8118 of this run 200 times",
        "process 78 (program 78) is connected to port 8374 of this run",
    ]


@pytest.mark.parametrize(
    "sockets",
    [
        [],
        both_ends(8118, 50_000, 11),  # of the run
        both_ends(9000, 50_000, 77, owner=99),  # two other programs
        both_ends(8118, 50_000, None, status="FIN_WAIT2"),  # what a killed process of the run leaves
        [Socket(at(8118, "10.0.0.1"), at(50_000, "10.0.0.2"), "ESTABLISHED", 10)],  # a different node
        [Socket(at(50_000, "10.0.0.1"), at(8118, "10.0.0.2"), "ESTABLISHED", 77)],  # the same port elsewhere
    ],
)
def test_who_is_not_named(sockets):
    assert said(*sockets) == []


def test_a_real_connection():
    """A socket belongs to whoever holds it: to this process, then only to another."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
        assert strangers() == ""
        with subprocess.Popen(["sleep", "60"], pass_fds=[client.fileno()]) as sleeping:
            client.close()
            assert strangers() == "", "what this process has started is of the run"
            line = describe(psutil.net_connections("tcp"), {os.getpid()}, lambda _: "sleep 60")
            sleeping.kill()
        accepted.close()
    assert f" process {sleeping.pid} (sleep 60) is connected to port {port} of this run and" in line
