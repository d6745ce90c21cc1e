"""What lm-eval has to find: log-probabilities of the same tasks' texts, by `LLM` in this process, with no server between. Run in the project's environment.

Writes JSON: for toy_mc a list of [log-probability, is greedy] a question; for toy_ppl a log-probability a text; for toy_gen a text a question.
"""

import json
import sys
from pathlib import Path
from typing import Any

from sarathi_jax import LLM, SamplingParams

FOLDER = Path(__file__).parent
SCORE = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=1)
ANSWER = SamplingParams(max_tokens=24, temperature=0, stop=("\n",))


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def score(llm: LLM, token_ids: list[int], num_given: int) -> tuple[float, bool]:
    """Of all tokens from the `num_given`-th on: the sum of their log-probabilities, and whether each was the most probable one."""
    given = llm.generate([token_ids], SCORE)[0].prompt_logprobs
    assert given is not None
    scored = [each for each in given[num_given:] if each is not None]
    assert len(scored) == len(token_ids) - num_given
    return sum(each.logprob for each in scored), all(each.rank == 1 for each in scored)


def main() -> None:
    llm = LLM("demo", max_num_seqs=8, token_budget=128)
    assert llm.tokenizer is not None
    encode, bos = llm.tokenizer.encode, llm.tokenizer.bos_token_id
    assert bos is not None
    # As lm-eval sends them with add_bos_token: a question as it is tokenized with its answer; a text after one token more, for it scores BOS as well.
    choices = [
        [
            score(
                llm,
                encode(doc["question"] + choice),
                len(encode(doc["question"])),
            )
            for choice in doc["choices"]
        ]
        for doc in read("toy_mc")
    ]
    texts = [score(llm, [bos, *encode(doc["text"])], 1)[0] for doc in read("toy_ppl")]
    questions = [encode(doc["question"]) for doc in read("toy_gen")]
    answers = [output.outputs[0].text for output in llm.generate(questions, ANSWER)]
    expected = {"toy_mc": choices, "toy_ppl": texts, "toy_gen": answers}
    Path(sys.argv[1]).write_text(json.dumps(expected), encoding="utf-8")


if __name__ == "__main__":
    main()
