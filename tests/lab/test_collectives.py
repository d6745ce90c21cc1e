"""Collectives read from a program's text, in every way that groups are written; and priced by hand."""

import pytest

from sarathi_jax.lab.collectives import Collective, axes_of, read_collectives
from sarathi_jax.lab.traffic import traffic_of
from sarathi_jax.simulation.hardware import load_system
from sarathi_jax.simulation.links import Links
from sarathi_jax.simulation.placement import group_of

MESH = {"stage": 2, "expert": 2, "tensor": 2}
PAIRS_OF_NEIGHBOURS = ((0, 1), (2, 3), (4, 5), (6, 7))
PAIRS_TWO_APART = ((0, 2), (1, 3), (4, 6), (5, 7))
FOURS = ((0, 1, 2, 3), (4, 5, 6, 7))


def reduced(groups: str) -> Collective:
    (found,) = read_collectives(f"  %ar.1 = f32[8,4]{{1,0}} all-reduce(%x), channel_id=1, {groups}, to_apply=%add", 8)
    return found


@pytest.mark.parametrize(
    ("written", "groups"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", PAIRS_OF_NEIGHBOURS),
        ("replica_groups={}", (tuple(range(8)),)),
        ("replica_groups=[2,4]<=[8]", FOURS),
        ("replica_groups=[4,2]<=[2,2,2]T(0,2,1)", PAIRS_TWO_APART),
        ("replica_groups=mesh['stage'=2,'expert'=2,'tensor'=2] {'expert'}", PAIRS_TWO_APART),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=2,'axis_2'=2] {'axis_1','axis_2'}", FOURS),
        ("replica_groups=mesh[a=2,b=4] {b}", FOURS),
        # The first half of an axis of four: it steps over the second half.
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}", PAIRS_TWO_APART),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}", PAIRS_OF_NEIGHBOURS),
        # A mesh whose devices are in another order: its first axis steps by one.
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([2,4]<=[4,2]T(1,0)) {'b'}", ((0, 2, 4, 6), (1, 3, 5, 7))),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=(0,2,1,3,4,6,5,7) {'b'}", PAIRS_TWO_APART),
    ],
)
def test_groups_in_every_way_that_they_are_written(written: str, groups: object) -> None:
    assert reduced(written).groups == groups


def test_an_unknown_way_is_no_guess() -> None:
    with pytest.raises(ValueError, match="groups of a collective must be lists"):
        reduced("replica_groups=somewhere")


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        (PAIRS_OF_NEIGHBOURS, ("tensor",)),
        (PAIRS_TWO_APART, ("expert",)),
        (((0, 4), (1, 5), (2, 6), (3, 7)), ("stage",)),
        (FOURS, ("expert", "tensor")),
        ((tuple(range(8)),), ("stage", "expert", "tensor")),
        (tuple((device,) for device in range(8)), ()),
        (((0, 3), (1, 2), (4, 7), (5, 6)), None),
    ],
)
def test_groups_are_cuts_of_the_mesh_or_not(groups: tuple[tuple[int, ...], ...], axes: tuple[str, ...] | None) -> None:
    assert axes_of(Collective("all-reduce", "f32[1]", 4, groups), MESH) == axes


def test_pairs_run_along_the_axes_that_differ() -> None:
    text = "%p.1 = bf16[64,32]{1,0} collective-permute(%x), channel_id=1, source_target_pairs={{0,4},{1,5},{2,6},{3,7}}"
    (found,) = read_collectives(text, 8)
    assert (found.num_bytes, found.groups[1]) == (64 * 32 * 2, (1, 5))
    assert axes_of(found, MESH) == ("stage",)
    crossed = Collective("collective-permute", "f32[1]", 4, ((0, 3), (3, 0)))
    assert axes_of(crossed, MESH) == ("expert", "tensor")


GROUPS = "replica_groups={{0,1},{2,3},{4,5},{6,7}}"


@pytest.mark.parametrize(
    ("instruction", "shape", "num_bytes"),
    [
        (f"%a = bf16[64,32]{{1,0:T(8,128)}} all-reduce(%x), {GROUPS}", "bf16[64,32]", 4096),
        (f"ROOT %a = (f32[2]{{0}}, s32[3]{{0}}) all-reduce(%x, %y), {GROUPS}", "(f32[2], s32[3])", 20),
        (f"%a = ((bf16[64,32]{{1,0}}), bf16[64,32]{{1,0}}) all-reduce-start(%x), {GROUPS}", "bf16[64,32]", 4096),
        (f"%a = (f32[2]{{0}}, f32[3]{{0}}) all-reduce-start(%x, %y), {GROUPS}", "(f32[2], f32[3])", 20),
        (f"%a = f32[] all-reduce(%x), {GROUPS}", "f32[]", 4),
        (f"%a = ((bf16[8,4]{{1,0}}), bf16[16,4]{{1,0}}) all-gather-start(%x), {GROUPS}", "bf16[16,4]", 128),
        (f"%a = (f32[8,16]{{1,0}}, f32[8,32]{{1,0}}) all-gather-start(%x), {GROUPS}", "f32[8,32]", 1024),
        # Before it is scattered it is twice what comes out.
        (f"%a = f32[8]{{0}} reduce-scatter(%x), {GROUPS}", "f32[8]", 64),
        (f"%a = pred[2,8]{{1,0}} all-to-all(%x), {GROUPS}", "pred[2,8]", 16),
        (
            "%a = (bf16[4]{0}, bf16[4]{0}, u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,1}}",
            "bf16[4]",
            8,
        ),
        (f"%a = f8e4m3fn[16]{{0}} all-gather(%x), {GROUPS}", "f8e4m3fn[16]", 16),
    ],
)
def test_bytes_are_those_of_the_whole_message(instruction: str, shape: str, num_bytes: int) -> None:
    (found,) = read_collectives(instruction, 8)
    assert (found.shape, found.num_bytes) == (shape, num_bytes)


