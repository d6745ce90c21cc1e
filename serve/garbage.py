"""Python's garbage collector, kept from what is there for good."""

import gc


def freeze_garbage() -> None:
    """Collections will not look through what there is now, which takes 37 ms in the front of the demo model: each would hold up every stream."""
    gc.collect()
    gc.freeze()
