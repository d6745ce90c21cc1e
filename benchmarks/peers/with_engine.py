"""This project's engine, in a process of its own, without HTTP."""

from collections.abc import Iterable, Sequence

from benchmarks.peers.load import Order
from benchmarks.peers.play import Play, play_in_steps, serve_loads
from sarathi_jax import LLM, SamplingParams
from sarathi_jax.cpu_defaults import claim_process

PAGE_SIZE = 16


class Engine:
    """Its steps."""

    def __init__(self, order: Order) -> None:
        self._llm = LLM(
            order.folder,
            progress=False,
            dtype="float32",
            max_num_seqs=order.max_num_seqs,
            token_budget=order.token_budget,
            max_model_len=order.max_model_len,
            page_size=PAGE_SIZE,
            num_pages=order.kv_tokens // PAGE_SIZE,
            prefix_caching=False,  # each turn brings the same prompts
        )

    def add(self, place: int, prompt: list[int], max_tokens: int) -> None:
        params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        self._llm.engine.add_request(prompt, params, request_id=str(place))

    def step(self) -> Iterable[tuple[int, Sequence[int]]]:
        return ((int(event.request_id), event.token_ids) for event in self._llm.engine.step())


def start(order: Order) -> Play:
    engine = Engine(order)
    return lambda requests: play_in_steps(engine, requests)


if __name__ == "__main__":
    claim_process()  # it runs this one model, as a command does
    serve_loads(start, ["jax", "jaxlib", "numpy"])
