"""Keys and names: what the operator writes, and who comes in by it."""

from pathlib import Path
from typing import Any

import pytest

from sarathi_jax.errors import ConfigError
from sarathi_jax.serve.config import ServeConfig
from sarathi_jax.serve.gate import digest, read_keys

BODY = {"model": "demo", "prompt": "a", "max_tokens": 1}


def keys_of(tmp_path: Path, text: str) -> dict[bytes, str]:
    path = tmp_path / "keys"
    path.write_text(text)
    return read_keys(ServeConfig(api_key_file=str(path)), {})


def test_keys_come_from_flags_the_environment_and_a_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\nalice c2VjcmV0==\n\nplain\n")
    keys = read_keys(ServeConfig(api_key=("first=",), api_key_file=str(path)), {"SARATHI_JAX_API_KEY": "second"})
    assert keys == {
        digest("first="): "key-1",
        digest("second"): "key-2",
        digest("c2VjcmV0=="): "alice",
        digest("plain"): "key-4",
    }


@pytest.mark.parametrize(("text", "says"), [("a b c", "two words"), ("# nothing\n", "got none")])
def test_a_file_of_keys_that_is_wrong_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        keys_of(tmp_path, text)


@pytest.mark.parametrize("key", ["", " ", "two words"])
def test_a_key_is_one_word(key: str) -> None:
    with pytest.raises(ConfigError, match="one word"):
        read_keys(ServeConfig(api_key=(key,)), {})


def test_every_key_opens_and_no_other(serving: Any) -> None:
    server = serving(api_key=("first", "second"))
    for key, status in (("first", 200), ("second", 200), ("firs", 401), ("first2", 401), ("x", 401)):
        assert server.post("/v1/completions", BODY, authorization=f"Bearer {key}").status_code == status


def test_a_server_of_this_machine_is_called_by_this_machines_names(serving: Any) -> None:
    server = serving()
    for host, status in (("127.0.0.1", 200), ("localhost:1", 200), ("[::1]:80", 200), ("rebound.example", 403)):
        assert server.post("/v1/completions", BODY, host=host).status_code == status


def test_names_can_be_added(serving: Any) -> None:
    server = serving(allowed_host=("models.example",))
    for host, status in (("models.example", 200), ("MODELS.example:443", 200), ("127.0.0.1", 200), ("example", 403)):
        assert server.post("/v1/completions", BODY, host=host).status_code == status
