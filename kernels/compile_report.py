"""What the compilers make of each kernel at its tuned sizes, for GPUs that need not be there: registers, shared memory, spills, tensor-core and copy instructions.

Triton compiles to machine code with the assembler it brings; neither a GPU nor a driver is needed. Not to be run under TRITON_INTERPRET.
"""

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, NamedTuple

import triton
import triton.knobs as knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sarathi_jax.gpu_defaults import import_jax_quietly
from sarathi_jax.kernels import copy_pages_triton, filter_thresholds_triton, rope_write_triton
from sarathi_jax.kernels.block_sizes import choose_sizes, kind_of
from sarathi_jax.kernels.gpu import A100, H100, GpuTarget
from sarathi_jax.kernels.ragged_attention_triton import AttentionShape, plan_launches
from sarathi_jax.kernels.triton_launch import PTX_VERSION, KernelCall

TARGETS = (A100, H100)
REGISTERS, THREADS_A_WARP, MAX_WARPS, MAX_PROGRAMS = 65536, 32, 64, 32  # of a multiprocessor
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}  # of a multiprocessor, for programs
RESERVED_SHARED_BYTES = 1024  # of each program
INSTRUCTIONS = {
    "num_mma": r"mma\.sync",
    "num_wgmma": r"wgmma\.mma_async",
    "num_async_copies": r"cp\.async\.c[ag]\.",
}

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "i8": "int8", "fp32": "float32"}  # Triton's name -> numpy's

# Attention as models have it: (head dim, queries a KV head, KV heads of one device, numbers of the KV cache, window, soft cap).
ATTENTION = (
    (64, 1, 8, "bf16", None, None),
    (64, 71, 1, "bf16", None, None),
    (80, 1, 8, "bf16", None, None),
    (96, 1, 8, "bf16", None, None),
    (128, 1, 8, "bf16", None, None),
    (128, 4, 8, "bf16", None, None),
    (128, 4, 1, "bf16", None, None),
    (128, 8, 8, "fp16", None, None),
    (128, 16, 8, "bf16", None, None),
    (128, 4, 8, "i8", None, None),
    (128, 4, 8, "bf16", 4096, None),
    (256, 2, 8, "bf16", 4096, 50.0),
    (256, 2, 8, "i8", None, None),
    (64, 3, 1, "fp32", None, None),
    (256, 2, 8, "fp32", None, None),
)
NUM_TOKENS, NUM_ROWS, BLOCKS_PER_ROW, PAGE_SIZE, NUM_SLOTS, VOCAB_SIZE = 512, 64, 2048, 16, 2**20, 128256


class Case(NamedTuple):
    """A kernel at one use. types: Triton's, of its pointers in order."""

    name: str
    call: KernelCall
    types: tuple[str, ...]


class KernelReport(NamedTuple):
    """One kernel on one architecture. spilled_bytes: stores of registers that did not fit. num_programs, num_warps: of them a multiprocessor can hold at once."""

    name: str
    sm: int
    registers: int
    shared_bytes: int
    spilled_bytes: int
    num_mma: int
    num_wgmma: int
    num_async_copies: int
    num_programs: int
    num_warps: int

    @property
    def occupancy(self) -> float:
        """Share of the warps that a multiprocessor has room for."""
        return self.num_warps / MAX_WARPS


def cases(target: GpuTarget) -> Iterator[Case]:
    """Every kernel at the sizes that it would have on this GPU."""
    for use in ATTENTION:
        yield from _attention_cases(target, *use)
    for is_quantized in (False, True):
        call = rope_write_triton.plan_launch(NUM_TOKENS, 8, 4, 128, NUM_SLOTS, target, is_quantized=is_quantized)
        pages = ("*i8", "*i8") if is_quantized else ("*bf16", "*bf16")
        types = (*pages, "*fp32", "*fp32", "*bf16", "*fp32", "*fp32", "*i32", "*bf16")
        yield Case(f"rope_write d128 g4 {pages[0][1:]}", call, types)
    thresholds = filter_thresholds_triton.plan_launch(NUM_ROWS, VOCAB_SIZE, target)
    yield Case("filter_thresholds", thresholds, ("*fp32", "*fp32", "*fp32", "*i32", "*fp32", "*fp32"))
    yield Case("copy_pages", copy_pages_triton.plan_launch(8, 4096, 16384, target), ("*bf16", "*i32", "*i32"))


