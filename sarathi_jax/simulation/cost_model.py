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
from dataclasses import dataclass, fields
from functools import cached_property
from typing import NamedTuple

from sarathi_jax.config import TOKEN_TILE
from sarathi_jax.simulation.hardware import Device, HostCost, LinearRates
from sarathi_jax.simulation.links import Links
from sarathi_jax.simulation.model_shape import ModelShape
from sarathi_jax.simulation.placement import MEGATRON_CUTS, Axes, Cuts, Placement
from sarathi_jax.simulation.step_work import StepWork

PRODUCTS_PER_LAYER = 4  # q, k and v in one; attention output; gate and up in one; down
ROUTED_PRODUCTS_PER_LAYER = 5  # and the router


@dataclass(frozen=True, slots=True)
class StageCost:
    """One stage of the pipeline on one of its devices. all_reduce_s: or what stands for all-reduces where tokens are cut. head_s: of logits, in the last stage.
    send_s: to the next stage. flop, hbm_bytes: multiplied and moved, at least."""

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
        return sum(self.parts.values())

    @property
    def parts(self) -> dict[str, float]:
        """What its time is made of: name -> seconds."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name.endswith("_s")}


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

    @property
    def tick(self) -> dict[str, float]:
        """What a tick of a pipeline in lock step is made of, where every stage runs the same program, first and last parts included: name -> seconds."""
        return {name: max(stage.parts[name] for stage in self.stages) for name in self.stages[0].parts}

    @property
    def tick_s(self) -> float:
        return self._with_host(sum(self.tick.values()))

    def _with_host(self, device_s: float) -> float:
        return max(device_s, self.host_s) if self.is_host_overlapped else device_s + self.host_s


class _Products(NamedTuple):
    """Of one device: seconds, operations, and numbers in the weights that are read."""

    seconds: float
    flop: float
    num_weights: float


@dataclass(frozen=True)
class CostModel:
    """Prices steps of one model on one placement.

    has_split_sends: the devices of a stage send a part of the activations each, instead of all of them.
    """

    model: ModelShape
    device: Device
    placement: Placement
    links: Links
    host: HostCost
    cuts: Cuts = MEGATRON_CUTS
    has_split_sends: bool = False

    def step(self, work: StepWork) -> StepCost:
        """The cost of one microbatch. Raises: ConfigError if a count is negative."""
        work.check()
        stages = tuple(self._stage(work, index) for index in range(self.placement.stage))
        return StepCost(stages, self.host.seconds(work.num_rows), self.host.is_overlapped)

    def first_stage(self, work: StepWork) -> StageCost:
        """Of one microbatch: what all stages take, but for the last one's head."""
        return self._stage(work, 0)

    def stages_s(self, work: StepWork) -> tuple[float, ...]:
        """Seconds of each stage, as `step` has them. What depends on the number of tokens or of rows alone is looked up: for those who price many steps."""
        num_tokens, num_rows = work.num_tokens, work.num_rows
        by_tokens = self._seconds_by_tokens.get(num_tokens)
        if by_tokens is None:
            costs = self.step(StepWork((), num_tokens)).stages
            by_tokens = tuple([each.linear_s + each.other_s + each.all_reduce_s + each.send_s for each in costs])
            self._seconds_by_tokens[num_tokens] = by_tokens
        head_s = self._seconds_by_rows.get(num_rows)
        if head_s is None:
            head_s = self._seconds_by_rows[num_rows] = self._head(num_rows).seconds
        seconds = list(by_tokens)
        for window, counts in self._layers_by_window.items():
            attention_s = self._chunks_s(work, window) + self._decodes_s(work, window)
            for stage, count in enumerate(counts):
                seconds[stage] += count * attention_s
        seconds[-1] += head_s
        return tuple(seconds)

    @cached_property
    def _seconds_by_tokens(self) -> dict[int, tuple[float, ...]]:
        """Tokens of a step -> what each stage takes for them without attention and head; filled as they come."""
        return {}

    @cached_property
    def _seconds_by_rows(self) -> dict[int, float]:
        """Rows of a step -> what the head takes; filled as they come."""
        return {}

    @cached_property
    def weight_bytes(self) -> int:
        """On the device that holds most: its share of the layers, the embedding and the head. Norms are not counted."""
        model, numbers = self.model, 0.0
        for (_, is_routed), count in self._kinds[0].items():
            experts = model.num_experts / self._size(self.cuts.expert) * self._expert_numbers
            mlp = experts + model.router_parameters if is_routed else self._mlp_numbers
            numbers += count * (self._attention_numbers + mlp)
        vocab = model.vocab_parameters * (1 if model.is_head_tied else 2) / self._size(self.cuts.vocab)
        return int((numbers + vocab) * model.weight_itemsize)

    @cached_property
    def kv_bytes_per_token(self) -> int:
        """On one device, over its stage's layers."""
        return self._kv_layer_bytes * (self.model.num_layers // self.placement.stage)

    def kv_tokens(self, memory_fraction: float, temp_bytes: int = 0) -> int:
        """Tokens whose keys and values a device has room for beside the weights; below 0 if there is none."""
        left = self.device.memory_bytes * memory_fraction - self.weight_bytes - temp_bytes
        return int(left // self.kv_bytes_per_token)

    @cached_property
    def _kinds(self) -> list[Counter[tuple[int | None, bool]]]:
        """Of each stage: window and whether there are experts -> layers."""
        num_layers = self.model.num_layers // self.placement.stage
        starts = range(0, self.model.num_layers, num_layers)
        return [Counter(map(self.model.kind, range(start, start + num_layers))) for start in starts]

    @cached_property
    def _layers_by_window(self) -> dict[int | None, tuple[int, ...]]:
        """Window -> layers of each stage that have it."""
        windows = dict.fromkeys(window for kinds in self._kinds for window, _ in kinds)
        return {
            each: tuple(sum(count for (window, _), count in kinds.items() if window == each) for kinds in self._kinds)
            for each in windows
        }

    def _size(self, axes: Axes) -> int:
        return self.placement.size(axes)

    def _stage(self, work: StepWork, index: int) -> StageCost:
        num_tokens, kinds = work.num_tokens, self._kinds[index]
        is_last = index == self.placement.stage - 1
        head = self._head(work.num_rows) if is_last else _Products(0, 0, 0)
        layers = [
            (count, window, self._layer_products(num_tokens, is_routed)) for (window, is_routed), count in kinds.items()
        ]
        num_weights = head.num_weights + sum(count * products.num_weights for count, _, products in layers)
        pairs = sum(count * work.num_pairs(window) for count, window, _ in layers)
        keys = sum(count * work.num_keys(window) for count, window, _ in layers)
        num_layers = kinds.total()
        moved = self._elementwise_bytes * num_tokens
        return StageCost(
            linear_s=sum(count * products.seconds for count, _, products in layers),
            other_s=num_layers * self._elementwise_s(num_tokens),
            attention_prefill_s=sum(count * self._chunks_s(work, window) for count, window, _ in layers),
            attention_decode_s=sum(count * self._decodes_s(work, window) for count, window, _ in layers),
            all_reduce_s=self._all_reduces_s(num_tokens, kinds, is_first=index == 0),
            head_s=head.seconds,
            send_s=0.0 if is_last else self._send_s(num_tokens),
            flop=sum(count * products.flop for count, _, products in layers)
            + head.flop
            + 4 * self._query_numbers * pairs,
            hbm_bytes=num_weights * self.model.weight_itemsize + num_layers * moved + keys * self._kv_layer_bytes,
        )

    # ---- products ----

    @cached_property
    def _kv_heads(self) -> int:
        """On one device: heads fewer than devices are repeated."""
        return max(self.model.num_kv_heads // self._size(self.cuts.kv_heads), 1)

    @cached_property
    def _attention_numbers(self) -> float:
        """In the weights of one layer's q, k, v and output products on one device."""
        heads = self.model.num_heads / self._size(self.cuts.heads) + self._kv_heads
        return self.model.hidden_size * self.model.head_dim * 2 * heads

    @cached_property
    def _mlp_numbers(self) -> float:
        return self.model.dense_mlp_parameters / self._size(self.cuts.mlp)

    @cached_property
    def _expert_numbers(self) -> float:
        """In the weights of one expert on one device."""
        return self.model.mlp_parameters / self._size(self.cuts.expert_mlp)

    def _layer_products(self, num_tokens: int, is_routed: bool) -> _Products:
        if not num_tokens:
            return _Products(0, 0, 0)
        if not is_routed:
            numbers = self._attention_numbers + self._mlp_numbers
            return self._products(PRODUCTS_PER_LAYER, [(1, numbers, num_tokens)])
        # Each token goes to its experts at random: how many of them have any work, and with how many tokens.
        chosen = self.model.experts_per_token / self.model.num_experts
        busy_share = 1 - (1 - chosen) ** num_tokens
        num_busy = self.model.num_experts / self._size(self.cuts.expert) * busy_share
        parts = [
            (1, self._attention_numbers + self.model.router_parameters, num_tokens),
            (num_busy, self._expert_numbers, num_tokens * chosen / busy_share),
        ]
        return self._products(ROUTED_PRODUCTS_PER_LAYER, parts)

    def _head(self, num_rows: int) -> _Products:
        if not num_rows:
            return _Products(0, 0, 0)
        return self._products(1, [(1, self.model.vocab_parameters / self._size(self.cuts.vocab), num_rows)])

    def _products(self, num_launches: int, parts: Sequence[tuple[float, float, float]]) -> _Products:
        """parts: how many products, of how many numbers of weights each, with how many tokens each."""
        itemsize, rates = self.model.weight_itemsize, self.device.linear
        seconds = sum(
            count * product_s(weights * itemsize, 2 * weights * tile_rounded(num_tokens), rates)
            for count, weights, num_tokens in parts
        )
        flop = sum(count * 2 * weights * num_tokens for count, weights, num_tokens in parts)
        return _Products(
            num_launches * rates.launch_s + seconds, flop, sum(count * weights for count, weights, _ in parts)
        )

    # ---- what is neither product nor attention ----

    @cached_property
    def _elementwise_bytes(self) -> float:
        """Of one token in one layer, in numbers of 16 bits.

        Whole tokens are read and written by each norm, and two read and one written by the residual sum (the other one is part of a norm). Of activation and
        rotation each device has its cut: gate and up read and their product written, or just one of them; queries and keys read and written.
        """
        model, cuts = self.model, self.cuts
        whole = (2 * model.num_norms_per_layer + 3) * model.hidden_size / self._size(cuts.tokens)
        if model.num_experts:
            columns = model.experts_per_token * model.mlp_size / self._size(cuts.expert) / self._size(cuts.expert_mlp)
        else:
            columns = model.mlp_size / self._size(cuts.mlp)
        heads = model.num_heads / self._size(cuts.heads) + self._kv_heads
        return 2 * (whole + model.num_mlp_matrices * columns + 2 * heads * model.head_dim)

    def _elementwise_s(self, num_tokens: int) -> float:
        rates = self.device.elementwise
        return max(rates.floor_s, self._elementwise_bytes * num_tokens / rates.bytes_per_s) if num_tokens else 0.0

    # ---- attention ----

    @cached_property
    def _query_numbers(self) -> float:
        """In one token's queries on one device: 4 operations each for every pair of a query and a key."""
        return self.model.num_heads * self.model.head_dim / self._size(self.cuts.heads)

    @cached_property
    def _kv_layer_bytes(self) -> int:
        return self._kv_heads * self.model.kv_token_bytes

    def _chunks_s(self, work: StepWork, window: int | None) -> float:
        if not work.chunks:
            return 0.0
        rates, numbers, num_bytes, seconds = self.device.attention, self._query_numbers, self._kv_layer_bytes, 0.0
        for chunk in work.chunks:
            compute_s = 4 * numbers * chunk.num_pairs(window) / rates.flop_per_s
            read_s = chunk.num_keys(window) * num_bytes / rates.bytes_per_s
            seconds += compute_s if compute_s > read_s else read_s
        return rates.launch_s + seconds

    def _decodes_s(self, work: StepWork, window: int | None) -> float:
        if not work.num_decodes:
            return 0.0
        rates = self.device.attention
        return rates.launch_s + work.num_decode_keys(window) * self._kv_layer_bytes / rates.bytes_per_s

    # ---- talk ----

    def _all_reduces_s(self, num_tokens: int, kinds: Counter[tuple[int | None, bool]], *, is_first: bool) -> float:
        if not num_tokens:
            return 0.0
        cuts, num_bytes = self.cuts, num_tokens * self.model.hidden_size * 2
        seconds = self._all_reduce_s(num_bytes, cuts.vocab) if is_first else 0.0
        for (_, is_routed), count in kinds.items():
            mlp = cuts.expert + cuts.expert_mlp if is_routed else cuts.mlp
            if self.model.num_all_reduces_per_layer == 1:
                seconds += count * self._all_reduce_s(num_bytes, cuts.heads + mlp)
            else:
                seconds += count * (self._all_reduce_s(num_bytes, cuts.heads) + self._all_reduce_s(num_bytes, mlp))
        return seconds

    def _all_reduce_s(self, num_bytes: float, axes: Axes) -> float:
        """Of what is cut over these axes; where tokens are cut, scattering and gathering are two launches."""
        group = self.placement.group(tuple(dict.fromkeys(axes)))
        kinds = ("reduce-scatter", "all-gather") if self._size(self.cuts.tokens) > 1 else ("all-reduce",)
        return sum(self.links.collective_s(kind, num_bytes, group) for kind in kinds)

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
