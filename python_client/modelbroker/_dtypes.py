"""The safetensors dtype words, and what torch and numpy call them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ._errors import UnimplementedError

if TYPE_CHECKING:
    import torch

Bytes: TypeAlias = "np.ndarray[Any, np.dtype[np.uint8]]"

# Bits of an element; another version may know others.
BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}
_NUMPY = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}
_ML_DTYPES = {
    "BF16": "bfloat16",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
}
_TORCH = {word: name for word, name in _NUMPY.items() if word != "BOOL"} | {
    "BOOL": "bool",
    "BF16": "bfloat16",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn_x2",
}


@functools.cache
def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """TypeError where numpy (with ml_dtypes, if it is installed) has no such type."""
    if dtype in _NUMPY:
        return np.dtype(_NUMPY[dtype])
    if dtype in _ML_DTYPES:
        try:
            import ml_dtypes
        except ImportError:
            raise TypeError(
                f"numpy has no {dtype}: install ml_dtypes, or use state_dict() or raw(name)"
            ) from None
        if hasattr(ml_dtypes, _ML_DTYPES[dtype]):
            found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, _ML_DTYPES[dtype]))
            return found
    raise TypeError(f"numpy has no {dtype}: use raw(name), which gives the bytes")


@functools.cache
def torch_dtype(dtype: str) -> Any:
    """UnimplementedError where the installed torch has no such type."""
    import torch

    found = getattr(torch, _TORCH.get(dtype, ""), None)
    if found is None:
        raise UnimplementedError(
            f"torch {torch.__version__} has no {dtype}: use raw(name), which gives the bytes"
        )
    return found


@functools.cache
def torch_maker(dtype: str) -> Callable[[tuple[int, ...], int, Bytes], torch.Tensor]:
    """What makes a tensor of this dtype of shape, start in bytes and bytes: with its own storage.

    From an array of the right shape a tensor is made several times faster than by
    torch.frombuffer() and view().
    """
    import torch

    wanted = torch_dtype(dtype)
    from_numpy, empty, ndarray = torch.from_numpy, torch.empty, np.ndarray

    if dtype in _NUMPY:
        same = np.dtype(_NUMPY[dtype])

        def make(shape: tuple[int, ...], start: int, block: Bytes) -> torch.Tensor:
            if 0 in shape:
                return empty(shape, dtype=wanted)
            return from_numpy(ndarray(shape, same, block, start))

        return make

    carrier = np.dtype({1: "uint8", 2: "int16"}[wanted.itemsize])
    packed = dtype == "F4"  # torch packs two into one element

    def make_seen_as(shape: tuple[int, ...], start: int, block: Bytes) -> torch.Tensor:
        if packed and shape:
            shape = (*shape[:-1], shape[-1] // 2)
        if 0 in shape:
            return empty(shape, dtype=wanted)
        return from_numpy(ndarray(shape, carrier, block, start)).view(wanted)

    return make_seen_as
