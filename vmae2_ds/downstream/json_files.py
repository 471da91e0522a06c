"""JSON files that the field shares, read whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vmae2_ds.errors import DataError


def read_json(file: Path) -> Any:
    """What a JSON file holds; raises DataError with the file and the place where it is none."""
    try:
        return json.loads(file.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{file}: there is no such file") from None
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # bad JSON, bytes that are no text, brackets in brackets without end
        raise DataError(f"{file} is no JSON: {error}") from None
