"""The shape of the tree: imports only point down, host code runs without jax, files and functions stay small, nothing runs code from data."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sarathi_jax

ROOT = Path(__file__).parent.parent
CODE_FOLDERS = ("sarathi_jax", "kernels", "models", "serve", "tests", "benchmarks", "examples")

# What each part of the package may import from it. `sarathi_jax.x.y` belongs to x.
BASE = [
    "errors",
    "clock",
    "gpu_defaults",
    "cpu_defaults",
    "structured",
    "sampling_params",
    "config",
    "outputs",
    "faults",
]
HOST = [*BASE, "text", "scheduling", "engine", "simulation", "group", "client"]
DEVICE = [*BASE, "kernels", "models", "sharding", "checkpoints", "execution"]
TOP = ["generate", "restore", "profiling", "started_engine", "llm", "follow", "lab", "serve", "cli"]
BELOW = {
    **{name: set(BASE[:position]) for position, name in enumerate(BASE)},
    "text": set(BASE),
    "scheduling": set(BASE),
    "engine": {*BASE, "scheduling", "text"},
    "simulation": {*BASE, "scheduling", "engine"},
    "group": set(BASE),
    "client": {*BASE, "simulation"},
    "kernels": set(BASE),
    "models": {*BASE, "kernels"},
    "sharding": {*BASE, "kernels", "models"},
    "checkpoints": {*BASE, "kernels", "models"},
    "execution": {*BASE, "kernels", "models", "sharding", "checkpoints", "group"},
    "generate": {*HOST, *DEVICE},
    "restore": set(DEVICE),
    "profiling": {*HOST, *DEVICE},
    "started_engine": {*HOST, *DEVICE, "profiling"},
    "llm": {*HOST, *DEVICE, "generate", "started_engine"},
    "follow": {*HOST, *DEVICE, "llm"},
    "lab": {*HOST, *DEVICE},
    "serve": {*HOST, *DEVICE, "started_engine", "follow", "__version__"},
    "cli": {*HOST, *DEVICE, "generate", "profiling", "llm", "follow", "lab", "serve", "__version__"},
    "": set(),
}
# The two columns meet in the executor: it takes schedules and fulfils the engine's port.
MEETING_POINTS = {"sarathi_jax.scheduling.schedule", "sarathi_jax.engine.executor"}

MAX_MODULE_LINES = {"kernels": 500}
MAX_FUNCTION_LINES = {"kernels": 120}
CODE_FROM_DATA = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "torch"}
CODE_CALLS = {"eval", "exec", "compile", "__import__"}


def sources(*folders: str) -> Iterator[Path]:
    """Every Python file of these top-level folders, once: the symlinks inside the package are not followed."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not any(parent.is_symlink() for parent in path.parents):
                yield path


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "sarathi_jax" else ("sarathi_jax", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def upward_imports(module: str, tree: ast.AST) -> list[str]:
    part = part_of(module)
    allowed = BELOW[part] | {part}
    found = []
    for name in imported_modules(tree):
        is_meeting = part == "execution" and any(
            name == point or name.startswith(point + ".") for point in MEETING_POINTS
        )
        if name.split(".")[0] == "sarathi_jax" and part_of(name) not in allowed and not is_meeting:
            found.append(f"{module} imports {name}")
    return found


def code_from_data(tree: ast.AST) -> list[str]:
    found = [name for name in imported_modules(tree) if name.split(".")[0] in CODE_FROM_DATA]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in CODE_CALLS:
                found.append(node.func.id)
            found += ["shell=True" for keyword in node.keywords if keyword.arg == "shell"]
    return found


PACKAGE = [
    path
    for path in sources("sarathi_jax", "kernels", "models", "serve")
    if path != ROOT / "sarathi_jax" / "__init__.py"
]
EVERYTHING = list(sources(*CODE_FOLDERS))
HOST_MODULES = [module_name(path) for path in PACKAGE if part_of(module_name(path)) in HOST]


def named(paths: list[Path]) -> list[object]:
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in paths]


