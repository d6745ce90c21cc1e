"""What a step takes: time by stage and by kind of work, operations and bytes; and what of a device's memory the model leaves.

The formulas are those of Vidur and Sarathi-Serve's follow-ups, n tokens in a step, per layer and device, W numbers in weights of i bytes:

    products      L + ((W i / BW)^p + (2 W n' / F)^p)^(1/p)    n' = n rounded up to 128 where it is more; L is one launch a product
    the rest      max(floor, bytes moved / BW_e)               norms, rotation, activation, residual sums
    a chunk       max(4 H D c (k + c/2) / F_a, (k + c) kv / BW_a)   k tokens cached, c new; kv bytes of a token's keys and values
    decodes       sum of contexts * kv / BW_a
    all-reduce    launch + alpha + n E i / beta                twice a layer, once in a parallel block; and one after the embedding

BW, F, L, p, floor, BW_e, F_a, BW_a are `hardware.Device`'s, alpha and beta `links.Links`'. One L for each product makes one set of constants serve every cut of
a model, where a bandwidth for each cut would be needed without it. Steps are counted as they are, not as the bucket that they are padded to.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from sarathi_jax.config import TOKEN_TILE
from sarathi_jax.simulation.hardware import Device, HostCost, LinearRates
from sarathi_jax.simulation.links import Links
from sarathi_jax.simulation.model_shape import ModelShape
from sarathi_jax.simulation.placement import Placement
from sarathi_jax.simulation.step_work import ChunkWork, StepWork

PRODUCTS_PER_LAYER = 4  # q, k and v in one; attention output; gate and up in one; down
ROUTED_PRODUCTS_PER_LAYER = 5  # and the router


@dataclass(frozen=True, slots=True)
class StageCost:
    """One stage of the pipeline on one of its devices. head_s: of logits, in the last stage. send_s: to the next stage. flop, hbm_bytes: multiplied and moved, at least."""

    linear_s: float
    other_s: float
    attention_prefill_s: float
    attention_decode_s: float
    all_reduce_s: float
    head_s: float
    send_s: float
    flop: float
    hbm_bytes: float

    @property
    def seconds(self) -> float:
        compute_s = self.linear_s + self.other_s + self.attention_prefill_s + self.attention_decode_s + self.head_s
        return compute_s + self.all_reduce_s + self.send_s


@dataclass(frozen=True, slots=True)
class StepCost:
    """One microbatch through all stages."""

    stages: tuple[StageCost, ...]
    host_s: float
    is_host_overlapped: bool

    @property
    def latency_s(self) -> float:
        """From scheduling it to its tokens: what a decode waits for its next token when nothing stands before it."""
        return self._with_host(sum(stage.seconds for stage in self.stages))

    @property
    def period_s(self) -> float:
        """From one microbatch to the next when all stages are busy: the longest stage."""
        return self._with_host(max(stage.seconds for stage in self.stages))

    def _with_host(self, device_s: float) -> float:
        return max(device_s, self.host_s) if self.is_host_overlapped else device_s + self.host_s


@dataclass(frozen=True)
class CostModel:
    """Prices steps of one model on one placement. has_split_sends: the devices of a stage send a part of the activations each, instead of all of them."""

    model: ModelShape
    device: Device
    placement: Placement
    links: Links
    host: HostCost
    has_split_sends: bool = False

    def step(self, work: StepWork) -> StepCost:
        """The cost of one microbatch."""
        num_stages = self.placement.stage
        stages = tuple(self._stage(work, index) for index in range(num_stages))
        return StepCost(stages, self.host.seconds(work.num_rows), self.host.is_overlapped)

    @cached_property
    def weight_bytes(self) -> int:
        """On the device that holds most: its share of the layers, the embedding and the head. Norms are not counted."""
        model, placement = self.model, self.placement
        experts = model.mlp_parameters * max(model.num_experts, 1) // placement.devices_per_stage
        layer = model.attention_parameters // placement.devices_per_stage + experts + model.router_parameters
        vocab = model.vocab_parameters * (1 if model.is_head_tied else 2) // placement.devices_per_stage
        return (layer * (model.num_layers // placement.stage) + vocab) * model.weight_itemsize

    @cached_property
    def kv_bytes_per_token(self) -> int:
        """On one device, over its stage's layers."""
        return self._kv_heads * self.model.kv_token_bytes * (self.model.num_layers // self.placement.stage)

    def kv_tokens(self, memory_fraction: float, temp_bytes: int = 0) -> int:
        """Tokens whose keys and values a device has room for beside the weights; below 0 if there is none."""
        left = self.device.memory_bytes * memory_fraction - self.weight_bytes - temp_bytes
        return int(left // self.kv_bytes_per_token)

    @property
    def _kv_heads(self) -> int:
        """On one device: heads fewer than devices are repeated."""
        return max(self.model.num_kv_heads // self.placement.devices_per_stage, 1)

    @cached_property
    def _stage_windows(self) -> list[Counter[int | None]]:
        """Of each stage: window -> layers."""
        num_layers = self.model.num_layers // self.placement.stage
        starts = range(0, self.model.num_layers, num_layers)
        return [Counter(map(self.model.window, range(start, start + num_layers))) for start in starts]

    def _stage(self, work: StepWork, index: int) -> StageCost:
        placement, num_tokens = self.placement, work.num_tokens
        num_layers = self.model.num_layers // placement.stage
        is_last = index == placement.stage - 1
        windows = self._stage_windows[index]
        linear_s, linear_flop, linear_bytes = self._layer_products(num_tokens)
        head_s, head_flop, head_bytes = self._head(work.num_rows) if is_last else (0.0, 0.0, 0.0)
        pairs = sum(count * self._pairs(work, window) for window, count in windows.items())
        kv_tokens = sum(count * _kv_tokens_read(work, window) for window, count in windows.items())
        moved = self._elementwise_bytes * num_tokens
        return StageCost(
            linear_s=num_layers * linear_s,
            other_s=num_layers * self._elementwise_s(num_tokens),
            attention_prefill_s=sum(count * self._chunks_s(work.chunks, window) for window, count in windows.items()),
            attention_decode_s=sum(count * self._decodes_s(work, window) for window, count in windows.items()),
            all_reduce_s=self._all_reduces_s(num_tokens, num_layers, is_first=index == 0),
            head_s=head_s,
            send_s=0.0 if is_last else self._send_s(num_tokens),
            flop=num_layers * linear_flop + head_flop + 4 * self._heads_flop * pairs,
            hbm_bytes=num_layers * (linear_bytes + moved) + head_bytes + kv_tokens * self._kv_layer_bytes,
        )

    # ---- products ----

    def _layer_products(self, num_tokens: int) -> tuple[float, float, float]:
        """Of one layer: seconds, operations, bytes of weights."""
        model, cut = self.model, self.placement.devices_per_stage
        if not num_tokens:
            return 0.0, 0.0, 0.0
        if not model.num_experts:
            return self._products(PRODUCTS_PER_LAYER, [(1, model.layer_parameters / cut, num_tokens)])
        # Each token goes to its experts at random: how many of them have any work, and with how many tokens.
        chosen = model.experts_per_token / model.num_experts
        busy_share = 1 - (1 - chosen) ** num_tokens
        num_busy = model.num_experts / self.placement.expert * busy_share
        parts = [
            (1, model.attention_parameters / cut + model.router_parameters, num_tokens),
            (num_busy, model.mlp_parameters / self.placement.tensor, num_tokens * chosen / busy_share),
        ]
        return self._products(ROUTED_PRODUCTS_PER_LAYER, parts)

    def _head(self, num_rows: int) -> tuple[float, float, float]:
        if not num_rows:
            return 0.0, 0.0, 0.0
        return self._products(1, [(1, self.model.vocab_parameters / self.placement.devices_per_stage, num_rows)])

    def _products(self, num_launches: int, parts: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
        """parts: how many products, of how many numbers of weights each, with how many tokens each."""
        itemsize, rates = self.model.weight_itemsize, self.device.linear
        seconds = sum(
            count * product_s(weights * itemsize, 2 * weights * tile_rounded(num_tokens), rates)
            for count, weights, num_tokens in parts
        )
        flop = sum(count * 2 * weights * num_tokens for count, weights, num_tokens in parts)
        return num_launches * rates.launch_s + seconds, flop, sum(part[0] * part[1] for part in parts) * itemsize

    @cached_property
    def _elementwise_bytes(self) -> float:
        """Of one token in one layer, in numbers of 16 bits.

        Whole tokens are read and written by each norm, and two read and one written by the residual sum (the other one is part of a norm). Of activation and
        rotation each device has its cut: gate and up read and their product written, or just one of them; queries and keys read and written.
        """
        model, cut = self.model, self.placement.devices_per_stage
        whole = (2 * model.num_norms_per_layer + 3) * model.hidden_size
        activation = model.num_mlp_matrices * model.mlp_size * max(model.experts_per_token, 1)
        rotation = 2 * (model.num_heads + model.num_kv_heads) * model.head_dim
        return 2 * (whole + (activation + rotation) / cut)

    def _elementwise_s(self, num_tokens: int) -> float:
        rates = self.device.elementwise
        return max(rates.floor_s, self._elementwise_bytes * num_tokens / rates.bytes_per_s) if num_tokens else 0.0

    # ---- attention ----

    @property
    def _heads_flop(self) -> float:
        """Numbers in the query heads of one device: 4 operations each for every pair of a query and a key."""
        return self.model.num_heads * self.model.head_dim / self.placement.devices_per_stage

    @property
    def _kv_layer_bytes(self) -> int:
        return self._kv_heads * self.model.kv_token_bytes

    def _chunks_s(self, chunks: Sequence[ChunkWork], window: int | None) -> float:
        if not chunks:
            return 0.0
        rates = self.device.attention
        return rates.launch_s + sum(
            max(
                4 * self._heads_flop * _chunk_pairs(chunk, window) / rates.flop_per_s,
                _chunk_keys(chunk, window) * self._kv_layer_bytes / rates.bytes_per_s,
            )
            for chunk in chunks
        )

    def _decodes_s(self, work: StepWork, window: int | None) -> float:
        if not work.num_decodes:
            return 0.0
        rates = self.device.attention
        return rates.launch_s + _decode_keys(work, window) * self._kv_layer_bytes / rates.bytes_per_s

    def _pairs(self, work: StepWork, window: int | None) -> float:
        return _decode_keys(work, window) + sum(_chunk_pairs(chunk, window) for chunk in work.chunks)

    # ---- talk ----

    def _all_reduces_s(self, num_tokens: int, num_layers: int, *, is_first: bool) -> float:
        num_bytes = num_tokens * self.model.hidden_size * 2
        count = num_layers * self.model.num_all_reduces_per_layer + is_first
        return count * self.links.collective_s("all-reduce", num_bytes, self.placement.stage_group)

    def _send_s(self, num_tokens: int) -> float:
        size = self.placement.devices_per_stage
        num_bytes = num_tokens * self.model.hidden_size * 2 / (size if self.has_split_sends else 1)
        num_pairs = min(size, self.placement.gpus_per_host)
        return self.links.send_s(num_bytes, is_remote=self.placement.has_remote_stages, num_pairs=num_pairs)


def product_s(num_bytes: float, flop: float, rates: LinearRates) -> float:
    """A weight product without its launch: memory and compute time, blended."""
    exponent = rates.exponent
    return ((num_bytes / rates.bytes_per_s) ** exponent + (flop / rates.flop_per_s) ** exponent) ** (1 / exponent)


def tile_rounded(num_tokens: float) -> float:
    """Tokens that a product multiplies: whole tiles of 128 once there is more than one."""
    return num_tokens if num_tokens <= TOKEN_TILE else TOKEN_TILE * -(-num_tokens // TOKEN_TILE)


def _chunk_keys(chunk: ChunkWork, window: int | None) -> int:
    """Keys that a chunk reads: all before its end, or those that its first query still sees and all after."""
    total = chunk.num_cached_tokens + chunk.num_new_tokens
    return total if window is None else min(total, window + chunk.num_new_tokens - 1)


def _chunk_pairs(chunk: ChunkWork, window: int | None) -> float:
    """Pairs of a query and a key it sees: c (k + c/2), and of a window what lies within."""
    cached, new = chunk
    if window is None or cached + new <= window:
        return new * (cached + new / 2)
    if cached >= window:
        return float(new * window)
    growing = window - cached  # the first queries see fewer than the window holds
    return growing * (cached + growing / 2) + (new - growing) * window


def _decode_keys(work: StepWork, window: int | None) -> int:
    """Keys that decodes read; of a window at most as many each, as if their contexts were equal."""
    return work.decode_context if window is None else min(work.decode_context, work.num_decodes * window)


def _kv_tokens_read(work: StepWork, window: int | None) -> int:
    return _decode_keys(work, window) + sum(_chunk_keys(chunk, window) for chunk in work.chunks)
