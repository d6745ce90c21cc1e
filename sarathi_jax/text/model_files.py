"""The small JSON files beside a tokenizer, read as what they are: files from a stranger."""

import json
from pathlib import Path
from typing import Any, cast

from sarathi_jax.errors import ModelError, ModelNotFoundError

MAX_JSON_BYTES = 256 * 2**20


def read_bounded_text(path: Path, max_bytes: int) -> str:
    """The file as UTF-8 text. Raises: ModelNotFoundError if it can't be opened, ModelError if it is too large or not
    UTF-8."""
    try:
        size_bytes = path.stat().st_size
        if size_bytes > max_bytes:
            raise ModelError(f"{path} must be at most {max_bytes} bytes, got {size_bytes}: this is not such a file.")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} must be UTF-8 text, got {error}: fetch the model folder again.") from error
    except OSError as error:
        raise ModelNotFoundError(
            f"{path} can't be read ({error}): check the model folder's name and contents."
        ) from error


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises: ModelError if it holds anything else; as `read_bounded_text`."""
    text = read_bounded_text(path, MAX_JSON_BYTES)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} must be JSON, got {error}: fetch the model folder again.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} must hold a JSON object, got {type(value).__name__}: fetch the model folder again.")
    return cast("dict[str, Any]", value)


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """`tokenizer_config.json`, over what `special_tokens_map.json` says; an empty dict where neither is there."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            settings |= {key: value for key, value in read_json_object(folder / name).items() if value is not None}
    return settings


def named_special_tokens(tokenizer_config: dict[str, Any]) -> dict[str, str]:
    """`bos_token`, `eos_token` and the like, as strings; a token may be given as a string or as an object with
    `content`."""
    tokens: dict[str, str] = {}
    for key, value in tokenizer_config.items():
        content = cast("dict[str, Any]", value).get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(content, str):
            tokens[key] = content
    return tokens
