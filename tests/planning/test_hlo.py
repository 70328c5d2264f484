"""Bytes that compiled programs send, counted from their text: by kind, by axis, as often as loops turn."""

import pytest

from wsm_jax.errors import UsageWarning
from wsm_jax.planning import hlo

AXES = {"data": 2, "fsdp": 4, "expert": 1, "tensor": 1}
# As libtpu writes it: no known_trip_count, groups as axes of a mesh, layouts in parentheses.
PROGRAM = """HloModule jit_step, entry_computation_layout={{()->()}}

%add.1 (x: f32[], y: f32[]) -> f32[] {{
  ROOT %sum = f32[]{{:T(128)}} add(%x, %y)
}}

%fused (p: f32[4]) -> f32[4] {{
  ROOT %inner = f32[4]{{0:T(128)}} all-reduce(%p), channel_id=9, {groups}, to_apply=%add.1
}}

%body.3 (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {{
  %p = (s32[]{{:T(128)}}, f32[4,8]{{1,0:T(8,128)(2,1)S(1)}}) parameter(0)
  {operation}
  %f = f32[4]{{0}} fusion(%g), kind=kLoop, calls=%fused
}}

%condition.2 (p: (s32[], f32[4,8])) -> pred[] {{
  %limit = s32[]{{:T(128)}} constant({turns})
  ROOT %less = pred[]{{:T(512)}} compare(%i, %limit), direction=LT
}}

ENTRY %main.1 (a: f32[4,8]) -> f32[4,8] {{
  %w = (s32[], f32[4,8]{{1,0}}) while(%t), condition=%condition.2, body=%body.3
}}
"""
DATA, FSDP = "replica_groups=mesh['data'=2,'fsdp'=4] {'data'}", "replica_groups={{0,1,2,3},{4,5,6,7}}"
ALL = "replica_groups=[1,8]<=[8]"
INSIDE = 12 * 4 * 4 * 2 / 2  # of the all-reduce in the fusion: 12 turns, 4 floats, among 2


def sent(operation: str, turns: str = "12") -> dict[str, float]:
    return hlo.bytes_sent(PROGRAM.format(operation=operation, turns=turns, groups=DATA), AXES)


@pytest.mark.parametrize(
    ("operation", "axis", "bytes_"),
    [
        (f"%x = bf16[4,8]{{1,0:T(8,128)}} all-gather(%p), channel_id=1, {FSDP}, dimensions={{0}}", "fsdp", 64 * 3 / 4),
        (f"%x = (f32[1,8]{{1,0}}, f32[4,8]{{1,0}}) all-gather-start(%p), {FSDP}", "fsdp", 128 * 3 / 4),
        (f"%x = f32[1,8]{{1,0}} reduce-scatter(%p), {FSDP}, to_apply=%add.1", "fsdp", 32 * 3),
        (f"%x = (f32[4,8], s32[2]) all-reduce(%p, %q), {ALL}, to_apply=%add.1", "data+fsdp", 2 * (128 + 8) * 7 / 8),
        ("%x = f32[8] all-to-all(%p), replica_groups=[2,4]<=[4,2]T(1,0)", "data+fsdp", 32 * 3 / 4),
        ("%x = f32[8] all-to-all(%p), replica_groups=[4,2]<=[2,4]T(1,0)", "data", 32 / 2),
        ("%x = f32[8]{0} collective-permute(%p), source_target_pairs={{0,1},{1,2},{2,3},{3,0}}", "fsdp", 32),
        ("%x = (f32[8], f32[8]) collective-permute-start(%p), source_target_pairs={{0,4},{4,0}}", "data", 32),
        ("%x = f32[8] all-gather(%p), replica_groups=mesh['axis_0'=8] {'axis_0':(2)4}", "fsdp", 32 * 3 / 4),
    ],
)
def test_an_operation_counts_as_often_as_its_loop_turns(operation, axis, bytes_):
    expected = {"data": INSIDE}
    expected[axis] = expected.get(axis, 0) + 12 * bytes_
    assert sent(operation) == pytest.approx(expected)


def test_a_loop_that_does_not_say_how_often_it_turns_counts_once_and_is_told():
    with pytest.warns(UsageWarning, match=r"the compiled loop body\.3 sends data and does not say how often"):
        found = sent("%y = s32[] add(%a, %b)", turns="12)\n  %other = s32[] constant(3")
    assert found == {"data": INSIDE / 12}


def test_a_program_that_sends_nothing():
    assert hlo.bytes_sent("ENTRY %main (a: f32[4]) -> f32[4] {\n  ROOT %y = f32[4] add(%a, %a)\n}\n", AXES) == {}
