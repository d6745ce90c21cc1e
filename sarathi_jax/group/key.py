"""The group's key: a secret that every process of the group has, and nobody else. It is never an option: command lines can be seen by everybody on a machine."""

import os
from collections.abc import Mapping
from pathlib import Path

from sarathi_jax.errors import ConfigError

KEY = "SARATHI_JAX_GROUP_KEY"
KEY_FILE = "SARATHI_JAX_GROUP_KEY_FILE"
MIN_KEY_BYTES = 16
REMEDY = f"put the output of `openssl rand -hex 32` into the variable {KEY}, or into a file that {KEY_FILE} names, the same for every process."


def read_key(environ: Mapping[str, str] = os.environ) -> bytes:
    """The key, from a variable or a file. Raises: ConfigError if there is none, it is short, or others can read its file."""
    if KEY in environ:
        return _checked(environ[KEY], KEY)
    if KEY_FILE not in environ:
        raise ConfigError(f"A group of processes needs a key, got neither {KEY} nor {KEY_FILE}: {REMEDY}")
    path = Path(environ[KEY_FILE])
    try:
        if path.stat().st_mode & 0o007:
            raise ConfigError(f"The group's key must be its owner's alone, got {path}, open to others: chmod 600 it.")
        return _checked(path.read_text(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The group's key must be readable at {path}, got {error}: {REMEDY}") from error


def _checked(text: str, source: str) -> bytes:
    key = text.strip().encode()
    if len(key) < MIN_KEY_BYTES:
        raise ConfigError(
            f"The group's key must have at least {MIN_KEY_BYTES} bytes, got {len(key)} in {source}: {REMEDY}"
        )
    return key
