"""The cost model's arithmetic, on shapes small enough to count by hand, and what must hold whatever the constants are."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from sarathi_jax.errors import ConfigError
from sarathi_jax.simulation.cost_model import CostModel, StageCost, tile_rounded
from sarathi_jax.simulation.hardware import HostCost, load_device, load_host, load_system
from sarathi_jax.simulation.links import Links
from sarathi_jax.simulation.model_shape import ModelShape
from sarathi_jax.simulation.placement import Cuts, Placement
from sarathi_jax.simulation.step_work import ChunkWork, StepWork, decode_work, prefill_work

TINY = ModelShape(num_layers=4, hidden_size=64, num_heads=8, num_kv_heads=2, head_dim=16, mlp_size=128, vocab_size=256)
ATTENTION = 64 * 16 * 2 * (8 + 2)  # numbers in the weights of a layer's q, k, v and output products
LAYER = ATTENTION + 3 * 64 * 128
NO_HOST = HostCost("none", 0.0, 0.0, is_overlapped=True)
Make = Callable[..., CostModel]


def tiny(shape: ModelShape = TINY, **mesh: int) -> CostModel:
    placement = Placement(num_hosts=2, gpus_per_host=4, **mesh)
    return CostModel(shape, load_device("a100-80g"), placement, Links(load_system("pairwise-a100")), NO_HOST)


def test_negative_counts_have_no_price() -> None:
    with pytest.raises(ConfigError, match="must not be negative"):
        tiny().step(StepWork((), -1))


def only_stage(model: CostModel, work: StepWork) -> StageCost:
    (stage,) = model.step(work).stages
    return stage


def test_operations_and_bytes_of_a_decode_step() -> None:
    """Four layers; q, k, v and output products of 64 x 16 x 20, a gated MLP of 3 x 64 x 128, a head of 64 x 256."""
    head = 64 * 256
    stage = only_stage(tiny(), decode_work(3, 100))
    assert stage.flop == 2 * 3 * (4 * LAYER + head) + 4 * 4 * (8 * 16) * 300
    kv_bytes = 4 * 300 * 2 * 2 * 16 * 2  # layers, tokens, keys and values, KV heads, numbers, bytes
    # Each layer moves, of each token: 2 norms in and out and a sum of three, of 64; gate, up, product; queries and keys in and out.
    moved = 4 * 3 * 2 * (7 * 64 + 3 * 128 + 2 * 10 * 16)
    assert stage.hbm_bytes == 2 * (4 * LAYER + head) + kv_bytes + moved


def test_cutting_over_devices_divides_the_work_and_adds_talk() -> None:
    whole, half = only_stage(tiny(), prefill_work(64)), only_stage(tiny(tensor=2), prefill_work(64))
    assert half.flop == whole.flop / 2
    assert whole.all_reduce_s == 0
    line = load_system("pairwise-a100").all_reduce[2]
    assert half.all_reduce_s == pytest.approx((2 * 4 + 1) * (0.02e-3 + line.seconds(64 * 64 * 2)))


def test_a_parallel_block_has_one_all_reduce_a_layer() -> None:
    parallel = replace(TINY, num_all_reduces_per_layer=1)
    twice, once = (only_stage(tiny(shape, tensor=2), decode_work(1, 1)).all_reduce_s for shape in (TINY, parallel))
    assert once / twice == pytest.approx((4 + 1) / (8 + 1))


def test_stages_share_the_layers_and_send_between_them() -> None:
    first, second = tiny(stage=2, tensor=4).step(prefill_work(128)).stages
    assert (first.head_s, second.send_s) == (0, 0)
    whole = only_stage(tiny(tensor=4), prefill_work(128))
    assert first.linear_s == second.linear_s == pytest.approx(whole.linear_s / 2)
    assert first.send_s == pytest.approx(0.05e-3 + 128 * 64 * 2 / 2.3e9)
    split = replace(tiny(stage=2, tensor=4), has_split_sends=True).step(prefill_work(128)).stages[0]
    assert split.send_s == pytest.approx(0.05e-3 + 128 * 64 * 2 / 4 / 2.3e9)


def test_latency_is_all_stages_and_the_period_the_longest() -> None:
    cost = tiny(stage=2).step(prefill_work(128))
    first, second = (stage.seconds for stage in cost.stages)
    assert cost.latency_s == pytest.approx(first + second)
    assert cost.period_s == max(first, second)


def test_a_tick_in_lock_step_has_the_longest_of_each_part() -> None:
    """What the first stage has to send and what the last one's head takes both count: all stages run the same program."""
    cost = tiny(stage=2, tensor=4).step(prefill_work(128))
    first, second = cost.stages
    assert cost.tick_s == pytest.approx(first.seconds + second.head_s)
    assert cost.tick["send_s"] == first.send_s > 0


