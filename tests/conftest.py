"""What every test runs under: the CPU with 8 devices, strict dtype promotion, no implicit rank promotion.

All of it goes through the environment, which jax reads when it is first imported: tests of host code never import it.
"""

import os

from hypothesis import settings

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["HF_HUB_OFFLINE"] = "1"

# Compiling makes the first example of a property slow; the clock of a shared machine is no reason to fail one.
settings.register_profile("test", deadline=None, derandomize=True)
settings.register_profile("nightly", deadline=None, print_blob=True)
settings.load_profile("test")
