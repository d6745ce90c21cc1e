# pyright: reportMissingImports=false
"""OpenVINO GenAI's continuous batching on the CPU; optimum-intel makes its model of the Hugging Face folder, once, with the weights as they are."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import openvino
import openvino_genai as genai
from optimum.intel import OVModelForCausalLM

from benchmarks.peers.load import Order
from benchmarks.peers.play import Play, play_in_steps, serve_loads

# Of itself it takes bfloat16 where the processor has it, and 8-bit keys and values.
FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
CACHE_GB = 1


class Engine:
    """Its steps."""

    def __init__(self, order: Order) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = order.token_budget
        scheduler.max_num_seqs = order.max_num_seqs
        scheduler.dynamic_split_fuse = True  # its default: prompts in chunks, beside decodes
        scheduler.enable_prefix_caching = False
        scheduler.cache_size = CACHE_GB
        properties = {"INFERENCE_NUM_THREADS": order.num_threads} | (FLOAT32 if order.precision == "float32" else {})
        self._pipeline = genai.ContinuousBatchingPipeline(converted(order.folder), scheduler, "CPU", properties)
        self._handles: dict[int, genai.GenerationHandle] = {}

    def add(self, place: int, prompt: list[int], max_tokens: int) -> None:
        config = genai.GenerationConfig(max_new_tokens=max_tokens, ignore_eos=True, do_sample=False)
        ids = openvino.Tensor(np.array([prompt], dtype=np.int64))
        self._handles[place] = self._pipeline.add_request(place, ids, config)

    def step(self) -> Iterable[tuple[int, Sequence[int]]]:
        self._pipeline.step()
        for place, handle in self._handles.items():
            while handle.can_read():
                for output in handle.read().values():
                    yield place, output.generated_ids


def converted(folder: str) -> str:
    """The folder of OpenVINO's form of a model, inside the model's own; made if it is not there."""
    target = Path(folder) / "openvino"
    if not (target / "openvino_model.xml").exists():
        model = OVModelForCausalLM.from_pretrained(folder, export=True, load_in_8bit=False, compile=False)
        model.save_pretrained(target)
    return str(target)


def start(order: Order) -> Play:
    engine = Engine(order)
    return lambda requests: play_in_steps(engine, requests)


if __name__ == "__main__":
    serve_loads(start, ["openvino", "openvino-genai", "optimum-intel"])
