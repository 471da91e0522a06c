"""DeepSpeed imported without two things that take half of its seconds and that no run uses.

MLflow, where it is installed, is imported for DeepSpeed's autotuner, which only its own launcher starts. torch's compiler
back end is imported for DeepSpeed's Muon, whose functions are compiled as they are defined; every start of ZeRO defines
them, to ask whether the optimizer is that Muon, and it never is (engine/muon.py says why).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

from vmae2_ds.hidden_packages import hidden


@functools.cache
def import_deepspeed() -> None:
    """Import DeepSpeed, and its Muon, once in a process; raises ImportError where it is not installed."""
    with hidden("mlflow"):
        import deepspeed
    with _compiled_when_called(deepspeed.runtime.compiler), contextlib.suppress(ImportError):
        import deepspeed.runtime.zero.muon.original_muon


@contextlib.contextmanager
def _compiled_when_called(compiler: Any) -> Iterator[None]:
    """What is decorated with DeepSpeed's `compile(...)` meanwhile is compiled at its first call."""
    before = compiler.compile
    compiler.compile = lambda *args, **kwargs: functools.partial(_lazily, before(*args, **kwargs))
    try:
        yield
    finally:
        compiler.compile = before


def _lazily(compile_it: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    compiled = functools.cache(lambda: compile_it(function))

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        return compiled()(*args, **kwargs)

    return called
