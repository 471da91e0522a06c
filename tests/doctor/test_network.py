"""Ports that are taken, names that lead nowhere, interfaces that are not there."""

from __future__ import annotations

import socket

import pytest

from vmae2_ds.doctor import network
from vmae2_ds.doctor.needs import Needs


def test_a_port_that_is_taken_is_red_with_one_that_is_free(needs: Needs) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        (found,) = network.look_at_port(needs, {"MASTER_PORT": str(port)})
    assert (found.light, found.figures["port"]) == ("red", port)
    assert found.remedy is not None
    free = int(found.remedy.split("MASTER_PORT=")[1].split()[0])
    assert free != port
    assert network.look_at_port(needs, {"MASTER_PORT": str(port)})[0].light == "green"


@pytest.mark.parametrize(
    ("env", "port"),
    [
        ({}, 29500),
        ({"SLURM_JOB_ID": "123456"}, 23456),
        ({"MASTER_PORT": "7"}, 7),
        ({"MASTER_PORT": "no"}, None),
        ({"MASTER_PORT": "70000"}, None),
    ],
)
def test_the_port_is_the_run_s(env: dict[str, str], port: int | None, needs: Needs) -> None:
    assert network.look_at_port(needs, env)[0].figures["port"] == port


@pytest.mark.parametrize(
    ("addresses", "light"),
    [(["10.0.0.7"], "green"), (["127.0.1.1", "::1"], "yellow"), (["127.0.1.1", "10.0.0.7"], "green"), (None, "yellow")],
)
def test_a_name_has_to_lead_to_where_others_can_go(
    addresses: list[str] | None, light: str, needs: Needs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(name: str, *rest: object, **more: object) -> list[object]:
        if addresses is None:
            raise socket.gaierror(-2, "Name or service not known")
        return [(0, 0, 0, "", (address, 0)) for address in addresses]

    monkeypatch.setattr(network.socket, "getaddrinfo", resolve)
    (found,) = network.look_at_host_name(needs)
    assert found.light == light
    assert found.figures["addresses"] == sorted(addresses or [])


@pytest.mark.parametrize(
    ("env", "light", "part"),
    [
        ({}, "green", "none set"),
        ({"NCCL_DEBUG": "INFO"}, "green", "NCCL_DEBUG=INFO"),
        ({"NCCL_P2P_DISABLE": "1"}, "yellow", "host memory"),
        ({"NCCL_IB_DISABLE": "0"}, "green", "NCCL_IB_DISABLE=0"),
        ({"NCCL_SOCKET_IFNAME": "lo"}, "green", "=lo"),
        ({"NCCL_SOCKET_IFNAME": "ib77"}, "red", "ib77, which is not here"),
        ({"GLOO_SOCKET_IFNAME": "lo,eth99"}, "red", "eth99"),
        ({"NCCL_SOCKET_IFNAME": "^docker0"}, "green", "^docker0"),
    ],
)
def test_variables_that_slow_or_break_a_run(env: dict[str, str], light: str, part: str, needs: Needs) -> None:
    (found,) = network.look_at_variables(needs, env)
    assert (found.light, part in found.value) == (light, True), found
    assert found.figures["variables"] == env


def test_loopback_is_reached_here_and_its_absence_is_red(needs: Needs, monkeypatch: pytest.MonkeyPatch) -> None:
    assert network.look_at_loopback(needs)[0].light == "green"

    def refuse(*words: object, **more: object) -> None:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(network.socket, "create_connection", refuse)
    (found,) = network.look_at_loopback(needs)
    assert (found.light, found.remedy) == ("red", "ip link set lo up")
