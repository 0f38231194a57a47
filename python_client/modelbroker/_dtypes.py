"""The safetensors dtype words, and what torch and numpy call them: the one table of this package.

The list belongs to safetensors and grows. A word that is not in it is an opaque dtype: its shape
and size are what the file says, and `raw()` gives its bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from ._errors import TorchMissingError, UnimplementedError

if TYPE_CHECKING:
    import torch

Bytes: TypeAlias = "np.ndarray[Any, np.dtype[np.uint8]]"


class Dtype(NamedTuple):
    """One word: the bits of an element, and the names of others for it, where they have one."""

    bits: int
    torch: str = ""
    numpy: str = ""
    ml_dtypes: str = ""


def _common(bits: int, name: str) -> Dtype:
    return Dtype(bits, torch=name, numpy=name)


def _small(bits: int, torch: str) -> Dtype:
    """ml_dtypes calls them as torch does."""
    return Dtype(bits, torch=torch, ml_dtypes=torch)


DTYPES = {
    "BOOL": _common(8, "bool"),
    "U8": _common(8, "uint8"),
    "I8": _common(8, "int8"),
    "F8_E5M2": _small(8, "float8_e5m2"),
    "F8_E4M3": _small(8, "float8_e4m3fn"),
    "F8_E8M0": _small(8, "float8_e8m0fnu"),
    "F8_E4M3FNUZ": _small(8, "float8_e4m3fnuz"),
    "F8_E5M2FNUZ": _small(8, "float8_e5m2fnuz"),
    "I16": _common(16, "int16"),
    "U16": _common(16, "uint16"),
    "F16": _common(16, "float16"),
    "BF16": _small(16, "bfloat16"),
    "I32": _common(32, "int32"),
    "U32": _common(32, "uint32"),
    "F32": _common(32, "float32"),
    "C64": _common(64, "complex64"),
    "F64": _common(64, "float64"),
    "I64": _common(64, "int64"),
    "U64": _common(64, "uint64"),
    "F4": Dtype(4, torch="float4_e2m1fn_x2"),
    "F6_E2M3": Dtype(6),
    "F6_E3M2": Dtype(6),
}
_OPAQUE = Dtype(0)


def valid_dtype(dtype: object) -> bool:
    """As in docs/block-format.md: 1 to 32 printable ASCII characters without spaces."""
    return isinstance(dtype, str) and 1 <= len(dtype) <= 32 and all("!" <= c <= "~" for c in dtype)


@functools.cache
def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """TypeError where numpy (with ml_dtypes, if it is installed) has no such type."""
    known = DTYPES.get(dtype, _OPAQUE)
    if known.numpy:
        return np.dtype(known.numpy)
    if known.ml_dtypes:
        try:
            import ml_dtypes
        except ImportError:
            raise TypeError(
                f"numpy has no {dtype}: install ml_dtypes, or use state_dict() or raw(name)"
            ) from None
        if hasattr(ml_dtypes, known.ml_dtypes):
            found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, known.ml_dtypes))
            return found
    raise TypeError(f"numpy has no {dtype}: use raw(name), which gives the bytes")


def imported_torch() -> Any:
    """The module torch; TorchMissingError where it cannot be imported."""
    try:
        import torch
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == "torch"
        reason = "torch is not installed" if absent else f"torch cannot be imported ({error})"
        raise TorchMissingError(
            f"{reason}: pip install 'modelbroker[torch]', or use numpy() or raw(name)"
        ) from None
    return torch


@functools.cache
def torch_dtype(dtype: str) -> Any:
    """UnimplementedError where the installed torch has no such type."""
    torch = imported_torch()
    found = getattr(torch, DTYPES.get(dtype, _OPAQUE).torch, None)
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
    imported_torch()
    import torch

    wanted = torch_dtype(dtype)
    known = DTYPES[dtype]
    from_numpy, ndarray = torch.from_numpy, np.ndarray

    def empty(shape: tuple[int, ...]) -> torch.Tensor:
        try:
            return torch.empty(shape, dtype=wanted, device="cpu")
        except (RuntimeError, TypeError):  # a dimension beyond what torch counts in
            raise UnimplementedError(
                f"torch has no tensor of shape {list(shape)}: use raw(name)"
            ) from None

    if known.numpy:
        same = np.dtype(known.numpy)

        def make(shape: tuple[int, ...], start: int, block: Bytes) -> torch.Tensor:
            if 0 in shape:
                return empty(shape)
            return from_numpy(ndarray(shape, same, block, start))

        return make

    carrier = np.dtype({1: "uint8", 2: "int16"}[wanted.itemsize])
    packed = known.bits < 8  # torch packs two into one element

    def make_seen_as(shape: tuple[int, ...], start: int, block: Bytes) -> torch.Tensor:
        if packed:
            if not shape or shape[-1] % 2:
                raise UnimplementedError(
                    f"torch has no {dtype} of shape {list(shape)}, only of an even last dimension: "
                    "use raw(name), which gives the bytes"
                )
            shape = (*shape[:-1], shape[-1] // 2)
        if 0 in shape:
            return empty(shape)
        return from_numpy(ndarray(shape, carrier, block, start)).view(wanted)

    return make_seen_as


class _Writable:
    """An array's memory, called writable whatever it is."""

    __slots__ = ("__array_interface__", "_array")

    def __init__(self, array: Bytes) -> None:
        self._array = array
        address, _ = array.__array_interface__["data"]
        self.__array_interface__ = {**array.__array_interface__, "data": (address, False)}


def for_torch(block: Bytes) -> Bytes:
    """The same memory as an array that torch takes without a word.

    torch has no read-only tensors, and warns. To silence it would change the filters of all
    threads of the process.
    """
    return block if block.flags.writeable else np.asarray(_Writable(block))
