"""Writes docs/architecture.md's list of files: each with the first sentence of its docstring. `--check` only looks whether it is current."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "architecture.md"
FOLDERS = ("sarathi_jax", "kernels", "models", "serve", "benchmarks", "examples")
BEGIN, END = "<!-- files: written by `make format` -->\n", "<!-- end of files -->\n"


def listing() -> str:
    """A heading a folder, a line a file."""
    lines: list[str] = []
    files = [path for path in sources() if path.name != "__init__.py" or path.parent == Path("sarathi_jax")]
    for folder in sorted({path.parent for path in files}, key=lambda path: (FOLDERS.index(path.parts[0]), path)):
        lines += ["", f"**{folder}/**", ""]
        lines += [f"- `{path.name}`: {first_sentence(path)}" for path in files if path.parent == folder]
    return "\n".join([*lines[1:], "", ""])


def sources() -> Iterator[Path]:
    """Python files, relative to the root; links inside the package are not followed."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not any(parent.is_symlink() for parent in path.parents):
                yield path.relative_to(ROOT)


def first_sentence(path: Path) -> str:
    text = ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[.?!])\s+(?=[A-Z`])", paragraph)[0]


def main() -> int:
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    current = before + BEGIN + listing() + END + rest.split(END)[1]
    if "--check" in sys.argv[1:]:
        if current != text:
            print(f"{PAGE.relative_to(ROOT)} must list every file as its docstring describes it: run `make format`.")
        return int(current != text)
    PAGE.write_text(current, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
