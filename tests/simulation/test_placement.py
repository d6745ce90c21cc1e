"""Which devices talk to each other, over which links, and which meshes a model's shape allows."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from sarathi_jax.errors import ConfigError
from sarathi_jax.simulation.model_shape import ModelShape
from sarathi_jax.simulation.placement import LAYER_AXES, Cuts, Group, Placement, group_of, why_not


def on_2x4(**mesh: int) -> Placement:
    return Placement(num_hosts=2, gpus_per_host=4, **mesh)


def test_a_group_is_seen_from_its_fullest_host() -> None:
    assert group_of(range(8), 4) == Group(num_devices=8, num_hosts=2, gpus_per_host=4, span=4)
    assert group_of([1, 3], 4) == Group(num_devices=2, num_hosts=1, gpus_per_host=2, span=3)
    assert group_of([2, 6], 4) == Group(num_devices=2, num_hosts=2, gpus_per_host=1, span=1)


def test_stages_talk_over_the_network_where_they_lie_on_two_hosts() -> None:
    assert on_2x4(stage=2, tensor=4).has_remote_stages
    assert on_2x4(stage=8).has_remote_stages
    assert not on_2x4(data=2, stage=2, tensor=2).has_remote_stages
    assert not on_2x4(tensor=8).has_remote_stages


def test_a_stage_is_cut_over_expert_and_tensor_together() -> None:
    assert on_2x4(stage=2, tensor=4).group(LAYER_AXES) == group_of(range(4), 4)
    assert on_2x4(expert=4, tensor=2).group(LAYER_AXES) == group_of(range(8), 4)
    # Two stages of 3 on hosts of 4: the second one reaches over both.
    assert on_2x4(stage=2, tensor=3).group(LAYER_AXES).num_hosts == 2


def test_meshes_are_described_as_they_are_asked_for() -> None:
    assert on_2x4(stage=2, tensor=4).describe() == "stage=2,tensor=4"
    assert on_2x4().describe() == "tensor=1"


def test_a_mesh_that_is_too_large_or_empty_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="stage=3,tensor=4 must fit on 2 hosts of 4 GPUs, got 12: make the mesh smaller"
    ):
        on_2x4(stage=3, tensor=4)
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        on_2x4(tensor=0)


@pytest.mark.parametrize(
    ("model", "mesh", "reason"),
    [
        ("falcon-180b", {"tensor": 8}, None),
        ("falcon-180b", {"stage": 2, "tensor": 4}, None),
        ("yi-34b", {"stage": 8}, "60 layers do not divide into stage=8"),
        ("yi-34b", {"tensor": 7}, "8 KV heads neither divide into 7 devices nor can be repeated over them"),
        ("mistral-7b", {"expert": 2}, "no experts to cut over expert=2"),
        ("mixtral-8x7b", {"expert": 8}, None),
        ("mixtral-8x7b", {"tensor": 3}, "8 KV heads neither divide into 3 devices nor can be repeated over them"),
    ],
)
def test_a_shape_says_what_does_not_divide(
    model: str, mesh: Mapping[str, int], reason: str | None, shapes: dict[str, ModelShape]
) -> None:
    assert why_not(shapes[model], on_2x4(**mesh)) == reason


TINY = ModelShape(num_layers=4, hidden_size=64, num_heads=8, num_kv_heads=1, head_dim=8, mlp_size=8, vocab_size=8)


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ({"num_heads": 6}, "6 query heads do not divide into 4 devices"),
        ({"mlp_size": 6}, "6 MLP columns do not divide into 4 devices"),
        ({"vocab_size": 6}, "6 words of the vocabulary do not divide into 4 devices"),
        ({"num_experts": 5, "experts_per_token": 2}, "5 experts do not divide into 2 devices"),
        ({"num_experts": 4, "experts_per_token": 2, "mlp_size": 3}, "3 MLP columns do not divide into 2 devices"),
    ],
)
def test_each_part_of_a_layer_has_to_divide(sizes: dict[str, Any], reason: str) -> None:
    mesh = {"expert": 2, "tensor": 2} if "num_experts" in sizes else {"tensor": 4}
    assert why_not(replace(TINY, **sizes), on_2x4(**mesh)) == reason


def test_what_is_not_cut_need_not_divide() -> None:
    odd = replace(TINY, num_heads=6, vocab_size=6)
    assert why_not(odd, on_2x4(tensor=4), Cuts(heads=(), kv_heads=(), vocab=())) is None


def test_stages_have_to_be_alike() -> None:
    """Windows in every second layer, or experts in the last two of four, in two stages."""
    assert why_not(replace(TINY, windows=(8, None, 8, None)), on_2x4(stage=2)) is None
    uneven = "the 2 layers of each of stage=2 are not alike"
    assert why_not(replace(TINY, windows=(8, 8, None, None)), on_2x4(stage=2)) == uneven
    routed = replace(TINY, num_experts=4, experts_per_token=1, dense_layers=(0, 1))
    assert why_not(routed, on_2x4(stage=2)) == uneven


def test_groups_along_one_axis_and_their_rivals() -> None:
    """Experts 0 and 1 on two hosts, four tensor parts each: four groups of two cross the network at once."""
    placement = on_2x4(expert=2, tensor=4)
    assert placement.group(("tensor",)) == Group(4, 1, 4, 4, num_rivals=2)
    assert placement.group(("expert",)) == Group(2, 2, 1, 1, num_rivals=4)
    assert placement.group(()) == Group(1, 1, 1, 1, num_rivals=8)


def test_a_shape_that_contradicts_itself_is_refused() -> None:
    sizes: dict[str, Any] = {
        "num_layers": 2,
        "hidden_size": 64,
        "num_heads": 8,
        "num_kv_heads": 1,
        "head_dim": 8,
        "mlp_size": 8,
        "vocab_size": 8,
    }
    with pytest.raises(ConfigError, match="an entry for each of 2 layers, got 1"):
        ModelShape(**sizes, windows=(None,))
    with pytest.raises(ConfigError, match="between 1 and num_experts=4, or 0 without experts, got 5"):
        ModelShape(**sizes, num_experts=4, experts_per_token=5)
