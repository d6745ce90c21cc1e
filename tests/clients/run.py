"""Runs clients that others wrote, as they are, against a server of ours: each in an environment of its own, by a script of its own.

`make clients` runs all of them, `make clients CLIENTS="litellm lm-eval"` some. A client that this machine has no Python or no room for is skipped, and the
table says why. Environments stay under .cache/clients until a client's packages change.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = ROOT / ".cache" / "clients"
MODEL_FOLDER = ROOT / "sarathi_jax" / "assets" / "demo"
SERVER = ("serve", "demo", "--port", "0", "--max-num-seqs", "8", "--token-budget", "128", "--no-access-log")
START_LIMIT_S = 300.0
STOP_LIMIT_S = 30.0
INSTALL_LIMIT_S = 1800.0
CLIENT_LIMIT_S = 600.0
# What libraries would otherwise ask the network for; there is a server on this machine and nothing else.
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "VLLM_NO_USAGE_STATS": "1",
    "NO_PROXY": "*",
    "OPENAI_API_KEY": "unused",
}


@dataclass(frozen=True, kw_only=True)
class Client:
    """script: what to run, in the client's environment. expected: run before it, in the project's; what it prints to a file is the script's to compare with.
    installs: arguments of each `pip install`, in order. python: version that the client needs; "": this one. gigabytes: free disk that an installation needs."""

    script: str
    installs: tuple[tuple[str, ...], ...]
    expected: str = ""
    python: str = ""
    gigabytes: float = 1.0
    environment: Mapping[str, str] = field(default_factory=dict)


TORCH = "torch==2.13.0"
CLIENTS = {
    "litellm": Client(script="with_litellm.py", installs=(("litellm==1.110.2",),)),
    "langchain-openai": Client(script="with_langchain.py", installs=(("langchain-openai==1.7.4",),)),
    "lm-eval": Client(
        script="with_lm_eval.py",
        expected="lm_eval/expected.py",
        installs=(("lm-eval[api]==0.4.13", "transformers==5.24.0"),),
        gigabytes=2,
    ),
    "guidellm": Client(
        script="with_guidellm.py", installs=((TORCH,), ("guidellm==0.8.1",)), python="3.11", gigabytes=6
    ),
    "vllm-bench": Client(
        script="with_vllm_bench.py",
        # Without a target vLLM's benchmark installs as pure Python; without a version of its own pip takes one of years ago.
        installs=(
            (
                TORCH,
                "setuptools",
                "setuptools-scm",
                "setuptools-rust",
                "packaging",
                "jinja2",
                "wheel",
                "cmake",
                "ninja",
            ),
            ("--no-binary", "vllm", "--no-build-isolation", "vllm==0.32.0", "pandas"),
        ),
        python="3.11",
        gigabytes=8,
        environment={"VLLM_TARGET_DEVICE": "empty", "VLLM_VERSION_OVERRIDE": "0.32.0"},
    ),
}


class Skipped(Exception):
    """This machine can't run the client, and why."""


