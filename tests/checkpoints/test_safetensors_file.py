"""Blocks of whole files read as the safetensors library wrote them; every broken file named, quickly and cheaply."""

import time
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from sarathi_jax.checkpoints.safetensors_file import SafetensorsFile
from sarathi_jax.errors import ModelError, ModelNotFoundError

F32_4 = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


def entry(begin: Any, end: Any, shape: Any = (4,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_every_dtype_comes_back_as_it_was_written(tmp_path: Path) -> None:
    values = np.arange(24).reshape(2, 3, 4) % 2
    dtypes = (
        np.float64,
        np.float32,
        np.float16,
        ml_dtypes.bfloat16,
        np.int64,
        np.int32,
        np.int16,
        np.int8,
        np.uint8,
        np.bool_,
    )
    tensors = {np.dtype(dtype).name: values.astype(dtype) for dtype in dtypes}
    save_file(tensors, tmp_path / "w.safetensors", metadata={"format": "pt"})
    file = SafetensorsFile(tmp_path / "w.safetensors")
    assert file.entries.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert file.read(name).dtype == tensor.dtype
        np.testing.assert_array_equal(file.read(name), tensor)


@pytest.mark.parametrize(("name", "dtype"), [("F8_E4M3", ml_dtypes.float8_e4m3fn), ("F8_E5M2", ml_dtypes.float8_e5m2)])
def test_eight_bit_floats_are_read_too(tmp_path: Path, write_file: Any, name: str, dtype: Any) -> None:
    values = np.array([[1.0, -2.0], [0.5, 0.0]]).astype(dtype)
    path = write_file(tmp_path / "w.safetensors", {"a": entry(0, 4, (2, 2), name)}, values.tobytes())
    np.testing.assert_array_equal(SafetensorsFile(path).read("a").astype(np.float32), values.astype(np.float32))


@given(bounds=st.tuples(*[st.integers(-7, 7)] * 4))
def test_a_block_is_the_block_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, bounds: tuple[int, int, int, int]
) -> None:
    path = tmp_path_factory.getbasetemp() / "block.safetensors"
    whole = np.arange(30, dtype=np.float32).reshape(5, 6)
    if not path.exists():
        save_file({"first": np.ones(3, np.int8), "w": whole}, path)
    index = (slice(*bounds[:2]), slice(*bounds[2:]))
    np.testing.assert_array_equal(SafetensorsFile(path).read("w", index), whole[index])


def test_tensors_that_are_not_aligned_are_read_and_cast_alike(tmp_path: Path, write_file: Any) -> None:
    values = np.arange(4, dtype=np.float32).astype(ml_dtypes.bfloat16)
    header = {"odd": entry(0, 1, (1,), "U8"), "w": entry(1, 9, (4,), "BF16")}
    path = write_file(tmp_path / "w.safetensors", header, b"\x07" + values.tobytes())
    np.testing.assert_array_equal(SafetensorsFile(path).read("w").astype(np.float32), [0, 1, 2, 3])


def test_a_block_is_read_without_the_rest(tmp_path: Path, write_file: Any) -> None:
    num_bytes = 2**30
    path = write_file(tmp_path / "w.safetensors", {"w": entry(0, num_bytes, (num_bytes,), "U8")})
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + num_bytes)  # sparse
    tracemalloc.start()
    block = np.array(SafetensorsFile(path).read("w", (slice(num_bytes - 10, num_bytes),)))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert block.shape == (10,)
    assert peak_bytes < 2**20


def test_empty_tensors_and_an_empty_file_are_whole(tmp_path: Path, write_file: Any) -> None:
    header = {"a": entry(0, 0, (0, 3)), "b": F32_4, "c": entry(16, 16, (0,)), "scalar": entry(16, 20, ())}
    file = SafetensorsFile(write_file(tmp_path / "a.safetensors", header, bytes(20)))
    assert [file.read(name).shape for name in header] == [(0, 3), (4,), (0,), ()]
    assert SafetensorsFile(write_file(tmp_path / "b.safetensors", {})).entries == {}


