"""JSON files of a model folder, with errors that name the file."""

import json
from pathlib import Path
from typing import Any, cast

from sarathi_jax.errors import ModelError, ModelNotFoundError

MAX_JSON_BYTES = 256 * 2**20


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises: ModelNotFoundError if there is no such file, ModelError if it is not a JSON object."""
    try:
        if (num_bytes := path.stat().st_size) > MAX_JSON_BYTES:
            raise ModelError(
                f"{path} must be at most {MAX_JSON_BYTES} bytes, got {num_bytes}: this is not such a file."
            )
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelNotFoundError(
            f"{path} must be there, got {error.strerror}: check the model's name, or fetch it again."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} must be JSON in UTF-8, got {error}: fetch the model folder again.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} must hold a JSON object, got {type(value).__name__}: fetch the model folder again.")
    return cast("dict[str, Any]", value)
