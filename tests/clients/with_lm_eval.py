"""lm-eval's local-completions: multiple choice, generation and rolling log-likelihood, with the numbers that `LLM` gives in one process."""

import json
import subprocess
import sys
from pathlib import Path

URL, MODEL, TOKENIZER, WORK = sys.argv[1:]
FOLDER = Path(__file__).resolve().parent / "lm_eval"
TASKS = ("toy_mc", "toy_gen", "toy_ppl")
# Both ran the same programs in float32; what differs is how prompts were cut into steps.
TOLERANCE = 1e-3


def main() -> None:
    evaluate()
    samples = {task: read_samples(task) for task in TASKS}
    expected = json.loads((Path(WORK) / "expected.json").read_text())
    check_choices(samples["toy_mc"], expected["toy_mc"])
    check_texts(samples["toy_ppl"], expected["toy_ppl"])
    check_answers(samples["toy_gen"], expected["toy_gen"])
    print(f"{', '.join(f'{len(samples[task])} {task}' for task in TASKS)}: as LLM has them to {TOLERANCE:g}")


def evaluate() -> None:
    options = {
        "model": MODEL,
        "base_url": f"{URL}/v1/completions",
        "num_concurrent": "4",
        "tokenizer_backend": "huggingface",
        "tokenizer": TOKENIZER,
        "max_length": "2048",
        "add_bos_token": "True",
    }
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "local-completions", "--model_args"]
    command += [",".join(f"{name}={value}" for name, value in options.items())]
    command += ["--include_path", str(FOLDER), "--tasks", ",".join(TASKS), "--log_samples", "--output_path", WORK]
    if subprocess.run(command, cwd=FOLDER, check=False).returncode:
        sys.exit("lm-eval ended with an error")


def read_samples(task: str) -> list:
    """In the order of the task's documents."""
    (path,) = Path(WORK).rglob(f"samples_{task}_*.jsonl")
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted(samples, key=lambda sample: sample["doc_id"])


def check_choices(samples: list, expected: list) -> None:
    for sample, choices in zip(samples, expected, strict=True):
        for (got, is_greedy), (logprob, should_be_greedy) in zip(sample["filtered_resps"], choices, strict=True):
            assert abs(float(got) - logprob) < TOLERANCE, (sample["doc"], got, logprob)
            assert (str(is_greedy) == "True") == should_be_greedy, (sample["doc"], is_greedy, should_be_greedy)
        assert sample["acc"] == 1.0, sample


def check_texts(samples: list, expected: list) -> None:
    for sample, logprob in zip(samples, expected, strict=True):
        got = float(sample["filtered_resps"][0])
        assert abs(got - logprob) < TOLERANCE, (sample["doc"], got, logprob)


def check_answers(samples: list, expected: list) -> None:
    for sample, text in zip(samples, expected, strict=True):
        assert sample["filtered_resps"] == [text], (sample["filtered_resps"], text)
        assert sample["exact_match"] == 1.0, sample


main()
