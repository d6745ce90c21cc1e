"""sarathi-jax: a JAX inference engine that schedules like Sarathi-Serve.

The public names are imported when they are first used: `import sarathi_jax` loads neither jax nor the engine, so that the command line's help and
everything that runs on the host alone start at once.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from sarathi_jax.gpu_defaults import import_jax_quietly

if TYPE_CHECKING:
    from sarathi_jax.config import EngineConfig
    from sarathi_jax.follow import follow
    from sarathi_jax.generate import generate, load_model
    from sarathi_jax.llm import LLM
    from sarathi_jax.restore import restore
    from sarathi_jax.sampling_params import SamplingParams
    from sarathi_jax.structured import StructuredOutput

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "EngineConfig",
    "SamplingParams",
    "StructuredOutput",
    "__version__",
    "follow",
    "generate",
    "load_model",
    "restore",
]

_HOMES = {
    "EngineConfig": "sarathi_jax.config",
    "LLM": "sarathi_jax.llm",
    "follow": "sarathi_jax.follow",
    "SamplingParams": "sarathi_jax.sampling_params",
    "StructuredOutput": "sarathi_jax.structured",
    "generate": "sarathi_jax.generate",
    "load_model": "sarathi_jax.generate",
    "restore": "sarathi_jax.restore",
}
_WITHOUT_JAX = ("EngineConfig", "SamplingParams", "StructuredOutput")


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'sarathi_jax' has no attribute {name!r}; it has {', '.join(__all__)}")
    if name not in _WITHOUT_JAX:
        import_jax_quietly()
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """The import system sets each loaded submodule as an attribute; without this, the module `generate` would hide the function."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
