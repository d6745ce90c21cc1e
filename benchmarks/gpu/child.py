"""A child process of the card: `python -m benchmarks.gpu.child MODULE ORDER ANSWERS`. The order is in a file, and rows go to another, one JSON object a line, as they come: a child that ends early leaves what it had."""

import json
import sys
from importlib import import_module
from pathlib import Path

from benchmarks.gpu.order import Order
from benchmarks.gpu.table import line
from sarathi_jax.gpu_defaults import apply_defaults


def main() -> None:
    module, asked, answers = sys.argv[1:]
    order = Order.from_json(Path(asked).read_text(encoding="utf-8"))
    apply_defaults()  # before anything asks jax for a device
    part = import_module(f"benchmarks.gpu.{module}")
    if "jax" in sys.modules:
        keep_programs()
    with Path(answers).open("a", encoding="utf-8") as file:
        for row in part.rows(order):
            print(json.dumps(row), file=file, flush=True)
            print(f"{module}: {line(row)}", file=sys.stderr, flush=True)


def keep_programs() -> None:
    """Where the engine keeps its own, unless the environment names a folder."""
    from sarathi_jax.execution.programs import use_compile_cache

    use_compile_cache(None)


if __name__ == "__main__":
    main()
