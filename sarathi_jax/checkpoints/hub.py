"""From a model's name to its folder: the demo in the package, a folder on disk, or a repository on the Hugging Face
hub."""

import re
from pathlib import Path

from sarathi_jax.errors import ModelError, ModelNotFoundError

DEMO_NAME = "demo"
DEMO_FOLDER = Path(__file__).parent.parent / "assets" / "demo"
# Nothing else is ever fetched: no pickled weights, and no code.
FETCHED_PATTERNS = ("*.safetensors", "*.json", "*.jinja")
# The same weights once more, in their makers' own format.
IGNORED_PATTERNS = ("consolidated*.safetensors", "original/*")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def resolve_model_folder(name: str | Path) -> Path:
    """The folder of a model.

    Args:
      name: "demo" (a folder of that name is "./demo"), a folder, or a hub id ("organisation/model"), which is fetched
        unless it is in the hub's cache already.
    Raises: ModelNotFoundError if there is no such model, or no network to fetch it by."""
    if name == DEMO_NAME:
        return DEMO_FOLDER
    path = Path(name).expanduser()
    if name and path.is_dir():
        return path
    if name and path.exists():
        raise ModelError(f"a model must be a folder, got the file {path}: pass the folder it is in.")
    if isinstance(name, str) and HUB_ID.fullmatch(name):
        return _fetch(name)
    raise ModelNotFoundError(
        f"a model must be {DEMO_NAME!r}, a folder or a hub id such as 'org/model', got {str(name)!r}: check its path."
    )


def _fetch(hub_id: str) -> Path:
    # Optional until a model is asked for by its hub id, and slow to import.
    try:
        import huggingface_hub
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
            OfflineModeIsEnabled,
        )
    except ImportError as error:
        raise ModelNotFoundError(
            f"{hub_id!r} is no folder here, and a hub id needs huggingface-hub, got none: pip install huggingface-hub."
        ) from error
    try:
        return Path(
            huggingface_hub.snapshot_download(
                hub_id, allow_patterns=list(FETCHED_PATTERNS), ignore_patterns=list(IGNORED_PATTERNS)
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).strip().splitlines()
        raise ModelNotFoundError(
            f"{hub_id!r} must be a folder here or a model on the hub that can be reached, got"
            f" {type(error).__name__}{': ' + reason[0][:200] if reason else ''}: check the name and the network, set HF_TOKEN for a gated model,"
            " or pass the path of a folder."
        ) from error
