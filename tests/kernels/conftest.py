"""The implementations that a test of kernels can run: the plain one, and the GPU's kernel in Triton's interpreter. On a GPU, `benchmarks/gpu_card.py` checks the kernel itself."""

import pytest


@pytest.fixture(scope="session")
def triton() -> None:
    """Triton, for kernels in its interpreter. It has wheels for Linux alone, so that elsewhere what needs it is left out."""
    pytest.importorskip("triton", reason="triton can't be had here: it has wheels for Linux alone")


@pytest.fixture(scope="session", params=["xla", "triton-interpreter"])
def implementation(request: pytest.FixtureRequest) -> str:
    """A name in the registry."""
    if request.param != "xla":
        request.getfixturevalue("triton")
    return request.param
