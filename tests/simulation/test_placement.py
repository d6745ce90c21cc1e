"""Which devices talk to each other, over which links, and which meshes a model's shape allows."""

from collections.abc import Mapping
from typing import Any

import pytest

from sarathi_jax.errors import ConfigError
from sarathi_jax.simulation.model_shape import ModelShape
from sarathi_jax.simulation.placement import Group, Placement, group_of, why_not


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
    assert on_2x4(stage=2, tensor=4).stage_group == group_of(range(4), 4)
    assert on_2x4(expert=4, tensor=2).stage_group == group_of(range(8), 4)
    # Two stages of 3 on hosts of 4: the second one reaches over both.
    assert on_2x4(stage=2, tensor=3).stage_group.num_hosts == 2


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
        ("mistral-7b", {"expert": 2}, "no experts do not divide into expert=2"),
        ("mixtral-8x7b", {"expert": 8}, None),
        ("mixtral-8x7b", {"expert": 3}, "8 experts do not divide into expert=3"),
    ],
)
def test_a_shape_says_what_does_not_divide(
    model: str, mesh: Mapping[str, int], reason: str | None, shapes: dict[str, ModelShape]
) -> None:
    assert why_not(shapes[model], on_2x4(**mesh)) == reason


def test_heads_columns_and_vocabulary_have_to_divide_too() -> None:
    sizes: dict[str, Any] = {"num_layers": 2, "hidden_size": 64, "num_kv_heads": 1, "head_dim": 8}
    cut = on_2x4(tensor=4)
    assert (
        why_not(ModelShape(**sizes, num_heads=6, mlp_size=8, vocab_size=8), cut)
        == "6 query heads do not divide into 4 devices"
    )
    assert (
        why_not(ModelShape(**sizes, num_heads=8, mlp_size=6, vocab_size=8), cut)
        == "6 MLP columns do not divide into 4 devices"
    )
    reason = why_not(ModelShape(**sizes, num_heads=8, mlp_size=8, vocab_size=6), cut)
    assert reason == "a vocabulary of 6 does not divide into 4 devices"


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