BROKEN_HEADERS: list[Any] = [
    pytest.param(b"{", b"", "its header must be JSON in UTF-8", id="no JSON"),
    pytest.param(b"\xff\xfe", b"", "its header must be JSON in UTF-8, got UnicodeDecodeError", id="no UTF-8"),
    pytest.param(b"[" * 200_000, b"", "its header must be JSON in UTF-8, got RecursionError", id="nested"),
    pytest.param([], b"", "its header must be a JSON object, got list", id="a list"),
    pytest.param(b'{"a":{},"a":{}}', b"", "got ValueError: a name that occurs twice", id="twice"),
    pytest.param({"a": 5}, b"", "tensor 'a' must have dtype, shape and data_offsets", id="a number"),
    pytest.param(
        {"a": {"dtype": "F32", "shape": [1]}},
        bytes(4),
        "tensor 'a' must have dtype, shape and data_offsets",
        id="no offsets",
    ),
    pytest.param(
        {"a": {**F32_4, "data_offsets": [0, 8, 16]}},
        bytes(16),
        "must have dtype, shape and data_offsets",
        id="3 offsets",
    ),
    pytest.param(
        {"a": entry(0, 16, dtype="F4")}, bytes(16), "tensor 'a' must be one of F64, F32, .* got 'F4'", id="dtype"
    ),
    pytest.param(
        {"a": entry(0, 16, dtype=["F32"])}, bytes(16), "must have dtype, shape and data_offsets", id="dtype a list"
    ),
    pytest.param(
        {"a": entry(0, 16, (-4,))}, bytes(16), "tensor 'a' must have up to 8 sizes .* not negative", id="negative size"
    ),
    pytest.param({"a": entry(0, 16, (4.0,))}, bytes(16), "whole and not negative", id="a fraction"),
    pytest.param({"a": entry(0, 4, (True,))}, bytes(4), "whole and not negative", id="a boolean"),
    pytest.param({"a": entry(0, 4, (1,) * 9)}, bytes(4), "up to 8 sizes", id="too many dimensions"),
    pytest.param({"a": entry(-16, 0)}, bytes(16), "whole and not negative", id="negative offset"),
    pytest.param(
        {"a": entry(16, 0)}, bytes(16), "tensor 'a' of F32.4. must take 16 bytes, got -16", id="begin after end"
    ),
    pytest.param({"a": entry(0, 12)}, bytes(12), "must take 16 bytes, got 12", id="range of another size"),
    pytest.param(
        {"a": entry(0, 0, (2**40, 2**40, 0, 2**62))},
        b"x",
        "the last tensor must end where the file ends",
        id="huge and empty",
    ),
    pytest.param(
        {"a": entry(0, 4, (2**33, 2**33))}, bytes(4), "must take 295147905179352825856 bytes, got 4", id="overflow"
    ),
    pytest.param(
        {"a": F32_4, "b": entry(8, 24)},
        bytes(24),
        r"tensor 'b' must begin at byte 16, .* got 8 \(overlap\)",
        id="overlap",
    ),
    pytest.param(
        {"a": F32_4, "b": entry(20, 36)}, bytes(36), r"tensor 'b' must begin at byte 16, .* got 20 \(a gap\)", id="gap"
    ),
    pytest.param({"a": entry(4, 20)}, bytes(20), "tensor 'a' must begin at byte 0", id="gap at the start"),
    pytest.param(
        {"a": F32_4},
        bytes(15),
        r"tensor 'a' must end inside the file, got 1 bytes too few \(truncated\)",
        id="truncated",
    ),
    pytest.param(
        {name: entry(4 * rank, 4 * rank + 4, (1,)) for rank, name in enumerate("abcdefgh")},
        bytes(6),
        r"tensors 'b', 'c', 'd', 'e', 'f' and 2 more must end inside the file, got 26 bytes too few",
        id="truncated in many tensors",
    ),
    pytest.param(
        {"a": F32_4}, bytes(17), "the last tensor must end where the file ends, got 1 bytes after it", id="bytes after"
    ),
]


@pytest.mark.parametrize(("header", "data", "message"), BROKEN_HEADERS)
def test_a_broken_header_is_named(tmp_path: Path, write_file: Any, header: Any, data: bytes, message: str) -> None:
    path = write_file(tmp_path / "w.safetensors", header, data)
    with pytest.raises(ModelError, match=rf"^{path}: .*{message}"):
        SafetensorsFile(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must have at least 8 bytes, got 0"),
        (bytes(7), "must have at least 8 bytes, got 7"),
        ((2**63).to_bytes(8, "little") + b"{}", "its header must be at most 100000000 bytes, got 9223372036854775808"),
        (
            (99_999_999).to_bytes(8, "little") + b"{}",
            "its header of 99999999 bytes must fit into the file, got a file of 10 bytes",
        ),
        ((3).to_bytes(8, "little") + b"{}", "its header of 3 bytes must fit into the file"),
        (b"PK\x03\x04 a zip of pickles", "its header must be at most"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=f"{message}.*: the file is damaged or no safetensors file; fetch it again"):
        SafetensorsFile(path)


def test_too_many_tensors_are_refused_in_time(tmp_path: Path, write_file: Any) -> None:
    path = write_file(tmp_path / "w.safetensors", {str(number): entry(0, 0, (0,)) for number in range(50_001)})
    started_s = time.monotonic()
    with pytest.raises(ModelError, match="must hold at most 50000 tensors, got 50001"):
        SafetensorsFile(path)
    assert time.monotonic() - started_s < 5.0


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"x\.safetensors can't be read .*No such file"):
        SafetensorsFile(tmp_path / "x.safetensors")


@given(
    mutations=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=3),
    cut=st.integers(0, 40),
)
def test_a_damaged_file_is_refused_or_its_tensors_can_be_read(
    tmp_path_factory: pytest.TempPathFactory, mutations: list[tuple[int, int]], cut: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutant.safetensors"
    save_file({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(3, dtype=np.int8)}, path)
    content = bytearray(path.read_bytes())
    for position, byte in mutations:
        content[position % len(content)] = byte
    path.write_bytes(content[: len(content) - cut])
    try:
        file = SafetensorsFile(path)
    except ModelError:
        return
    for name, tensor in file.entries.items():
        assert file.read(name).shape == tensor.shape
