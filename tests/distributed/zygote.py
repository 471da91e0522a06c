"""Ranks without their five seconds of imports: a process that has torch and DeepSpeed loaded forks one for each request.

A forked rank is a process like any other: it has its own environment, log, signals and exit code, and can be killed. What a
launcher does to get that far is tested where launchers are (test_launchers.py).
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import selectors
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.distributed.ranks import rank_environment
from vmae2_ds.engine.lean_import import import_deepspeed
from vmae2_ds.host import free_port

REPOSITORY = Path(__file__).parents[2]
PRELOADED = (
    *("vmae2_ds.cli.main", "vmae2_ds.train.session", "vmae2_ds.train.pretrain", "vmae2_ds.train.finetune"),
    *("vmae2_ds.model.stochastic_depth", "timm.data.auto_augment", "torch._dynamo", "setuptools"),
)
"""What runs import beside DeepSpeed; its start asks for the last two."""


class Rank:
    """A started rank, used as a subprocess.Popen is."""

    def __init__(self, zygote: Zygote, pid: int) -> None:
        self._zygote, self.pid = zygote, pid

    def poll(self) -> int | None:
        """The exit code, -N for signal N; None while it runs."""
        return self._zygote.codes.get(self.pid)

    def wait(self, timeout: float = 240) -> int:
        """Its exit code; raises TimeoutError, and kills it, where it does not end in `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"process {self.pid} did not end within {timeout} s")
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


class Zygote:
    """The client's side."""

    def __init__(self) -> None:
        environment = {**os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.distributed.zygote"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, cwd=REPOSITORY, env=environment,
        )  # fmt: skip
        self.codes: dict[int, int] = {}
        self._started: list[int] = []
        self._news = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def start(self, words: list[str], env: dict[str, str], log: Path, module: str = "vmae2_ds") -> Rank:
        """Run `python -m module WORDS` with the environment `env` in the repository; its output is added to `log`."""
        assert self._process.stdin is not None
        with self._news:
            before = len(self._started)
            request = {"module": module, "words": [str(word) for word in words], "env": env, "log": str(log)}
            self._process.stdin.write(json.dumps(request) + "\n")
            came = self._news.wait_for(
                lambda: len(self._started) > before, timeout=240
            )  # the first waits for the imports
            assert came, "the zygote did not start a process within 240 s"
            return Rank(self, self._started[before])

    def close(self) -> None:
        """End the process and what it started. It is told: a process forked from this one may still hold the pipe open."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.close()
        self._process.wait(240)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            news = json.loads(line)
            with self._news:
                if "code" in news:
                    self.codes[news["pid"]] = news["code"]
                else:
                    self.codes.pop(news["pid"], None)  # of an earlier process: numbers come again
                    self._started.append(news["pid"])
                self._news.notify_all()


def run_forked(zygote: Zygote, module: str, argument: Any, out: Path, ranks: int) -> Any:
    """ranks.run_ranks without the imports: `python -m module ARGUMENT OUT` as `ranks` ranks, and what OUT then holds."""
    port, logs = free_port(), [out.with_suffix(f".rank{rank}.log") for rank in range(ranks)]
    words = [json.dumps(argument), str(out)]
    processes = [zygote.start(words, rank_environment(rank, ranks, port), log, module) for rank, log in enumerate(logs)]
    codes = [process.wait(400) for process in processes]
    assert not any(codes), "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in logs)
    return json.loads(out.read_text())


def serve() -> dict | None:
    """Fork a process for every line of standard input. Returns the request in the child, None in the parent at the end."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    events = selectors.DefaultSelector()
    events.register(sys.stdin.fileno(), selectors.EVENT_READ)
    events.register(woken, selectors.EVENT_READ)
    running: set[int] = set()
    unread = b""
    while True:
        for key, _ in events.select():
            if key.fd == woken:
                os.read(woken, 1024)
                while running and (ended := os.waitpid(-1, os.WNOHANG))[0]:
                    running.discard(ended[0])
                    _tell({"pid": ended[0], "code": os.waitstatus_to_exitcode(ended[1])})
                continue
            more = os.read(sys.stdin.fileno(), 1 << 20)
            if not more or more == b"\n":
                for pid in running:
                    os.kill(pid, signal.SIGKILL)
                return None
            *lines, unread = (unread + more).split(b"\n")
            for line in lines:
                pid = os.fork()
                if not pid:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    events.close()
                    return json.loads(line)
                running.add(pid)
                _tell({"pid": pid})


def _tell(news: dict) -> None:
    os.write(1, (json.dumps(news) + "\n").encode())


def become(request: dict) -> None:
    """Turn this forked process into `python -m module WORDS`; a run writes no report."""
    from vmae2_ds.train import session

    os.environ.clear()
    os.environ.update(request["env"])
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, target)
    session.write_report = lambda folder: (
        folder
    )  # its curves take as long to draw as the steps; test_launchers.py has one
    sys.argv = [request["module"], *request["words"]]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    for name in PRELOADED:
        __import__(name)
    import_deepspeed()
    gc.freeze()  # else the collections of every fork, the one at its end too, would copy all of these pages
    asked = serve()
    if asked is not None:
        become(asked)
