"""How many threads XLA gets where steps run on a CPU. Known without importing jax, which asks when it makes its first device."""

import os

from sarathi_jax.gpu_defaults import has_driver, has_plugin

THREADS = ("PJRT_NPROC", "NPROC")  # what XLA reads, the first before the second
MIN_SHARED_SIZE = 256

_claimed = False


def claim_process() -> None:
    """This process runs one model and nothing else on jax, so that jax may be set up for that model: a command, or the server's engine."""
    global _claimed
    _claimed = True


def choose_threads(hidden_size: int) -> None:
    """One thread for a model so narrow that the parts of a product take longer to hand over than to compute; others keep a thread a core.

    With two cores a step of 16 decodes takes on one thread 0.8 to 0.9 of what it takes on two where the model is 128 wide, 1.1 where it is 256 wide, 1.1 to 1.5
    and 1.7 where it is 512 and 1,024 wide. What it leaves free, the server's front can use. Only in a process that was claimed, and only where neither the user
    nor a GPU has a say.
    """
    has_gpu = has_plugin() and has_driver() and os.environ.get("JAX_PLATFORMS") != "cpu"
    if _claimed and hidden_size < MIN_SHARED_SIZE and not has_gpu and not any(name in os.environ for name in THREADS):
        os.environ[THREADS[0]] = "1"
