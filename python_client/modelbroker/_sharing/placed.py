"""Where a torch tensor's bytes are, or why that cannot be told. Nothing here raises."""

from __future__ import annotations

from typing import Any, NamedTuple


class Located(NamedTuple):
    """The bytes from a tensor's first element to its last, on one device."""

    device: str
    address: int
    nbytes: int


def located(torch: Any, tensor: Any) -> Located | str:
    """Where it is; a reason for a tensor that does not show its memory."""
    kind = type(tensor)
    try:
        # As torch's own tensor: a subclass may answer with anything, or fail.
        with torch._C.DisableTorchFunctionSubclass():
            if kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__ or _wrapped(
                torch, tensor
            ):
                return f"a {kind.__name__}, which does not show its memory"
            if tensor.layout != torch.strided:
                return f"{_word(tensor.layout)} layout"
            if tensor.device.type == "meta":
                return "on meta"
            address = tensor.data_ptr()  # 0 where the storage was freed
            return Located(str(tensor.device), address, _extent(tensor) if address else 0)
    except Exception as error:
        first = str(error).partition("\n")[0]
        return f"a {kind.__name__}, which does not show its memory ({first})"


def nominal_bytes(torch: Any, tensor: Any) -> int:
    """What its elements take; 0 for one that does not say."""
    try:
        with torch._C.DisableTorchFunctionSubclass():
            return int(tensor.numel()) * int(tensor.element_size())
    except Exception:
        return 0


def _wrapped(torch: Any, tensor: Any) -> bool:
    """Whether vmap, grad or functionalization stand before the tensor."""
    is_wrapped = getattr(torch._C._functorch, "is_functorch_wrapped_tensor", None)
    return is_wrapped is not None and (is_wrapped(tensor) or torch._is_functional_tensor(tensor))


def _extent(tensor: Any) -> int:
    if tensor.numel() == 0:
        return 0
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((count - 1) * stride for count, stride in steps)
    return int((last + 1) * tensor.element_size())


def _word(torch_name: object) -> str:
    return str(torch_name).removeprefix("torch.")