def test_what_only_ends_or_uses_a_collective_is_none() -> None:
    text = """
  %done = bf16[64]{0} all-reduce-done(%start)
  %fusion = f32[8]{0} fusion(%all-gather.3, %all-reduce.1), kind=kLoop, calls=%fused
"""
    assert read_collectives(text, 8) == []


PROGRAM = f"""HloModule jit_step, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {{
  ROOT %sum = f32[] add(%a, %b)
}}

%wrapped (p: f32[4]) -> f32[4] {{
  ROOT %ar.0 = f32[4]{{0}} all-reduce(%p), {GROUPS}, to_apply=%add
}}

%never (p: f32[4]) -> f32[4] {{
  ROOT %ar.9 = f32[4]{{0}} all-reduce(%p), {GROUPS}, to_apply=%add
}}

%inner (p: f32[2]) -> f32[2] {{
  ROOT %ar.1 = f32[2]{{0}} all-reduce(%p), {GROUPS}, to_apply=%add
}}

%body (s: (s32[], f32[2])) -> (s32[], f32[2]) {{
  %call.1 = f32[2]{{0}} call(%x), to_apply=%inner
  %call.2 = f32[2]{{0}} call(%call.1), to_apply=%inner
}}

%condition (s: (s32[], f32[2])) -> pred[] {{
  ROOT %less = pred[] compare(%i, %n), direction=LT
}}

ENTRY %main (x: f32[4]) -> f32[4] {{
  %f.1 = f32[4]{{0}} fusion(%x), kind=kCustom, calls=%wrapped
  %f.2 = f32[4]{{0}} fusion(%f.1), kind=kCustom, calls=%wrapped
  %w = (s32[], f32[2]) while(%t), condition=%condition, body=%body
  ROOT %ag = f32[8]{{0}} all-gather(%f.2), {GROUPS}, dimensions={{0}}
}}
"""


def test_computations_count_as_often_as_they_are_called_and_loops_once() -> None:
    found = {(each.kind, each.shape): (each.count, each.is_in_loop) for each in read_collectives(PROGRAM, 8)}
    assert found == {
        ("all-reduce", "f32[4]"): (2, False),
        ("all-reduce", "f32[2]"): (2, True),
        ("all-gather", "f32[8]"): (1, False),
    }


# ---- priced ----

LINKS = Links(load_system("pairwise-a100"))
HOSTS_OF_FOUR = {"stage": 2, "tensor": 4}


def test_traffic_adds_up_what_is_alike() -> None:
    text = "\n".join(
        [
            "%a.1 = bf16[64,32]{1,0} all-reduce(%x), replica_groups=[2,4]<=[8]",
            "%a.2 = bf16[64,32]{1,0} all-reduce(%a.1), replica_groups=[2,4]<=[8]",
            "%a.3 = bf16[64,32]{1,0} all-reduce(%a.2), replica_groups=[4,2]<=[2,4]T(1,0)",
        ]
    )
    across, inside = traffic_of(read_collectives(text, 8), HOSTS_OF_FOUR, LINKS, 4)
    assert (inside.axes, inside.count, inside.num_bytes, inside.num_hosts) == (("tensor",), 2, 4096, 1)
    assert inside.total_s == 2 * LINKS.collective_s("all-reduce", 4096, group_of(range(4), 4))
    assert (across.axes, across.count, across.num_hosts) == (("stage",), 1, 2)
    # Four pairs cross the one adapter of each host at once, two steps of the ring each.
    assert across.seconds == pytest.approx(LINKS.system.launch_s + 2 * 0.12e-3 + 4096 / (2.3e9 / 4))


def test_sends_between_hosts_share_the_line_and_those_inside_do_not() -> None:
    pairs = "source_target_pairs={{0,4},{1,5},{2,6},{3,7}}"
    text = f"%p = f32[1000000]{{0}} collective-permute(%x), {pairs}"
    (across,) = traffic_of(read_collectives(text, 8), HOSTS_OF_FOUR, LINKS, 4)
    (inside,) = traffic_of(read_collectives(text, 8), HOSTS_OF_FOUR, LINKS, 8)
    assert (across.num_hosts, inside.num_hosts) == (2, 1)
    assert across.seconds == LINKS.send_s(4e6, is_remote=True, num_pairs=4)
    assert inside.seconds == LINKS.send_s(4e6, is_remote=False)


def test_traffic_counts_every_call() -> None:
    """Of `PROGRAM`: two calls of one all-reduce, two more in a loop, and what gathers."""
    found = traffic_of(read_collectives(PROGRAM, 8), {"stage": 4, "tensor": 2}, LINKS, 4)
    assert sorted((each.kind, each.count, each.is_in_loop) for each in found) == [
        ("all-gather", 1, False),
        ("all-reduce", 2, False),
        ("all-reduce", 2, True),
    ]
