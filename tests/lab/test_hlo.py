"""Reading a compiled program's text: what must be counted, and what must not."""

from sarathi_jax.lab.hlo import count_copies, count_sliced_calls, kernel_calls

TEXT = """
  %p.1 = bf16[4096,8,128]{2,1,0} parameter(3)
  %copy.7 = bf16[4096,8,128]{2,1,0} copy(%p.1), metadata={op_name="x"}
  %copy.8 = bf16[256,16384]{1,0} copy(%p.2)
  %copy.9 = bf16[64,8,128]{2,1,0} copy(%p.3)
  %fusion.1 = bf16[4096,8,128]{2,1,0} fusion(%p.4), kind=kLoop
  %transpose.4 = bf16[8,4096,128]{2,1,0} transpose(%p.5), dimensions={1,0,2}
  ROOT %call = (bf16[64,32,128]{2,1,0}) custom-call(%p.6), custom_call_target="triton_kernel_call_ffi", api_version=API_VERSION_TYPED_FFI
  %other = f32[8] custom-call(%p.7), custom_call_target="__cublas$gemm"
"""


def test_copies_count_whatever_their_axes_are_folded_into() -> None:
    """Three of 4096 x 8 x 128 numbers; the parameter, the fusion and the small copy are none."""
    assert count_copies(TEXT, [(4096, 8, 128)]) == 3
    assert count_copies(TEXT, [(64, 8, 128)]) == 1
    assert count_copies(TEXT, [(7, 7)]) == 0


def test_calls_that_read_slices_in_place_are_seen() -> None:
    assert count_sliced_calls(TEXT) == 0
    assert count_sliced_calls(TEXT + "\n%dynamic-slice-fusion.4 (p0: s32[9], p1: bf16[4,4]) -> bf16[4,4] {\n") == 1


def test_calls_of_triton_kernels_are_told_from_others() -> None:
    assert kernel_calls(TEXT) == {"triton_kernel_call_ffi": 1}