def _attention_cases(
    target: GpuTarget, head_dim: int, group: int, num_kv_heads: int, kv: str, window: int | None, soft_cap: float | None
) -> Iterator[Case]:
    number, scale = ("bf16" if kv == "i8" else kv), "fp32" if kv == "i8" else kv
    use = " ".join(
        [f"d{head_dim} g{group} k{num_kv_heads} {kv}", *(["window"] if window else []), *(["cap"] if soft_cap else [])]
    )
    for kind in ("decode", "mixed"):
        shape = AttentionShape(
            num_tokens=NUM_ROWS if kind == "decode" else NUM_TOKENS,
            num_rows=NUM_ROWS,
            blocks_per_row=BLOCKS_PER_ROW,
            num_heads=num_kv_heads * group,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            page_size=PAGE_SIZE,
            scale=head_dim**-0.5,
            window=window,
            soft_cap=soft_cap,
            is_quantized=kv == "i8",
            is_decode_only=kind == "decode",
        )
        sizes = choose_sizes(
            target.sm, head_dim, group, kind_of(DTYPES[number], DTYPES[kv], is_decode_only=shape.is_decode_only)
        )
        launches = plan_launches(shape, sizes, target)
        pages = (f"*{kv}", f"*{kv}", f"*{scale}", f"*{scale}")
        types = (f"*{number}", *pages, "*i32", "*i32", "*i32", "*i32", f"*{number}", *["*fp32"] * 4)
        yield Case(f"attend {kind} {use}", launches.attend, types)
        if launches.merge is not None and (group, num_kv_heads, kv) in ((4, 8, "bf16"), (4, 1, "bf16")) and not window:
            yield Case(f"merge {kind} {use}", launches.merge, (f"*{number}", *["*fp32"] * 4, "*i32", "*i32", "*i32"))


def compile_case(case: Case) -> KernelReport:
    """Compile a kernel for its call's target."""
    call, sm = case.call, case.call.target.sm
    names = [parameter.name for parameter in call.kernel.params]
    constants = {name: call.constants[name] for name in names if name in call.constants}
    pointers = [name for name in names if name not in constants and name not in call.scalars]
    assert len(pointers) == len(case.types), f"{case.name} has the pointers {pointers}"
    # As jax-triton does for the arrays of a program: without it there are no asynchronous copies.
    aligned = {(index,): [["tt.divisibility", 16]] for index in range(len(pointers))}
    types = dict(zip(pointers, case.types, strict=True)) | dict.fromkeys(call.scalars, "i32")
    signature = {name: types.get(name, "constexpr") for name in names}
    source = ASTSource(fn=call.kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": call.num_warps, "num_stages": call.num_stages, "ptx_version": PTX_VERSION}
    kernel, log = _compile(source, sm, options)
    registers = _number(r"Used (\d+) registers", log)
    num_programs = _programs_at_once(sm, registers, kernel.metadata.shared, call.num_warps)
    return KernelReport(
        name=case.name,
        sm=sm,
        registers=registers,
        shared_bytes=kernel.metadata.shared,
        spilled_bytes=_number(r"(\d+) bytes spill stores", log),
        num_programs=num_programs,
        num_warps=num_programs * call.num_warps,
        **{name: len(re.findall(pattern, kernel.asm["ptx"])) for name, pattern in INSTRUCTIONS.items()},
    )


def table(reports: Sequence[KernelReport]) -> str:
    """For people, one kernel a line."""
    titles = ("registers", "shared", "spilled", "mma", "wgmma", "async", "programs", "warps", "occupancy")
    lines = [f"{'kernel':<42}{'sm':>4}" + "".join(f"{title:>10}" for title in titles)]
    for each in reports:
        cells = [each.registers, each.shared_bytes, each.spilled_bytes, each.num_mma, each.num_wgmma]
        cells += [each.num_async_copies, each.num_programs, each.num_warps]
        numbers = "".join(f"{cell:>10}" for cell in cells)
        lines.append(f"{each.name:<42}{each.sm:>4}{numbers}{each.occupancy:>10.0%}")
    return "\n".join(lines)


def _compile(source: ASTSource, sm: int, options: dict[str, Any]) -> tuple[Any, str]:
    """The kernel, and what the assembler said."""
    with (
        knobs.compilation.scope(),
        knobs.nvidia.scope(),
        contextlib.redirect_stdout(io.StringIO()) as log,
    ):
        knobs.compilation.always_compile = knobs.nvidia.dump_ptxas_log = True
        kernel = triton.compile(source, target=GPUTarget("cuda", sm, THREADS_A_WARP), options=options)
    return kernel, log.getvalue()


def _number(pattern: str, log: str) -> int:
    found = re.search(pattern, log)
    assert found, f"the assembler's log has {pattern}"
    return int(found[1])


def _programs_at_once(sm: int, registers: int, shared_bytes: int, num_warps: int) -> int:
    """What registers, shared memory and warps of a multiprocessor leave room for (CUDA programming guide, compute capabilities)."""
    registers_a_warp = -(-registers * THREADS_A_WARP // 256) * 256
    by_registers = REGISTERS // (registers_a_warp * num_warps)
    by_shared = SHARED_BYTES[sm] // (shared_bytes + RESERVED_SHARED_BYTES)
    return min(by_registers, by_shared, MAX_WARPS // num_warps, MAX_PROGRAMS)


def compile_nth(target_index: int, case_index: int) -> KernelReport:
    """One of all cases, named so that it can be asked for in another process."""
    return compile_case(list(cases(TARGETS[target_index]))[case_index])


def compile_all() -> list[KernelReport]:
    """Every kernel on every architecture, as many at a time as there are processors."""
    places = [(target, case) for target in range(len(TARGETS)) for case in range(len(list(cases(TARGETS[target]))))]
    with ProcessPoolExecutor(mp_context=get_context("spawn"), initializer=import_jax_quietly) as pool:
        return list(pool.map(compile_nth, *zip(*places, strict=True)))
