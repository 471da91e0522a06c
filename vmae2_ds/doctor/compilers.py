"""nvcc and a C++ compiler: what torch.compile, DeepSpeed's ops and flash_attn's build ask for."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from vmae2_ds.doctor.ask import ask
from vmae2_ds.doctor.finding import Finding, green, red, yellow
from vmae2_ds.doctor.needs import Needs
from vmae2_ds.host import cxx_compiler

LIMIT_S = 5.0


def look_at_compiler(needs: Needs, env: Mapping[str, str] = os.environ) -> list[Finding]:
    """A C++ compiler and Python's headers; torch.compile needs both, on a GPU too (triton builds its launchers)."""
    names, found = cxx_compiler(env)
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    answer = ask([found, "--version"], LIMIT_S) if found else None
    works = answer is not None and answer.code == 0
    said = (answer.out.splitlines() or [""])[0] if answer is not None else ""
    missing = [] if works else [f"{' or '.join(names)} {'does not run' if found else 'is not here'}"]
    missing += [] if headers.exists() else [f"Python.h is not in {headers.parent}"]
    figures = {"path": found, "version": said or None, "python_headers": headers.exists()}
    if not missing:
        return [green("compiler", f"{said} ({found})", **figures)]
    remedy = "apt-get install g++ python3-dev"
    if needs.compile == "inductor":
        return [red("compiler", f"{' and '.join(missing)}: --train.compile inductor needs it", remedy, **figures)]
    value = f"{' and '.join(missing)}: --train.compile inductor and DeepSpeed's ops cannot be built"
    return [yellow("compiler", value, remedy, **figures)]


def look_at_nvcc(needs: Needs, env: Mapping[str, str] = os.environ) -> list[Finding]:
    """CUDA's compiler, of torch's own version of CUDA: needed where an op or flash_attn is built here."""
    del needs  # a policy's own ops are looked at with DeepSpeed
    home = env.get("CUDA_HOME") or env.get("CUDA_PATH")
    places = [f"{home}/bin", env.get("PATH", "")] if home else [env.get("PATH", ""), "/usr/local/cuda/bin"]
    found = shutil.which("nvcc", path=os.pathsep.join(places))
    answer = ask([found, "--version"], LIMIT_S) if found else None
    release = re.search(r"release (\d+\.\d+)", answer.out) if answer is not None else None
    cuda = torch_cuda()
    figures = {"path": found, "version": release[1] if release else None, "torch_cuda": cuda}
    if release is None:
        value = "does not run" if found else "not here; only building flash_attn or DeepSpeed's CUDA ops needs it"
        return [yellow("nvcc", value, "export CUDA_HOME=/usr/local/cuda", **figures)] if found else [
            green("nvcc", value, **figures)
        ]  # fmt: skip
    value = f"{release[1]} ({found})"
    if cuda is not None and cuda.split(".")[0] != release[1].split(".")[0]:
        remedy = f"export CUDA_HOME=FOLDER of CUDA {cuda}"
        return [yellow("nvcc", f"{value}, while torch has CUDA {cuda}: no op can be built", remedy, **figures)]
    return [green("nvcc", value, **figures)]


def torch_cuda() -> str | None:
    """The version of CUDA that torch was built with, read from its folder without importing it."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return None
    try:
        text = (Path(found.origin).parent / "version.py").read_text()
    except OSError:
        return None
    said = re.search(r"^cuda\b[^=\n]*= *['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return said[1] if said else None
