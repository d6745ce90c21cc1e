# ruff: noqa: TID251
# pyright: reportMissingImports=false
"""The transformers side of `vs_transformers.py`: a child process in an environment that has PyTorch.

Started as `PYTHON vs_transformers_oracle.py FOLDER NUM_THREADS`; it loads the model and then answers each line of JSON
on stdin with one line of JSON on stdout, idle in between, so that the two sides can take turns on the same cores.

    {"mode": "continuous" | "generate", "prompts": [[int]], "max_tokens": [int], "batch_size": int}
    -> {"seconds": float, "num_output_tokens": int, "token_ids": [[int]], "detail": str}

`continuous`: transformers' continuous batching (`ContinuousBatchingManager`, paged cache, sdpa attention), every request
added at once with its own max_new_tokens; the clock runs from before the first is added to the last result, with the
manager already started and warm. `generate`: left-padded batches of `batch_size` in order of arrival, each generated to the
longest output in it; only the tokens that were asked for count. Neither stops at an end-of-sequence token.
"""

import json
import sys
import time
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

NO_TOKEN = -1


def generation_config(max_new_tokens: int) -> GenerationConfig:
    """Greedy, without an end of sequence."""
    return GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=NO_TOKEN, pad_token_id=0)


def run_continuous(
    model: Any, prompts: list[list[int]], max_tokens: list[int], _batch_size: int
) -> tuple[float, list, str]:
    """Seconds and tokens of all requests through continuous batching."""
    # 64-token pages: the default of 256 is sized for GPU kernels and wastes most of a page at these lengths.
    cache = ContinuousBatchingConfig(
        page_size=64,
        num_blocks=sum(-(-(len(prompt) + tokens) // 64) for prompt, tokens in zip(prompts, max_tokens, strict=True))
        + 8,
        max_batch_tokens=512,
        max_requests_per_batch=len(prompts),
        allow_block_sharing=False,
    )
    with model.continuous_batching_context_manager(
        generation_config=generation_config(max(max_tokens)), continuous_batching_config=cache
    ) as manager:
        start = time.perf_counter()
        ids = [
            manager.add_request(prompt, max_new_tokens=tokens)
            for prompt, tokens in zip(prompts, max_tokens, strict=True)
        ]
        results = {}
        while len(results) < len(ids):
            result = manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                results[result.request_id] = result.generated_tokens
            elif result is None and not manager.is_running():
                raise RuntimeError("transformers' generation thread ended before all requests did")
        seconds = time.perf_counter() - start
    return seconds, [list(results[name]) for name in ids], "sdpa, page_size=64, max_batch_tokens=512"


def run_generate(
    model: Any, prompts: list[list[int]], max_tokens: list[int], batch_size: int
) -> tuple[float, list, str]:
    """Seconds and tokens of left-padded batches through plain `generate`."""
    outputs = []
    start = time.perf_counter()
    for first in range(0, len(prompts), batch_size):
        batch, limits = prompts[first : first + batch_size], max_tokens[first : first + batch_size]
        width = max(map(len, batch))
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in batch])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in batch])
        out = model.generate(ids, attention_mask=mask, generation_config=generation_config(max(limits)))
        outputs += [row[width : width + limit].tolist() for row, limit in zip(out, limits, strict=True)]
    return time.perf_counter() - start, outputs, f"sdpa, left-padded, batch_size={batch_size}"


RUNS = {"continuous": run_continuous, "generate": run_generate}


def main() -> None:
    """Serve runs until stdin ends."""
    folder, num_threads = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(num_threads)
    torch.set_grad_enabled(False)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # Answers go to the real stdout; whatever the library prints must not mix with them.
    answers, sys.stdout = sys.stdout, sys.stderr
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    versions = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(versions), file=answers, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        seconds, token_ids, detail = RUNS[order["mode"]](
            model, order["prompts"], order["max_tokens"], order["batch_size"]
        )
        num_tokens = sum(map(len, token_ids))
        answer = {"seconds": seconds, "num_output_tokens": num_tokens, "token_ids": token_ids, "detail": detail}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
