"""The table of DeepSpeed's internals: the installed DeepSpeed has them all, our code uses them all, and it touches no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

import pytest

from vmae2_ds.engine.internals import INTERNALS

PACKAGE = Path(__file__).parents[2] / "vmae2_ds"
ROOMS = ("engine", "checkpoint")
"""The folders that may touch DeepSpeed's engine."""
TABLE = [(home, name, use) for home, names in INTERNALS.items() for name, use in names.items()]
DOCUMENTED = {
    *("initialize", "init_distributed", "compile", "destroy", "Init", "GatheredParameters"),
    *("checkpointing", "configure", "safe_get_full_fp32_param", "logger", "DeepSpeedEngine"),
    *("module", "optimizer", "param_groups", "backward", "step", "save_checkpoint", "load_checkpoint"),
    *("is_gradient_accumulation_boundary", "was_step_applied", "bfloat16_enabled"),
}
"""What we use of the interface in DeepSpeed's documentation, and of torch's where DeepSpeed stands in for it."""


@cache
def tree_of(module: str) -> ast.Module:
    """DeepSpeed's source, which is not imported."""
    place = str(distribution("deepspeed").locate_file(module.replace(".", "/")))
    path = Path(f"{place}.py")
    return ast.parse((path if path.is_file() else Path(place, "__init__.py")).read_text())


def scope_of(home: str) -> ast.AST:
    """Raises StopIteration where there is no such class or function."""
    module, _, inner = home.partition(":")
    scope: ast.AST = tree_of(module)
    for name in filter(None, inner.split(".")):
        kinds = (ast.ClassDef, ast.FunctionDef)
        scope = next(node for node in ast.walk(scope) if isinstance(node, kinds) and node.name == name)
    return scope


def written_of(node: ast.AST) -> Iterator[str]:
    """What a node defines or sets, as the table writes it."""
    match node:
        case ast.FunctionDef(name=name, args=args):
            yield f"{name}({', '.join(arg.arg for arg in args.args if arg.arg != 'self')})"
        case ast.ClassDef(name=name) | ast.Attribute(attr=name, ctx=ast.Store()) | ast.Name(id=name, ctx=ast.Store()):
            yield name
        case ast.keyword(arg=str(name)):
            yield f'"{name}"'
        case ast.Constant(value=str(text)):
            yield f'"{text}"'


def bare(name: str) -> str:
    return name.strip('"').partition("(")[0]


def stands_in(word: str, text: str) -> bool:
    """As a whole word; what begins or ends with a sign, as parts of file names do, may touch others there."""
    start = r"(?<!\w)" if word[0].isalnum() else ""
    stop = r"(?!\w)" if word[-1].isalnum() else ""
    return re.search(start + re.escape(word) + stop, text) is not None


@cache
def written_in(home: str) -> frozenset[str]:
    """All that is written there, but for docstrings."""
    nodes = list(ast.walk(scope_of(home)))
    prose = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    return frozenset(each for node in nodes if id(node) not in prose for each in written_of(node))


def is_there(home: str, name: str) -> bool:
    """Does the name stand in that place of the installed DeepSpeed?"""
    try:
        written = written_in(home)
    except (OSError, StopIteration):
        return False
    return name in written or (
        name[0] == '"' and any(each[0] == '"' and stands_in(bare(name), each) for each in written)
    )


def test_the_installed_deepspeed_has_them_all() -> None:
    missing = [f"{name} in {home}: {use}" for home, name, use in TABLE if not is_there(home, name)]
    assert not missing, f"DeepSpeed {distribution('deepspeed').version} does not have {missing}"


@pytest.mark.parametrize(
    ("home", "name"),
    [
        ("deepspeed.runtime.utils", "combine_grad_norm_groups(norm_groups)"),  # an argument less
        ("deepspeed.runtime.utils", "combine_norm_groups(norm_groups, norm_type)"),
        ("deepspeed.runtime.engine:DeepSpeedEngine", "_get_norm_groups()"),  # of another class
        ("deepspeed.runtime.engine:DeepSpeedEngine", "zero_grad_norm"),  # never set
        ("deepspeed.runtime.engine:DeepSpeedEngine._common_checkpoint_state", '"frozen_param"'),  # part of a key
        ("deepspeed.runtime.engine:DeepSpeedMotor", "param_names"),
        ("deepspeed.runtime.motor", "param_names"),
    ],
)
def test_what_is_not_in_deepspeed_is_not_found(home: str, name: str) -> None:
    assert not is_there(home, name)


def test_our_files_use_them_all() -> None:
    rows = [(name, *use.partition(": ")) for _, name, use in TABLE]
    idle = [f"{file}: {name}" for name, file, _, _ in rows if not stands_in(bare(name), (PACKAGE / file).read_text())]
    assert not idle, f"these do not use what the table says: {idle}"


KNOWN = {bare(name) for _, name, _ in TABLE} | {
    part for home in INTERNALS for part in home.partition(":")[0].split(".")
}


def names_on_deepspeed(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, name) of each attribute reached from something called deepspeed, directly or through a variable set from it.

    Not beyond `module`: that is ours again.
    """

    def starts_there(node: ast.expr) -> bool:
        match node:
            case ast.Name(id=name):
                return name in roots
            case ast.Attribute(value=value, attr=name):
                return name in {"deepspeed", "_deepspeed"} or (name != "module" and starts_there(value))
        return False

    roots = {"deepspeed"}
    for node in ast.walk(tree):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Attribute() as value) if starts_there(value):
                roots.add(name)
            case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)):
                pairs = zip(names, values, strict=True)
                roots |= {each.id for each, value in pairs if isinstance(each, ast.Name) and starts_there(value)}
            case ast.Attribute(value=value, attr=name) if starts_there(value):
                yield node.lineno, name
            case ast.ImportFrom(module=str(module), names=names) if module.startswith("deepspeed"):
                yield from ((node.lineno, alias.name) for alias in names)


NOT_DEEPSPEEDS = {"__init__", "__dict__", "_cdata"}
"""Python's, and the address by which torch.save knows a storage."""


def private_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, name) of private names that are neither this object's own nor torch's nor Python's, and of `ds_...`, in quotes
    as well.

    `ds_` is how DeepSpeed begins what it hangs on parameters.
    """
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=value, attr=name) if name.startswith(("_", "ds_")):
                if ast.unparse(value) not in {"self", "cls", "torch"} and name not in NOT_DEEPSPEEDS:
                    yield node.lineno, name
            case ast.Constant(value=str(name)) if re.fullmatch(r"_[a-z]\w+|__\w+__|ds_\w+", name):
                yield node.lineno, name


def test_nothing_of_deepspeed_is_touched_that_the_table_leaves_out() -> None:
    """Attributes of parameters are seen where they are private: their type cannot be told from the source."""
    unknown = []
    for path in (path for room in ROOMS for path in sorted((PACKAGE / room).glob("*.py")) if path.stem != "internals"):
        tree = ast.parse(path.read_text())
        touched = sorted({*private_names(tree), *names_on_deepspeed(tree)})
        unknown += [f"{path.name}:{line}: {name}" for line, name in touched if name not in KNOWN | DOCUMENTED]
    assert not unknown, f"neither documented nor in vmae2_ds/engine/internals.py: {unknown}"


def test_other_folders_go_through_the_engine() -> None:
    touching = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if path.parent.name not in ROOMS
        and any(
            isinstance(node, ast.Attribute) and node.attr == "deepspeed"
            for node in ast.walk(ast.parse(path.read_text()))
        )
    }
    assert not touching, f"these touch DeepSpeed's engine; give vmae2_ds/engine/ what they need: {touching}"