class Failed(Exception):
    """What went wrong; the log has the rest."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="CLIENT", help=f"of {', '.join(CLIENTS)}; none: all")
    names = parser.parse_args(arguments).names or list(CLIENTS)
    if unknown := [name for name in names if name not in CLIENTS]:
        parser.error(f"a client must be one of {', '.join(CLIENTS)}, got {', '.join(unknown)}")
    CACHE.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, str, float, str]] = []
    with served(CACHE / "server.log") as url:
        for name in names:
            rows.append((name, *tried(name, url)))
            print_row(*rows[-1])
    print()
    for row in rows:
        print_row(*row)
    return int(any(result == "fail" for _, result, _, _ in rows))


def print_row(name: str, result: str, seconds: float, remark: str) -> None:
    print(f"{name:<18}{result:<6}{seconds:>8.1f} s  {remark}".rstrip(), flush=True)


def tried(name: str, url: str) -> tuple[str, float, str]:
    """Install and run one client. Returns: pass, fail or skip; the seconds that its script took; a remark."""
    client, folder = CLIENTS[name], CACHE / name
    begin_s = time.perf_counter()
    try:
        python = installed(client, folder)
        begin_s = time.perf_counter()
        remark = run_script(client, folder, python, url)
        return "pass", time.perf_counter() - begin_s, remark
    except Skipped as why:
        return "skip", 0.0, str(why)
    except Failed as why:
        return "fail", time.perf_counter() - begin_s, str(why)


# ---- the server


@contextmanager
def served(log: Path) -> Iterator[str]:
    """A server of the demo model. Yields: its URL. Raises: SystemExit if it does not start."""
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "sarathi_jax.cli.main", *SERVER], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            yield wait_for_url(process, log)
        finally:
            process.terminate()
            try:
                process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for_url(process: "subprocess.Popen[bytes]", log: Path) -> str:
    end_s = time.perf_counter() + START_LIMIT_S
    while time.perf_counter() < end_s and process.poll() is None:
        for line in log.read_text(errors="replace").splitlines():
            if " at http://" in line:
                return line.rpartition(" at ")[2].removesuffix("/v1")
        time.sleep(0.2)
    sys.exit(f"the server did not start: {log}\n{log.read_text(errors='replace')}")


# ---- a client's environment


def installed(client: Client, folder: Path) -> Path:
    """The Python of the client's environment, which is made first if it has to be. Raises: Skipped, Failed."""
    stamp, python = folder / "installed", folder / "bin" / "python"
    wanted = "\n".join(" ".join(each) for each in client.installs)
    if stamp.is_file() and stamp.read_text() == wanted and python.exists():
        return python
    interpreter = find_python(client.python)
    free = shutil.disk_usage(CACHE).free / 2**30
    if free < client.gigabytes:
        raise Skipped(f"needs {client.gigabytes:g} GB of free disk, there are {free:.1f}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    log = folder / "install.log"
    logged([interpreter, "-m", "venv", str(folder)], log, INSTALL_LIMIT_S, {})
    for packages in client.installs:
        logged([str(python), "-m", "pip", "install", *packages], log, INSTALL_LIMIT_S, client.environment)
    stamp.write_text(wanted)
    return python


def find_python(version: str) -> str:
    """An interpreter of this version that can make environments. Raises: Skipped if there is none."""
    if not version:
        return sys.executable
    # pyenv's command is there for versions that are installed and not switched on, and says so when it runs.
    candidates = [
        shutil.which(f"python{version}"),
        *map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python")),
    ]
    for path in filter(None, candidates):
        if subprocess.run([path, "-c", "import ensurepip"], capture_output=True, check=False).returncode == 0:
            return path
    raise Skipped(f"needs Python {version}, and there is none")


def run_script(client: Client, folder: Path, python: Path, url: str) -> str:
    """Returns: the last line that the script printed. Raises: Failed."""
    log, work = folder / "run.log", folder / "work"
    log.unlink(missing_ok=True)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    if client.expected:
        command = [sys.executable, str(HERE / client.expected), str(work / "expected.json")]
        logged(command, log, CLIENT_LIMIT_S, {})
    # Nothing of the project's environment comes with it.
    command = [str(python), str(HERE / client.script), url, "demo", str(MODEL_FOLDER), str(work)]
    away = {"PYTHONPATH": "", "HF_HOME": str(work / "huggingface"), **OFFLINE, **client.environment}
    logged(command, log, CLIENT_LIMIT_S, away)
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def logged(command: Sequence[str], log: Path, limit_s: float, environment: Mapping[str, str]) -> None:
    """Run a command; what it says goes to the end of the log. Raises: Failed."""
    with log.open("a") as output:
        try:
            code = subprocess.run(
                command,
                cwd=ROOT,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=limit_s,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            raise Failed(f"took more than {limit_s:g} s: {log.relative_to(ROOT)}") from None
    if code:
        lines = log.read_text(errors="replace").strip().splitlines()
        raise Failed(f"{lines[-1][:200] if lines else f'exit code {code}'} ({log.relative_to(ROOT)})")


if __name__ == "__main__":
    sys.exit(main())
