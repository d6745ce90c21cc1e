"""What every test runs under: the CPU with 8 devices, strict dtype promotion, no implicit rank promotion, compiled programs kept between runs.

All of it goes through the environment, which jax reads when it is first imported: tests of host code never import it.
"""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["HF_HUB_OFFLINE"] = "1"

# GPU kernels run in Triton's interpreter, where a test asks for it; Triton reads this when it is first imported.
os.environ["TRITON_INTERPRET"] = "1"

# A second run compiles nothing anew. A size limit makes jax lock the folder, so that runs side by side don't read half an entry.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "jax"))
os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(2 * 2**30)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

# Compiling makes the first example of a property slow; the clock of a shared machine is no reason to fail one.
settings.register_profile("test", deadline=None, derandomize=True)
settings.register_profile("nightly", deadline=None, print_blob=True)
settings.load_profile("test")


@pytest.fixture(scope="module", autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A file of tests that left other levels would fail another file, in one order of them."""
    before = _logging_state()
    yield
    after = _logging_state()
    assert {name: after[name] for name in before} == before


def _logging_state() -> dict[str, tuple[int, bool, bool]]:
    loggers = [logging.getLogger(), *map(logging.getLogger, sorted(logging.root.manager.loggerDict))]
    return {each.name: (each.level, each.propagate, each.disabled) for each in loggers}
