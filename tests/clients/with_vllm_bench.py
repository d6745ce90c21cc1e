"""`vllm bench serve`: completions of random tokens, chats of a file's prompts, prompts that share a beginning; every request has to be answered in full."""

import json
import subprocess
import sys
from pathlib import Path

URL, MODEL, TOKENIZER, WORK = sys.argv[1:]
COMPLETIONS = ("--backend", "openai", "--endpoint", "/v1/completions", "--ignore-eos")
CHATS = ("--backend", "openai-chat", "--endpoint", "/v1/chat/completions")
NUM_PROMPTS = 16


def main() -> None:
    random = bench("random", *COMPLETIONS, "--random-input-len", "64", "--random-output-len", "32")
    assert random["total_output_tokens"] == NUM_PROMPTS * 32, random["total_output_tokens"]
    shared = bench(
        "prefix_repetition",
        *COMPLETIONS,
        *("--prefix-repetition-prefix-len", "64", "--prefix-repetition-suffix-len", "16"),
        *("--prefix-repetition-num-prefixes", "2", "--prefix-repetition-output-len", "16"),
    )
    assert shared["total_output_tokens"] == NUM_PROMPTS * 16, shared["total_output_tokens"]
    prompts = Path(WORK) / "prompts.jsonl"
    lines = [{"prompt": f"What is {number}+30?", "output_tokens": 8} for number in range(NUM_PROMPTS)]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    chats = bench("custom", *CHATS, "--dataset-path", str(prompts), "--custom-output-len", "-1")
    assert chats["total_output_tokens"] > NUM_PROMPTS, chats["total_output_tokens"]
    # At its end vllm's process leaves a line open.
    print(f"\n{NUM_PROMPTS} requests each of random, prefix_repetition and custom (chats): all completed")


def bench(dataset: str, *options: str) -> dict:
    """What it saves of one run."""
    path = Path(WORK) / f"{dataset}.json"
    command = [str(Path(sys.executable).with_name("vllm")), "bench", "serve", "--base-url", URL, "--model", MODEL]
    command += ["--tokenizer", TOKENIZER, "--dataset-name", dataset, *options, "--num-prompts", str(NUM_PROMPTS)]
    command += ["--max-concurrency", "8", "--seed", "1", "--save-result"]
    command += ["--result-dir", WORK, "--result-filename", path.name, "--disable-tqdm"]
    subprocess.run(command, cwd=WORK, check=True)
    result = json.loads(path.read_text())
    assert result["completed"] == NUM_PROMPTS and not result.get("failed"), result
    assert result["median_ttft_ms"] > 0 and result["median_itl_ms"] > 0, result
    return result


main()
