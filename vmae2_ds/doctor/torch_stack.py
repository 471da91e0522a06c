"""torch, the device it sees, cuDNN, NCCL, attention kernels and the allocator. For a process of its own: nothing here is quick.

torch is imported inside the functions: the process that draws the page never has it.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from vmae2_ds.doctor.compilers import torch_cuda
from vmae2_ds.doctor.driver import KERNEL
from vmae2_ds.doctor.finding import Finding, gib, green, red, yellow
from vmae2_ds.doctor.needs import Needs
from vmae2_ds.doctor.packages import describe, version_of

if TYPE_CHECKING:
    import torch

OLDEST = (2, 6)
"""setup.py's lower bound of torch."""
FREE_SHARE = 0.9
"""Less of a GPU's memory free: somebody else is on it."""
BF16_SINCE = (8, 0)
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""The allocator's settings: torch's names for them, the newer first."""
INSTALL = "pip install --upgrade 'torch>=2.6' (pytorch.org has the line for each version of CUDA)"


def look_at_torch(needs: Needs) -> Iterator[Finding]:
    """Everything that takes a torch to be known, one after another: a device or a library that hangs has a name then."""
    began = time.perf_counter()
    try:
        import torch
    except BaseException as error:  # whatever runs at import
        yield red("torch", f"{version_of('torch')} cannot be imported: {describe(error)}", INSTALL, version=None)
        return
    yield _version(torch, time.perf_counter() - began)
    from vmae2_ds.engine.same_bits import same_bits

    with same_bits(needs.deterministic):  # sdpa takes other kernels then
        device, found = _look_at_device(torch, needs)
        yield found
        for name, look in (("cudnn", _cudnn), ("nccl", _collectives), ("sdpa", _sdpa), ("attention", _kernels)):
            try:
                yield look(torch, needs, device)
            except (
                Exception
            ) as error:  # cuDNN of another version on LD_LIBRARY_PATH, a function that a later torch lacks
                yield yellow(name, describe(error), "unset LD_LIBRARY_PATH; if that is not it, install torch again")
    yield judge_allocator(needs, device)


def look_at_kernel(name: str, needs: Needs) -> list[Finding]:
    """An attention kernel that comes in a package of its own, which has to be imported to know."""
    import torch

    from vmae2_ds.engine.same_bits import same_bits
    from vmae2_ds.model.kernel_support import why_not

    dtype, device = _dtype(torch, needs), _device(torch)
    with same_bits(needs.deterministic):
        for width in {shape[-1] for shape in needs.shapes.values()}:
            if (why := why_not(name, dtype, width, device)) is not None:
                return [kernel_missing(name, why, needs)]
    module = name if name != "flash" else "flash_attn"
    return [green(name, f"can run ({version_of(module) or 'version unknown'})", usable=True)]


def kernel_missing(name: str, why: str, needs: Needs) -> Finding:
    """A kernel that cannot run: red where the recipe names it, green where it does without."""
    if needs.attention == name:
        return red(name, why, "--model.attention auto", usable=False)
    return green(name, f"{why}; this recipe does without", usable=False)


def _version(torch: Any, took_s: float) -> Finding:
    version, cuda = str(torch.__version__), torch.version.cuda or torch.version.hip
    value = f"{version}, built for {f'CUDA {cuda}' if cuda else 'CPUs'}, imported in {took_s:.1f} s"
    figures = {"version": version, "cuda": torch.version.cuda, "hip": torch.version.hip, "import_s": round(took_s, 2)}
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST:
        return red("torch", f"{value}: too old", INSTALL, **figures)
    return green("torch", value, **figures)


def _look_at_device(torch: Any, needs: Needs) -> tuple[torch.device, Finding]:
    """The device of rank 0, and the line of all of them, with a product in bfloat16 done on each."""
    driver = KERNEL.exists()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        there = torch.cuda.is_available()
    if not there:
        return torch.device("cpu"), _no_gpu(torch, driver, [str(one.message) for one in said])
    gpus, problem = [], None
    for number in range(torch.cuda.device_count()):
        try:
            gpus.append(_one_gpu(torch, number))
        except Exception as error:  # a driver fails in ways of its own
            problem = f"GPU {number} fails at a small product: {describe(error)}"
            break
    if problem is not None:
        remedy = "nvidia-smi -q -d ECC, dmesg | grep -i xid; CUDA_VISIBLE_DEVICES without it"
        return torch.device("cuda", 0), red("device", problem, remedy, kind="cuda", gpus=gpus)
    return torch.device("cuda", 0), judge_gpus(gpus, torch.cuda.get_arch_list(), needs)


def _one_gpu(torch: Any, number: int) -> dict[str, Any]:
    device = torch.device("cuda", number)
    about, (free, total) = torch.cuda.get_device_properties(device), torch.cuda.mem_get_info(device)
    ones = torch.ones(64, 64, device=device, dtype=torch.bfloat16)
    assert float((ones @ ones).sum()) == 64**3, "a product of ones is exact in bfloat16"
    chip = [about.major, about.minor]
    return {"name": about.name, "capability": chip, "free_bytes": free, "total_bytes": total}


def judge_gpus(gpus: list[dict[str, Any]], built_for: list[str], needs: Needs) -> Finding:
    """The line of GPUs that torch sees and that compute."""
    from vmae2_ds.cost.hardware import find_accelerator

    names = list(dict.fromkeys(gpu["name"] for gpu in gpus))
    least = min(gpus, key=lambda gpu: gpu["free_bytes"] / gpu["total_bytes"])
    chip = ".".join(map(str, gpus[0]["capability"]))
    value = f"{len(gpus)} x {' / '.join(names)}, compute capability {chip}, at least "
    value += f"{gib(least['free_bytes'])} of {gib(least['total_bytes'])} free"
    figures: dict[str, Any] = {"kind": "cuda", "gpus": gpus, "built_for": built_for}
    if len(gpus) < needs.ranks:
        remedy = f"slots={len(gpus)} in the hostfile, or --ranks {len(gpus)}"
        return red("device", f"{value}; {needs.ranks} ranks are to run here", remedy, **figures)
    if needs.precision == "bf16" and tuple(gpus[0]["capability"]) < BF16_SINCE:
        return yellow("device", f"{value}: no bfloat16 units", "--train.precision fp32, or a GPU since 2020", **figures)
    if least["free_bytes"] < FREE_SHARE * least["total_bytes"]:
        remedy = "nvidia-smi pmon -c 1 shows whose; end it, or CUDA_VISIBLE_DEVICES without that GPU"
        return yellow("device", f"{value}: something else has the rest", remedy, **figures)
    if len(names) > 1:
        return yellow("device", f"{value}: the slowest sets the pace", "CUDA_VISIBLE_DEVICES of one kind", **figures)
    if find_accelerator(names[0]) is None:
        remedy = "--train.peak-flops with the dense FLOP/s of its datasheet"
        return yellow("device", f"{value}: its peak is not known, so MFU is left out", remedy, **figures)
    return green("device", value, **figures)


def _no_gpu(torch: Any, driver: bool, said: list[str]) -> Finding:
    figures: dict[str, Any] = {"kind": "cpu", "gpus": []}
    if not driver:
        remedy = "a host with a GPU; in a container: docker run --gpus all"
        return yellow("device", "no GPU: a run trains on the CPU", remedy, **figures)
    if torch.version.cuda is None and torch.version.hip is None:
        return red("device", "the driver has a GPU, and this torch is built for CPUs", INSTALL, **figures)
    with contextlib.suppress(AssertionError):
        try:
            torch.cuda.init()
        except Exception as error:  # only to learn what it says
            said.append(describe(error))
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return yellow("device", "no GPU is visible: a run trains on the CPU", "unset CUDA_VISIBLE_DEVICES", **figures)
    value = f"torch for CUDA {torch_cuda()} sees no GPU: {said[-1] if said else 'it does not say why'}"
    return red("device", value, "a newer driver, or a torch built for an older CUDA (pytorch.org)", **figures)


def _cudnn(torch: Any, needs: Needs, device: torch.device) -> Finding:
    del needs
    number = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    if number is None:
        if device.type != "cuda":
            return green("cudnn", "not used on a CPU", version=None)
        return yellow("cudnn", "this torch has none", INSTALL, version=None)
    head, rest = divmod(int(number), 10_000 if number >= 90_000 else 1000)
    version = f"{head}.{rest // 100}.{rest % 100}"
    return green("cudnn", version, version=version)


def _collectives(torch: Any, needs: Needs, device: torch.device) -> Finding:
    del needs
    asked = {name: getattr(torch.distributed, f"is_{name}_available", bool) for name in ("nccl", "gloo", "mpi")}
    backends = [name for name, is_there in asked.items() if is_there()]
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if "nccl" in backends else None
    figures = {"version": nccl, "backends": backends}
    if device.type == "cuda" and nccl is None:
        return red("nccl", f"this torch has none (it has {', '.join(backends)})", INSTALL, **figures)
    return green("nccl", f"{nccl or 'none'}; backends: {', '.join(backends)}", **figures)


def _sdpa(torch: Any, needs: Needs, device: torch.device) -> Finding:
    from vmae2_ds.model.kernel_support import sdpa_kernel

    dtype, taken = _dtype(torch, needs), {}
    for tower, shape in needs.shapes.items():
        taken[tower] = sdpa_kernel(shape, dtype, device)
    places = (f"{kernel} in the {tower} {needs.shapes[tower]}" for tower, kernel in taken.items())
    value = f"takes {', '.join(places)}, {needs.precision}"
    if device.type == "cuda" and "math" in taken.values():
        remedy = "--train.precision bf16" if needs.precision == "fp32" else "--model.attention auto, or flash"
        return yellow("sdpa", f"{value}: no fused kernel fits", remedy, kernels=taken)
    return green("sdpa", value, kernels=taken)


def _kernels(torch: Any, needs: Needs, device: torch.device) -> Finding:
    """The kernels that come with torch."""
    from vmae2_ds.model.kernel_support import SUPPORT, why_not

    dtype, widths = _dtype(torch, needs), {shape[-1] for shape in needs.shapes.values()}
    own = [name for name, support in SUPPORT.items() if support.function is None]
    reasons = {name: [why for width in widths if (why := why_not(name, dtype, width, device))] for name in own}
    run, cannot = [name for name in own if not reasons[name]], {name: why[0] for name, why in reasons.items() if why}
    figures = {"usable": run, "why_not": cannot}
    if needs.attention in cannot:
        value = f"{needs.attention} {cannot[needs.attention]}"
        return red("attention", value, f"--model.attention auto, or one of {', '.join(run)}", **figures)
    return green("attention", f"with torch: {', '.join(run)}; the recipe asks for {needs.attention}", **figures)


def judge_allocator(needs: Needs, device: torch.device, env: Mapping[str, str] = os.environ) -> Finding:
    """The line of the allocator's settings, with the advice that the run itself would give."""
    from vmae2_ds.engine.device import SEGMENTS, allocator_advice

    said = {name: env[name] for name in ALLOCATOR if env.get(name)}
    advice = allocator_advice(device, stage=needs.zero_stage, checkpointing=needs.checkpointing, env=env)
    if advice is not None:
        return yellow("allocator", advice.partition(";")[0], f"export {SEGMENTS}", variables=said)
    value = " ".join(f"{name}={text}" for name, text in said.items()) or "torch's own settings"
    return green("allocator", value, variables=said)


def _device(torch: Any) -> torch.device:
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def _dtype(torch: Any, needs: Needs) -> torch.dtype:
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[needs.precision]
