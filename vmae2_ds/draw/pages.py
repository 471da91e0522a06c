"""Web pages that need no other file and no script: base.html has their head and the one stylesheet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


def templates_of(package: str, **options: Any) -> Environment:
    """The templates that lie beside a package's code, which may extend `base.html`; `options` are jinja2's."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    loader = ChoiceLoader([PackageLoader(package, "."), PackageLoader("vmae2_ds.draw", ".")])
    return Environment(**{"loader": loader, "autoescape": True, "undefined": StrictUndefined, **options})
