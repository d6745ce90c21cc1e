"""The seam between this project's Triton kernels and whatever launches them: jax-triton on a GPU, Triton's interpreter anywhere else.

All of jax-triton that the project uses is used here. Import this module only where Triton is known to be installed (`obstacle`).
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from threading import Lock
from typing import Any

import jax
import numpy as np

from sarathi_jax import gpu_defaults
from sarathi_jax.kernels.gpu import GpuTarget

gpu_defaults.set_unset(gpu_defaults.TRITON)  # also where nobody has made a mesh: the interpreter, the report

# Newer triton writes PTX that an older CUDA's assembler refuses; this one is understood by CUDA 12.7 and later.
PTX_VERSION = 86

_one_at_a_time = (
    Lock()
)  # the interpreter knows of one program in the process, and each device of a mesh calls it from its own thread


def is_interpreted() -> bool:
    """Whether kernels run on the CPU, in Triton's interpreter: slow, and to check them with. Chosen by TRITON_INTERPRET=1, before Triton is imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def obstacle(platform: str) -> str | None:
    """Why kernels can't be launched on a platform (None: they can)."""
    if platform not in ("gpu", "cuda"):
        return f"it needs an NVIDIA GPU, and this is {platform}"
    if is_interpreted():
        return "TRITON_INTERPRET=1 is set"
    missing = [name for name in ("triton", "jax_triton") if not find_spec(name)]
    return f"{' and '.join(missing)} is not installed (pip install 'sarathi-jax[cuda12]')" if missing else None


def interpreter_obstacle() -> str | None:
    """Why kernels can't be interpreted (None: they can)."""
    if not is_interpreted():
        return "TRITON_INTERPRET=1 must be set"
    return None if find_spec("triton") else "triton is not installed (pip install triton)"


@dataclass(frozen=True, slots=True)
class KernelCall:
    """A launch, known from shapes alone.

    kernel: the `@triton.jit` function. Its pointers are, in this order: arrays changed in place, inputs, outputs; after them come its scalars and constants.
    scalars: whole numbers that are arguments: launches that differ in them alone share one compiled kernel. constants: what it is compiled for.
    grid: programs. target: what it is compiled for.
    """

    kernel: Any
    grid: int
    constants: Mapping[str, int | float | bool]
    num_warps: int
    num_stages: int
    target: GpuTarget
    scalars: Mapping[str, int] = field(default_factory=dict)

    def __call__(
        self,
        in_place: Sequence[jax.Array] = (),
        inputs: Sequence[jax.Array] = (),
        outputs: Sequence[jax.ShapeDtypeStruct] = (),
    ) -> tuple[jax.Array, ...]:
        """Returns: the arrays changed in place, to be used instead of those passed in; then the outputs, whose unwritten parts may hold anything."""
        launch = _interpret if is_interpreted() else _launch
        return launch(self, tuple(in_place), tuple(inputs), tuple(outputs))


def _launch(
    call: KernelCall, in_place: tuple[Any, ...], inputs: tuple[Any, ...], outputs: tuple[Any, ...]
) -> tuple[Any, ...]:
    jax_triton = _import_jax_triton()
    refs = [jax.new_ref(array) for array in in_place]
    made = jax_triton.triton_call(
        *refs,
        *inputs,
        kernel=call.kernel,
        out_type=outputs,
        grid=(call.grid,),
        num_warps=call.num_warps,
        num_stages=call.num_stages,
        compute_capability=call.target.sm,
        backend_options={"ptx_version": PTX_VERSION},
        **call.scalars,
        **call.constants,
    )
    return *(jax.freeze(ref) for ref in refs), *made


def _import_jax_triton() -> Any:
    import triton.backends.nvidia.driver as driver

    # jax-triton 0.4 imports a name that triton 3.6 lacks, and without it silently loses its NVIDIA backend; only TMA descriptors use the name.
    if not hasattr(driver, "TMA_TF32"):
        driver.TMA_TF32 = 11
    import jax_triton

    return jax_triton


class _NumpyTensor:
    """What the interpreter asks of a tensor, over a numpy array that kernels write into."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.dtype = array, array.dtype

    def data_ptr(self) -> int:
        return self.array.ctypes.data

    def size(self) -> tuple[int, ...]:
        return self.array.shape

    def stride(self) -> tuple[int, ...]:
        return tuple(stride // self.array.itemsize for stride in self.array.strides)

    def storage_offset(self) -> int:
        return 0

    def untyped_storage(self) -> "_NumpyTensor":
        return self

    def cpu(self) -> "_NumpyTensor":
        return self

    def new_empty(self, *_: object, **__: object) -> "_NumpyTensor":
        return _NumpyTensor(self.array)

    def set_(self, *_: object) -> None:
        """A view of the same memory already."""

    def copy_(self, *_: object) -> None:
        """The host's copy is the array itself."""


def run_interpreted(
    call: KernelCall, arrays: Sequence[np.ndarray], outputs: Sequence[jax.ShapeDtypeStruct]
) -> list[np.ndarray]:
    """Run a kernel on numpy arrays, which it may change. Returns: the outputs, NaN (or 77) where nothing was written."""
    made = [np.full(out.shape, np.nan if np.issubdtype(out.dtype, np.floating) else 77, out.dtype) for out in outputs]
    with _one_at_a_time:
        call.kernel[(call.grid,)](*map(_NumpyTensor, [*arrays, *made]), **call.scalars, **call.constants)
    return made


def _interpret(
    call: KernelCall, in_place: tuple[Any, ...], inputs: tuple[Any, ...], outputs: tuple[Any, ...]
) -> tuple[Any, ...]:
    def run(*arrays: Any) -> tuple[np.ndarray, ...]:
        changed = [np.array(array) for array in arrays[: len(in_place)]]
        read = [np.ascontiguousarray(array) for array in arrays[len(in_place) :]]
        return *changed, *run_interpreted(call, [*changed, *read], outputs)

    shapes = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in in_place]
    return tuple(jax.pure_callback(run, (*shapes, *outputs), *in_place, *inputs))
