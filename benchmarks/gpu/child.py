"""A child process of the card: `python -m benchmarks.gpu.child MODULE ORDER ANSWERS`. The order is in a file, and rows go to another, one JSON object a line, as they come: a child that ends early leaves what it had."""

import json
import sys
from importlib import import_module
from pathlib import Path

from benchmarks.gpu.order import Order


def main() -> None:
    module, asked, answers = sys.argv[1:]
    order = Order.from_json(Path(asked).read_text(encoding="utf-8"))
    with Path(answers).open("a", encoding="utf-8") as file:
        for row in import_module(f"benchmarks.gpu.{module}").rows(order):
            print(json.dumps(row), file=file, flush=True)
            print(f"{module}: {row['case']}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
