"""A rank that ends without a goodbye is told to all others; three ranks as threads, over real connections."""

from __future__ import annotations

import os
import queue
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from vmae2_ds.dist import Ranks
from vmae2_ds.errors import EXIT_HUNG, Preempted, RankLost
from vmae2_ds.guard import peers
from vmae2_ds.guard.peers import PeerWatch

RANKS = 3


class Meeting:
    """Where three threads wait for each other."""

    def __init__(self) -> None:
        self.barrier, self.box = threading.Barrier(RANKS), queue.SimpleQueue[Any]()
        self.flags: list[bool] = []


@dataclass(frozen=True)
class ThreadRanks(Ranks):
    """Agreement between threads."""

    meeting: Meeting = field(default_factory=Meeting)

    def from_first(self, function: Callable[[], Any]) -> Any:
        if self.rank == 0:
            value = function()
            for _ in range(RANKS):
                self.meeting.box.put(value)
        return self.meeting.box.get(timeout=30)

    def any(self, flag: bool) -> bool:
        self.meeting.flags.append(flag)
        self.meeting.barrier.wait(30)
        return any(self.meeting.flags)


class Watches:
    """The watches of all ranks, what they were told, and the exit codes of threads that ended their process."""

    def __init__(self) -> None:
        meeting = Meeting()
        self.told: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()
        self.watches: dict[int, PeerWatch] = {}

        def start(rank: int) -> None:
            self.watches[rank] = PeerWatch(ThreadRanks(rank, rank, RANKS, meeting=meeting))
            self.watches[rank].on_loss = lambda why: self.told.put((rank, why))

        threads = [threading.Thread(target=start, args=(rank,), name=str(rank)) for rank in range(RANKS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> queue.SimpleQueue[int]:
    codes: queue.SimpleQueue[int] = queue.SimpleQueue()
    monkeypatch.setattr(peers, "END_S", -2.0)  # the fallback comes at once
    monkeypatch.setattr(peers, "LAUNCHER_LOOKS_S", 0.0)
    monkeypatch.setattr(os, "_exit", codes.put)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    return codes


@pytest.mark.parametrize("lost", [0, 2])
def test_all_others_learn_who_is_gone(lost: int, exits: queue.SimpleQueue[int]) -> None:
    ranks = Watches()
    assert not any(watch.any_failed for watch in ranks.watches.values())
    ranks.watches[lost].__exit__(ValueError, ValueError("a defect"), None)
    others = set(range(RANKS)) - {lost}
    told = [ranks.told.get(timeout=30) for _ in others]
    assert {rank for rank, _ in told} == others
    where = "127.0.0.1" if lost == 0 else socket.gethostname()
    assert {why for _, why in told} == {f"rank {lost} on {where} is gone"}
    assert [exits.get(timeout=30) for _ in others] == [EXIT_HUNG] * len(others)
    for rank in others:
        with pytest.raises(RankLost, match=f"rank {lost} on .* is gone .*Connection closed by peer"):
            ranks.watches[rank].__exit__(RuntimeError, RuntimeError("[gloo/pair.cc:1] Connection closed by peer"), None)


def test_who_leaves_in_good_order_is_not_missed(exits: queue.SimpleQueue[int]) -> None:
    ranks = Watches()
    ranks.watches[1].__exit__(None, None, None)
    ranks.watches[0].__exit__(Preempted, Preempted("all together"), None)
    ranks.watches[2].__exit__(None, None, None)
    for thread in threading.enumerate():
        if thread.name == "peers":
            thread.join(30)
    assert ranks.told.empty()
    assert exits.empty()


def test_a_defect_stays_what_it_is(exits: queue.SimpleQueue[int]) -> None:
    with pytest.raises(RuntimeError, match="shape mismatch"), PeerWatch(Ranks()):
        raise RuntimeError("shape mismatch")
    assert exits.empty()


def test_a_rank_that_cannot_connect_turns_it_off_everywhere(
    exits: queue.SimpleQueue[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "MEET_S", 1.0)
    connect = socket.create_connection

    def refused(*args: Any) -> socket.socket:
        if threading.current_thread().name == "2":
            raise ConnectionRefusedError
        return connect(*args)

    monkeypatch.setattr(socket, "create_connection", refused)
    ranks = Watches()
    assert all(watch.any_failed for watch in ranks.watches.values())
    ranks.watches[1].__exit__(None, None, None)
    assert ranks.told.empty()
