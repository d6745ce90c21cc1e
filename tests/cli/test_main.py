"""Finding a command, its help, and what errors look like: one line on standard error and an exit code."""

import os
import subprocess
import sys

import pytest

from sarathi_jax.cli import main as command_line
from sarathi_jax.cli.main import COMMANDS, main


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("genrate", "sarathi-jax: error: unknown command genrate: did you mean generate? See `sarathi-jax --help`."),
        ("bench latncy", "sarathi-jax: error: unknown command bench latncy: did you mean bench latency?"),
        ("deploy", "sarathi-jax: error: unknown command deploy."),
        ("--verson", "sarathi-jax: error: unknown option --verson: did you mean --version?"),
        ("generate --promt x", "sarathi-jax generate: error: unknown option --promt: did you mean --prompt?"),
        ("chat --temperature nan", "sarathi-jax chat: error: temperature must be a finite number, got nan"),
        ("generate a --model b", "MODEL must be named once, got a and --model b: leave one out."),
        ("generate --prompt a --prompt b --stream", "--stream prints one sample of one prompt as it comes"),
        ("generate --prompt a --token-budget 1", "token_budget=1 must be >= max_num_seqs=128"),
        ("convert demo", "sarathi-jax convert: error: the following arguments are required: DST. See"),
        (
            "convert demo x --dtype int8",
            "argument --dtype: invalid choice: 'int8' (choose from",
        ),
        ("convert nowhere x", "sarathi-jax convert: error: a model must be 'demo', a folder or a hub id"),
        ("bench latency --repeats 0", "--repeats must be at least 1, got 0: pass a positive number."),
        ("bench throughput --num-requests 0", "num_requests must be at least 1, got 0: pass a positive number."),
        ("bench throughput --trace nowhere.csv", "the trace nowhere.csv must be a CSV file, got [Errno 2]"),
        ("bench throughput --trace x --lengths zipf", "--trace brings its own lengths: leave out --lengths."),
        ("bench throughput --request-rate 0", "request_rate must be above 0, got 0.0: leave it out"),
        ("bench throughput --plot out.txt", "the plot's name must end in .png, .svg, .pdf, got out.txt: rename it."),
    ],
)
def test_a_users_error_is_one_line_and_exit_code_2(line: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    printed = capsys.readouterr()
    assert text in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


@pytest.mark.parametrize(("line", "code"), [("", 2), ("--help", 0), ("-h", 0), ("help", 0)])
def test_the_overview_names_every_command(line: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == code
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in COMMANDS)


@pytest.mark.parametrize(("line", "code"), [("bench", 2), ("bench --help", 0)])
def test_a_group_of_commands_has_an_overview(line: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == code
    printed = capsys.readouterr().out
    assert "bench latency" in printed
    assert "bench throughput" in printed
    assert "doctor" not in printed


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("sarathi-jax 0.")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples_and_loads_no_jax(name: str) -> None:
    program = "import sys; from sarathi_jax.cli.main import main; code = main(); print(*sys.modules); sys.exit(code)"
    done = subprocess.run(
        [sys.executable, "-c", program, *name.split(), "--help"], capture_output=True, text=True, check=True
    )
    help_text, modules = done.stdout.rsplit("\n", 2)[:2]
    assert f"examples:\n  sarathi-jax {name}" in help_text
    assert not {"jax", "flax", "matplotlib"} & set(modules.split())


@pytest.mark.parametrize("line", ["bench serve --url http://127.0.0.1:1", "chat --url http://127.0.0.1:1"])
def test_a_command_that_talks_to_a_server_runs_without_jax(line: str) -> None:
    program = "import sys; from sarathi_jax.cli.main import main; code = main(sys.argv[1:]); print(code, *sys.modules)"
    done = subprocess.run([sys.executable, "-c", program, *line.split()], capture_output=True, text=True, check=True)
    code, *modules = done.stdout.split()
    assert (code, "a server must answer at http://127.0.0.1:1, got no connection" in done.stderr) == ("2", True)
    assert not {"jax", "flax", "matplotlib"} & set(modules)


def test_an_engines_failure_is_exit_code_1(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, words: list[str]) -> int:
        raise command_line.EngineError(f"{name} broke\n  on two lines.")

    monkeypatch.setattr(command_line, "run_command", fail)
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err == "sarathi-jax doctor: error: doctor broke on two lines.\n"


def test_an_interrupt_is_exit_code_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(name: str, words: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "run_command", interrupt)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == ""


def test_a_reader_that_leaves_is_no_error() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    program = "import sys; from sarathi_jax.cli.main import main; sys.exit(main(['--help']))"
    done = subprocess.run([sys.executable, "-c", program], stdout=write_end, stderr=subprocess.PIPE, check=False)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (0, b"")
