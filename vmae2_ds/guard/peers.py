"""Notices that another rank is gone, within seconds and without a launcher: each rank holds a connection to rank 0.

The kernel closes a process's connections however it ends, and answers for a live one however busy it is; so nothing is sent
and no thread wakes while all is well. A host that is down or cut off is noticed by TCP's keep-alive.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType

import torch

from vmae2_ds.dist import Ranks
from vmae2_ds.errors import EXIT_HUNG, AgreedStop, RankLost

log = logging.getLogger(__name__)

MEET_S = 60.0
"""What connecting may take."""
HELLO_S = 5.0
KEEP_ALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 25_000}
"""A host that answers nothing for 25 s is gone. Named as in <netinet/tcp.h>; systems that lack one have their own limits."""
LAUNCHER_LOOKS_S = 3.0
"""Launchers look once a second which rank is gone and hand on its exit code: the others wait for that."""
END_S = 5.0
"""A rank that still waits for the lost one so many seconds later is ended (HangSwitch.end_in), by this thread if by nobody."""
BYE = b"."
NO_MORE_FILES = (errno.EMFILE, errno.ENFILE)
"""Why `accept` fails where a process, or the host, may open no more: at once, and each time it is called."""

_open: set[socket.socket] = set()


def _close_copies() -> None:
    """Close a fork's copies of the connections: a loader worker that outlives its rank would hold them open."""
    for connection in _open:
        connection.close()


os.register_at_fork(after_in_child=_close_copies)


class PeerWatch:
    """A context: while it lasts, a rank that ends without leaving it ends all others with EXIT_HUNG.

    A broken collective leaves it as RankLost, which names the rank that is gone. `any_failed` tells (on all ranks alike)
    that some rank could not connect, and nobody is watched.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.on_loss: Callable[[str], None] = lambda why: None
        """Told once, from another thread, who is gone."""
        self._ranks = ranks
        self._why: str | None = None
        self._noticed = threading.Event()
        self._leaving = False
        self._peers: dict[socket.socket, str] = {}
        self.any_failed = False
        if ranks.size > 1:
            self.any_failed = ranks.any(not self._connect())
            if self.any_failed:
                self._close(b"")
            else:
                threading.Thread(target=self._watch, name="peers", daemon=True).start()

    def __enter__(self) -> PeerWatch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        lost = isinstance(error, RuntimeError) and (self._why is not None or is_broken_collective(error))
        if lost:
            ends = time.monotonic() + LAUNCHER_LOOKS_S
            self._noticed.wait(LAUNCHER_LOOKS_S)
            time.sleep(max(0.0, ends - time.monotonic()))
        self._close(BYE if error is None or isinstance(error, AgreedStop) else b"")
        if lost:
            raise RankLost(
                f"{self._why or 'another rank is gone, or does not answer'} ({str(error).partition('. ')[0]}); the steps since "
                "the last checkpoint are lost; the same command goes on from there"
            ) from error

    def _connect(self) -> bool:
        """Whether this rank is connected to rank 0, or all are to this one."""
        listener = socket.create_server(("", 0), backlog=self._ranks.size) if self._ranks.rank == 0 else None
        port, secret = self._ranks.from_first(lambda: (_port_of(listener), secrets.token_hex(16)))
        if listener is None:
            return self._connect_to_first(port, secret)
        deadline = time.monotonic() + MEET_S
        with listener:
            while len(self._peers) < self._ranks.size - 1 and time.monotonic() < deadline:
                listener.settimeout(max(0.1, deadline - time.monotonic()))
                try:
                    connection, _ = listener.accept()
                    connection.settimeout(HELLO_S)
                    said, _, name = connection.recv(1024).decode(errors="replace").partition(" ")
                except OSError as error:
                    if error.errno in NO_MORE_FILES:
                        log.warning("rank 0 cannot watch %d ranks: %s (ulimit -n)", self._ranks.size, error.strerror)
                        break
                    continue
                if secrets.compare_digest(said.encode(), secret.encode()):
                    self._keep(connection, name)
                else:
                    connection.close()
        return len(self._peers) == self._ranks.size - 1

    def _connect_to_first(self, port: int, secret: str) -> bool:
        try:
            connection = socket.create_connection((os.environ["MASTER_ADDR"], port), MEET_S)
            connection.sendall(f"{secret} rank {self._ranks.rank} on {socket.gethostname()}".encode())
        except OSError:
            return False
        self._keep(connection, f"rank 0 on {os.environ['MASTER_ADDR']}")
        return True

    def _keep(self, connection: socket.socket, name: str) -> None:
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEP_ALIVE.items():
            if hasattr(socket, option):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self._peers[connection] = name
        _open.add(connection)

    def _watch(self) -> None:
        """The thread: sleeps until a connection says something, which is most likely its end."""
        # once left, it lets go of the connections, which would else wait for a collection of garbage
        with selectors.DefaultSelector() as events:
            for connection in self._peers:
                events.register(connection, selectors.EVENT_READ, connection)
            while events.get_map() and not self._leaving:
                for key, _ in events.select():
                    try:
                        news, cause = key.data.recv(1024), ""
                    except OSError as error:
                        news, cause = b"", f" ({error.strerror})"
                    if self._leaving:
                        return
                    if news != BYE:
                        self._end(news.decode() or f"{self._peers[key.data]} is gone{cause}")
                        return
                    events.unregister(key.data)

    def _end(self, why: str) -> None:
        self._why = why
        self._noticed.set()
        log.warning("%s: this rank ends too", why)
        for connection in self._peers:
            _send(connection, why.encode())  # from rank 0 to all; to rank 0 it says nothing new
        self.on_loss(why)
        time.sleep(END_S + 2)
        if not self._leaving:
            os._exit(EXIT_HUNG)

    def _close(self, last_word: bytes) -> None:
        self._leaving = True
        for connection in self._peers:
            _send(connection, last_word)
            _open.discard(connection)
            with contextlib.suppress(OSError):  # the other end is gone
                connection.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._peers = {}


def is_broken_collective(error: BaseException) -> bool:
    """Whether torch says that another rank does not answer: gloo raises plain RuntimeErrors with its file's name in them."""
    return isinstance(error, torch.distributed.DistError) or any(word in str(error) for word in ("gloo", "NCCL"))


def _port_of(listener: socket.socket | None) -> int:
    assert listener is not None, "only rank 0 is asked"
    return listener.getsockname()[1]


def _send(connection: socket.socket, word: bytes) -> None:
    with contextlib.suppress(OSError):  # it is gone, which its reader notices
        connection.sendall(word)
