"""DeepSpeed and its ops: which came built, which were built before, which could be built here. For a process of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from vmae2_ds.doctor.finding import Finding, green, red
from vmae2_ds.doctor.needs import Needs
from vmae2_ds.doctor.packages import describe, version_of

REMEDIES = {
    "async_io": "apt-get install libaio-dev, or a ZeRO policy without offload to nvme",
    "quantizer": "a CUDA toolkit (export CUDA_HOME=FOLDER), or a ZeRO policy without quantisation: --train.ds-config zero3",
}
NO_OP = "deepspeed_not_implemented"
"""A name that DeepSpeed lists where a device lacks an op."""


def look_at_deepspeed(needs: Needs) -> Iterator[Finding]:
    """Import it, then ask each op's builder; no path that a recipe takes by default builds one."""
    try:
        import deepspeed
        from deepspeed.git_version_info import installed_ops
        from deepspeed.ops.op_builder.all_ops import ALL_OPS
    except BaseException as error:  # whatever runs at import
        value = f"{version_of('deepspeed')} cannot be imported: {describe(error)}"
        yield red("deepspeed", value, "pip install 'deepspeed>=0.19.8'", version=None)
        return
    from deepspeed.accelerator import get_accelerator

    accelerator = str(get_accelerator()._name)
    yield green("deepspeed", f"{deepspeed.__version__}, for {accelerator}", version=str(deepspeed.__version__))
    can: list[str] = []
    cannot: list[str] = []
    for name, builder in ALL_OPS.items():
        if name != NO_OP:
            (can if _is_compatible(builder) else cannot).append(name)
    built = sorted({name for name, there in installed_ops.items() if there} | (built_before() & {*can, *cannot}))
    figures = {"accelerator": accelerator, "built": built, "can_be_built": can, "cannot_be_built": cannot}
    value = f"built: {_listed(built)}; could be built: {_listed(can)}; not: {_listed(cannot)}"
    lacking = [name for name in needs.ops if name not in {*built, *can}]
    if lacking:
        value = f"{lacking[0]} cannot be built here, and the recipe's ZeRO policy needs it"
        yield red("deepspeed_ops", value, REMEDIES[lacking[0]], **figures)
        return
    if not needs.ops:
        value += " (this recipe needs none)"
    yield green("deepspeed_ops", value, **figures)


def _is_compatible(builder: object) -> bool:
    try:
        return bool(builder.is_compatible(False))  # type: ignore[attr-defined]
    except (
        Exception
    ):  # a builder that fails is one that cannot build: a missing toolkit raises errors of DeepSpeed's own
        return False


def built_before() -> set[str]:
    """Ops that torch has compiled for this user, as they lie in its folder of extensions."""
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    return {file.stem for file in root.glob("**/*.so") if file.stem == file.parent.name}


def _listed(names: list[str]) -> str:
    return " ".join(names) or "none"
