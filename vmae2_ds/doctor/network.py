"""The network as ranks use it: the port at which they meet, this host's name, loopback, and the variables of NCCL."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
from collections.abc import Mapping

from vmae2_ds.dist import DEFAULT_PORT, SLURM_PORTS
from vmae2_ds.doctor.finding import Finding, green, red, yellow
from vmae2_ds.doctor.needs import Needs

SLOWED_BY = {
    "NCCL_P2P_DISABLE": "GPUs of a host then talk through host memory",
    "NCCL_SHM_DISABLE": "ranks of a host then talk through the network",
    "NCCL_IB_DISABLE": "hosts then talk over TCP where there is InfiniBand",
    "CUDA_LAUNCH_BLOCKING": "every kernel is then waited for",
    "TORCH_DISTRIBUTED_DEBUG": "every collective is then checked",
}
"""Variables that slow a run where they are on."""
_OFF = {"", "0", "off", "none", "info"}
INTERFACES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
TOLD = ("NCCL_", "GLOO_", "TORCH_NCCL_", "CUDA_", "OMP_NUM_THREADS", "DS_ACCELERATOR", "TORCH_DISTRIBUTED_DEBUG")


def look_at_port(needs: Needs, env: Mapping[str, str] = os.environ) -> list[Finding]:
    """Can the port at which the ranks meet be bound here?"""
    del needs
    port = _port(env)
    if port is None:
        said = env.get("MASTER_PORT", "")
        return [red("port", f"MASTER_PORT={said} is no port", f"export MASTER_PORT={DEFAULT_PORT}", port=None)]
    if (why := _why_not_bound(port)) is None:
        return [green("port", f"{port} can be bound", port=port)]
    with socket.socket() as other:
        other.bind(("", 0))
        free = other.getsockname()[1]
    remedy = f"export MASTER_PORT={free} (deepspeed, torchrun and vmae2 launch hosts: --master_port {free})"
    return [red("port", f"{port} cannot be bound ({why}): another run, or one that did not end", remedy, port=port)]


def _port(env: Mapping[str, str]) -> int | None:
    job, said = env.get("SLURM_JOB_ID", ""), env.get("MASTER_PORT", "")
    if not said:
        return SLURM_PORTS + int(job) % 10_000 if job.isdigit() else DEFAULT_PORT
    return int(said) if said.isdigit() and 0 < int(said) < 2**16 else None


def _why_not_bound(port: int) -> str | None:
    try:
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as torch's store does
            one.bind(("", port))
            one.listen(1)
    except OSError as error:
        return error.strerror
    return None


def look_at_loopback(needs: Needs) -> list[Finding]:
    """Does a connection to 127.0.0.1 arrive? Ranks on one host meet there."""
    del needs
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname(), timeout=2),
            contextlib.closing(server.accept()[0]),
        ):
            pass
    except OSError as error:
        return [red("loopback", f"127.0.0.1 cannot be reached ({error.strerror or error})", "ip link set lo up")]
    return [green("loopback", "127.0.0.1 can be reached")]


def look_at_host_name(needs: Needs) -> list[Finding]:
    """Does this host's name lead to an address that another host could use?"""
    del needs
    name = platform.node()
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        remedy = "echo \"$(hostname -I | cut -d' ' -f1) $(hostname)\" >> /etc/hosts, or export GLOO_SOCKET_IFNAME=eth0"
        return [yellow("host_name", f"{name} does not resolve ({error})", remedy, name=name, addresses=[])]
    addresses = sorted({str(entry[4][0]) for entry in found})
    value = f"{name} is {', '.join(addresses)}"
    if all(address.startswith("127.") or address == "::1" for address in addresses):
        value += ": other hosts cannot reach it by that"
        remedy = "for runs on several hosts: --master-addr ADDRESS, and export GLOO_SOCKET_IFNAME=eth0"
        return [yellow("host_name", value, remedy, name=name, addresses=addresses)]
    return [green("host_name", value, name=name, addresses=addresses)]


def look_at_variables(needs: Needs, env: Mapping[str, str] = os.environ) -> list[Finding]:
    """Variables that NCCL, gloo and torch read."""
    del needs
    told = {name: value for name, value in sorted(env.items()) if name.startswith(TOLD)}
    value = " ".join(f"{name}={text}" for name, text in told.items()) or "none set"
    there = [name for _, name in socket.if_nameindex()]
    for name in INTERFACES:
        lost = [one for one in _interfaces(env.get(name, "")) if not any(each.startswith(one) for each in there)]
        if lost:
            remedy = f"unset {name}, or name one of {', '.join(there)}"
            return [red("variables", f"{name} names {', '.join(lost)}, which is not here", remedy, variables=told)]
    if env.get("DS_ACCELERATOR") == "cpu" and os.path.exists("/dev/nvidia0"):
        return [yellow("variables", f"{value}: the GPUs are left alone", "unset DS_ACCELERATOR", variables=told)]
    slow = [name for name in SLOWED_BY if env.get(name, "").lower() not in _OFF]
    if slow:
        why = "; ".join(f"{name}={env[name]}: {SLOWED_BY[name]}" for name in slow)
        return [yellow("variables", why, f"unset {' '.join(slow)}", variables=told)]
    return [green("variables", value, variables=told)]


def _interfaces(said: str) -> list[str]:
    """Beginnings of names, as NCCL reads them; `=name` is exact and `^name` leaves out, which nothing here checks."""
    return [] if said.startswith("^") else [one for one in said.lstrip("=").split(",") if one]