@pytest.mark.parametrize("path", named(PACKAGE))
def test_imports_only_point_down(path: Path) -> None:
    assert upward_imports(module_name(path), ast.parse(path.read_text())) == []


@pytest.mark.parametrize("path", named(EVERYTHING))
def test_modules_and_functions_are_small(path: Path) -> None:
    folder, text = path.relative_to(ROOT).parts[0], path.read_text()
    assert len(text.splitlines()) <= MAX_MODULE_LINES.get(folder, 400)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < MAX_FUNCTION_LINES.get(folder, 60), node.name


@pytest.mark.parametrize("path", named(PACKAGE))
def test_nothing_runs_code_from_data(path: Path) -> None:
    assert code_from_data(ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("sarathi_jax.scheduling.x", "from sarathi_jax.engine.loop import Engine"),
        ("sarathi_jax.models.x", "import sarathi_jax.execution.executor"),
        ("sarathi_jax.execution.x", "from sarathi_jax.scheduling.scheduler import Scheduler"),
        ("sarathi_jax.errors", "from sarathi_jax import clock"),
    ],
)
def test_an_upward_import_is_seen(module: str, source: str) -> None:
    assert len(upward_imports(module, ast.parse(source))) == 1


@pytest.mark.parametrize(
    "source", ["import pickle", "from torch import nn", "eval('1')", "subprocess.run('x', shell=True)"]
)
def test_code_from_data_is_seen(source: str) -> None:
    assert len(code_from_data(ast.parse(source))) == 1


def modules_after(statement: str) -> set[str]:
    """The modules that a fresh interpreter holds after a statement."""
    program = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_host_code_never_imports_jax() -> None:
    loaded = modules_after("import " + ", ".join(HOST_MODULES))
    assert set(HOST_MODULES) <= loaded
    assert not loaded & {"jax", "jaxlib", "flax"}


def test_importing_the_package_is_light() -> None:
    loaded = modules_after("import sarathi_jax")
    assert not loaded & {"jax", "numpy", "sarathi_jax.llm", "sarathi_jax.engine"}


def test_no_module_is_loaded_twice_under_a_bare_name() -> None:
    loaded = modules_after("import " + ", ".join(module_name(path) for path in PACKAGE))
    assert not loaded & {"kernels", "models", "serve"}


def test_public_names_are_there() -> None:
    public = {"LLM", "SamplingParams", "EngineConfig", "follow", "generate", "load_model", "restore"}
    assert public <= set(sarathi_jax.__all__)
    for name in sarathi_jax.__all__:
        assert getattr(sarathi_jax, name) is not None


def test_the_module_generate_does_not_hide_the_function() -> None:
    program = "from sarathi_jax.generate import load_model\nfrom sarathi_jax import generate\nassert callable(generate)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_an_unknown_public_name_lists_the_right_ones() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Engine'; it has LLM, EngineConfig"):
        _ = sarathi_jax.Engine  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("folder", ["kernels", "models", "serve"])
def test_package_folders_are_relative_links(folder: str) -> None:
    link = ROOT / "sarathi_jax" / folder
    assert str(link.readlink()) == f"../{folder}"
    assert (ROOT / folder).is_dir()


def test_the_architecture_page_lists_every_file() -> None:
    done = subprocess.run([sys.executable, ".ci/list_files.py", "--check"], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "")


def test_no_file_names_a_path_of_a_machine() -> None:
    pattern = re.compile(r"(?<![\w.])/(?:root|home|Users|work)/\w")
    texts = [
        path
        for folder in (*CODE_FOLDERS, "docs")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".md", ".toml", ".sh"}
    ]
    found = [
        str(path)
        for path in [*texts, *ROOT.glob("[!.]*.*"), ROOT / "Makefile"]
        if path.is_file() and pattern.search(path.read_text())
    ]
    assert found == []