def test_host_code_is_hidden_behind_the_device_or_added() -> None:
    work = prefill_work(128)
    device_s = tiny().step(work).latency_s
    slow, fast = HostCost("slow", 1.0, 0.1, True), HostCost("fast", device_s / 4, 0.0, True)
    assert replace(tiny(), host=slow).step(work).latency_s == pytest.approx(1.1)
    assert replace(tiny(), host=fast).step(work).latency_s == device_s
    assert replace(tiny(), host=replace(fast, is_overlapped=False)).step(work).latency_s == pytest.approx(
        1.25 * device_s
    )


def test_tokens_are_rounded_to_tiles_beyond_one() -> None:
    assert [tile_rounded(number) for number in (1, 127, 128, 129, 256, 257)] == [1, 127, 128, 256, 256, 384]


def test_an_empty_step_costs_nothing() -> None:
    assert only_stage(tiny(tensor=1), StepWork()).seconds == 0


def test_chunks_attend_to_what_is_cached_and_to_themselves() -> None:
    """Pairs of a query and a key: c (k + c / 2), so that two chunks of 32 have what one of 64 has."""
    model = tiny()
    base, one = only_stage(model, prefill_work(0)), only_stage(model, prefill_work(64))
    parts = [only_stage(model, prefill_work(32, cached)) for cached in (0, 32)]
    products = 2 * (4 * LAYER * 64 + TINY.vocab_parameters)
    assert one.flop - products == 4 * 4 * 128 * 64 * 32
    assert sum(part.flop for part in parts) - products - 2 * TINY.vocab_parameters == one.flop - products
    assert base.attention_prefill_s == pytest.approx(4 * 5e-6)


def test_a_window_bounds_what_is_read() -> None:
    """Window 16. 40 decodes at 100 read 16 each; a chunk of 24 after 8: growing from 8 to 16 keys, then 16 each."""
    windowed = replace(TINY, windows=(16, None, 16, None))
    model = tiny(windowed)
    products = 2 * 40 * (4 * LAYER + TINY.vocab_parameters)
    decodes = only_stage(model, decode_work(40, 100))
    assert decodes.flop - products == 4 * 128 * (2 * 40 * 16 + 2 * 40 * 100)
    chunk = only_stage(model, prefill_work(24, 8))
    products = 2 * (24 * 4 * LAYER + TINY.vocab_parameters)
    assert chunk.flop - products == 4 * 128 * (2 * (8 * (8 + 4) + 16 * 16) + 2 * 24 * (8 + 12))
    # Keys read: all 32 in open layers; in windowed ones the first query sees 15 before itself, of which 8 are there.
    keys = only_stage(model, prefill_work(2, 98)).hbm_bytes - only_stage(tiny(), prefill_work(2, 98)).hbm_bytes
    assert keys == 2 * ((16 + 1) - 100) * TINY.num_kv_heads * TINY.kv_token_bytes


