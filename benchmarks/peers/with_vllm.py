# pyright: reportMissingImports=false
"""vLLM's CPU build, its engine in this process, without HTTP."""

from collections.abc import Iterable, Sequence
from importlib.metadata import packages_distributions

from vllm import LLM, SamplingParams
from vllm.sampling_params import RequestOutputKind

from benchmarks.peers.load import Order
from benchmarks.peers.play import Play, play_in_steps, serve_loads


class Engine:
    """Its steps."""

    def __init__(self, order: Order) -> None:
        self._engine = LLM(
            order.folder,
            dtype="float32" if order.precision == "float32" else "auto",
            skip_tokenizer_init=True,
            max_num_seqs=order.max_num_seqs,
            max_num_batched_tokens=order.token_budget,
            max_model_len=order.max_model_len,
            enable_prefix_caching=False,
        ).llm_engine

    def add(self, place: int, prompt: list[int], max_tokens: int) -> None:
        params = SamplingParams(
            max_tokens=max_tokens,
            temperature=0.0,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        self._engine.add_request(str(place), {"prompt_token_ids": prompt}, params)

    def step(self) -> Iterable[tuple[int, Sequence[int]]]:
        return ((int(output.request_id), output.outputs[0].token_ids) for output in self._engine.step())


def start(order: Order) -> Play:
    engine = Engine(order)
    return lambda requests: play_in_steps(engine, requests)


if __name__ == "__main__":
    serve_loads(start, [*packages_distributions()["vllm"][:1], "torch"])