def test_experts_are_read_as_far_as_tokens_reach_them() -> None:
    """8 experts, 2 a token: one token reads 2 of them; many read all, and multiply as many as 2 experts' worth each."""
    routed = replace(TINY, num_experts=8, experts_per_token=2)
    model, expert = tiny(routed, expert=4), 3 * 64 * 128
    attention = 64 * 16 * 2 * (8 // 4 + 1)  # of the two KV heads each device has one, so that each is there twice
    router = 64 * 8
    fixed_bytes = 2 * (4 * (attention + router) + 64 * 256 / 4)
    moved = 4 * 2 * (7 * 64 + 2 * 3 * 128 / 4 + 2 * (2 + 1) * 16)
    one, many = only_stage(model, decode_work(1, 0)), only_stage(model, decode_work(100, 0))
    assert one.hbm_bytes - fixed_bytes - moved == pytest.approx(2 * 4 * expert * 2 / 4)
    assert many.hbm_bytes - fixed_bytes - 100 * moved == pytest.approx(2 * 4 * expert * 8 / 4)
    assert many.flop == pytest.approx(2 * 100 * (4 * (attention + router + 2 * expert / 4) + 64 * 256 / 4))
    assert model.weight_bytes == 2 * (4 * (attention + router + 2 * expert) + 2 * 64 * 256 // 4)


def test_layers_without_experts_have_an_mlp_of_their_own() -> None:
    mixed = replace(TINY, num_experts=8, experts_per_token=2, dense_layers=(0,), dense_mlp_size=512)
    dense_mlp, expert = 3 * 64 * 512, 3 * 64 * 128
    products = 4 * ATTENTION + dense_mlp + 3 * (64 * 8 + 2 * expert) + 64 * 256
    assert only_stage(tiny(mixed), decode_work(1, 0)).flop == pytest.approx(2 * products)
    assert tiny(mixed).weight_bytes == 2 * (4 * ATTENTION + dense_mlp + 3 * (64 * 8 + 8 * expert) + 2 * 64 * 256)


def test_what_is_not_cut_is_whole_everywhere_and_needs_no_talk() -> None:
    """Attention whole on each device, the MLP over both axes, the vocabulary over one."""
    cuts = Cuts(heads=(), kv_heads=(), vocab=("tensor",))
    model = replace(tiny(expert=2, tensor=2), cuts=cuts)
    stage = only_stage(model, prefill_work(64))
    layer = ATTENTION + 3 * 64 * 128 / 4
    assert model.weight_bytes == 2 * (4 * layer + 2 * 64 * 256 / 2)
    assert stage.flop == 2 * (64 * 4 * layer + 64 * 256 / 2) + 4 * 4 * 128 * 64 * 32
    four, two = (load_system("pairwise-a100").all_reduce[size].seconds(64 * 64 * 2) + 0.02e-3 for size in (4, 2))
    assert stage.all_reduce_s == pytest.approx(4 * four + two)
    nothing = Cuts(heads=(), kv_heads=(), mlp=(), vocab=())
    assert replace(model, cuts=nothing).step(prefill_work(64)).stages == tiny().step(prefill_work(64)).stages


def test_experts_are_added_up_over_what_they_are_cut_over() -> None:
    """Attention and vocabulary whole, experts over one axis of two, an expert's columns over the other."""
    routed = replace(TINY, num_experts=4, experts_per_token=2)
    cuts = Cuts(heads=(), kv_heads=(), mlp=(), vocab=())
    stage = only_stage(replace(tiny(routed, expert=2, tensor=2), cuts=cuts), prefill_work(64))
    four = load_system("pairwise-a100").all_reduce[4].seconds(64 * 64 * 2) + 0.02e-3
    assert stage.all_reduce_s == pytest.approx(4 * four)


def test_cut_tokens_are_scattered_and_gathered_instead_of_reduced() -> None:
    """As many bytes in two launches, and each device has a quarter of the norms."""
    whole = tiny(tensor=4)
    cut = replace(whole, cuts=Cuts(tokens=("tensor",)))
    stages = [only_stage(model, prefill_work(64)) for model in (whole, cut)]
    assert stages[1].all_reduce_s - stages[0].all_reduce_s == pytest.approx((2 * 4 + 1) * 0.02e-3)
    assert stages[0].hbm_bytes - stages[1].hbm_bytes == 4 * 64 * 2 * (7 * 64 * 3 / 4)


def test_memory_that_is_left_holds_kv() -> None:
    """Two KV heads over four devices are repeated: each holds one."""
    model = tiny(stage=2, tensor=4)
    attention = 64 * 16 * 2 * (8 // 4 + 1)
    assert model.weight_bytes == 2 * (2 * (attention + 3 * 64 * 128 // 4) + 2 * 64 * 256 // 4)
    assert model.kv_bytes_per_token == 2 * 2 * 16 * 2
    left = model.device.memory_bytes * 0.5 - model.weight_bytes - 10**6
    assert model.kv_tokens(0.5, 10**6) == int(left // 128)


def test_falcon_180b_fits_as_the_reference_says(cost_model: Make) -> None:
    """44.4 GB of layers and 20 KiB of KV a token and GPU on TP4-PP2; embedding and head come on top."""
    names = ("falcon-180b", "a100-80g", "pairwise-a100", "sarathi-serve-parallel")
    model = cost_model(*names, num_hosts=2, gpus_per_host=4, stage=2, tensor=4)
    assert model.weight_bytes - 2 * 2 * 14848 * 65024 / 4 == pytest.approx(44.4e9, rel=0.005)
    assert model.kv_bytes_per_token == 20 * 1024


def test_mixed_steps_cost_less_than_their_parts_apart(cost_model: Make) -> None:
    """What stall-free batching lives on: decodes that ride along with a chunk read no weights of their own."""
    model = cost_model("mistral-7b", "a100-80g", "pairwise-a100", "sarathi-jax", num_hosts=1, gpus_per_host=1)
    chunk = (ChunkWork(0, 480),)
    mixed = model.step(StepWork(chunk, 32, 32 * 1024)).latency_s
    apart = model.step(StepWork(chunk)).latency_s + model.step(decode_work(32, 1024)).latency_s
    assert mixed < 0.85 * apart


def test_the_engine_of_the_paper_pays_for_its_host() -> None:
    """2.5 ms at 32 rows on one GPU, 9.5 on several."""
    assert load_host("sarathi-serve").seconds(32) == pytest.approx(2.5e-3, rel=0.01)
    assert load_host("sarathi-serve-parallel").seconds(32) == pytest.approx(9.5e-3, rel=0.01)
