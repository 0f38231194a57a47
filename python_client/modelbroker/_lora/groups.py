"""One module's tensors by role, and which change of a weight they make."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from .._errors import InvalidArgumentError
from .deltas import Delta, Factors, Whole, shape_text
from .products import Hadamard, Half, Kronecker

# The kind by name, the change, and the rank that alpha is divided by; 0 where alpha counts nothing.
Read = tuple[str, Delta, int]


class Group:
    """The tensors of one module by role."""

    def __init__(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        self.name = name
        self._tensors = tensors

    def __contains__(self, role: str) -> bool:
        return role in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def fault(self, words: str) -> InvalidArgumentError:
        """An error that names the module."""
        return InvalidArgumentError(f"{self.name}: {words}")

    def tensor(self, role: str) -> Tensor:
        """A tensor that must be there."""
        tensor = self._tensors.get(role)
        if tensor is None:
            there = ", ".join(repr(other) for other in sorted(self._tensors))
            raise self.fault(f"{role!r} is missing; there are {there}")
        return tensor

    def matrix(self, role: str, most: int = 2) -> Tensor:
        """A tensor of two dimensions, or of up to `most`, where it may have a kernel."""
        tensor = self.tensor(role)
        if not 2 <= tensor.dim() <= most or not tensor.numel():
            raise self.not_a("matrix", role)
        return tensor

    def vector(self, role: str) -> Tensor | None:
        """One value a channel, in one dimension; None where it is absent."""
        if role not in self:
            return None
        tensor = self.tensor(role)
        if not tensor.dim() or not tensor.numel() or max(tensor.shape) != tensor.numel():
            raise self.not_a("vector", role)
        return tensor.reshape(-1)

    def not_a(self, wanted: str, role: str) -> InvalidArgumentError:
        """An error about a tensor's shape."""
        return self.fault(f"{role!r} must be a {wanted}, and is {self.shape(role)}")

    def shape(self, role: str) -> str:
        """A tensor's shape in words."""
        return shape_text(tuple(self._tensors[role].shape))

    def disagree(self, *roles: str) -> InvalidArgumentError:
        """An error about ranks or sizes that must be equal."""
        shapes = ", ".join(f"{role!r} is {self.shape(role)}" for role in roles if role in self)
        return self.fault(f"these do not belong together: {shapes}")


def change_of(group: Group) -> Read | None:
    """The change that these tensors make; None where they change a bias alone."""
    families = {_FAMILY[role] for role in group if role in _FAMILY}
    if len(families) > 1:
        raise group.fault(f"tensors of {' and of '.join(sorted(families))} for one module")
    return _READERS[families.pop()](group) if families else None


def _factors(group: Group) -> Read:
    down, up = group.matrix("down", 5), group.matrix("up", 5)
    mid = group.matrix("mid", 5) if "mid" in group else None
    wide, rank = (down.shape[0],) * 2 if mid is None else mid.shape[:2]
    if up.shape[1] != wide or down.shape[0] != rank:
        raise group.disagree("down", "mid", "up")
    if _has_kernel(up):
        raise group.not_a("matrix", "up")
    if mid is not None and _has_kernel(down):
        raise group.not_a("matrix", "down")
    bias = group.vector("up_bias")
    if bias is not None and bias.numel() != up.shape[0]:
        raise group.disagree("up", "up_bias")
    kind = "LoCon" if _has_kernel(down) else "LoRA"
    return "Tucker" if mid is not None else kind, Factors(down, up, mid, bias), down.shape[0]


def _embedding(group: Group) -> Read:
    down, up = group.matrix("embedding_down"), group.matrix("embedding_up")
    if up.shape[1] != down.shape[0]:
        raise group.disagree("embedding_down", "embedding_up")
    return "LoRA", Factors(down, up), down.shape[0]


def _hadamard(group: Group) -> Read:
    halves = []
    for number in "12":
        names = (f"hada_w{number}_a", f"hada_w{number}_b")
        a, b = group.matrix(names[0]), group.matrix(names[1], 5).flatten(1)
        core = None
        if "hada_t1" in group or "hada_t2" in group:
            core = group.matrix(f"hada_t{number}", 5)
        ranks = (a.shape[1], a.shape[1]) if core is None else tuple(core.shape[:2])
        if ranks != (a.shape[0 if core is not None else 1], b.shape[0]):
            raise group.disagree(*names, f"hada_t{number}")
        outputs = a.shape[1 if core is not None else 0]
        kernel = () if core is None else tuple(core.shape[2:])
        halves.append((a, b, core, (outputs, b.shape[1], *kernel)))
    (a1, b1, core1, shape1), (a2, b2, core2, shape2) = halves
    if shape1 != shape2:
        raise group.disagree(*sorted(role for role in group if role.startswith("hada_")))
    return "LoHa", Hadamard(a1, b1, a2, b2, core1, core2), b1.shape[0]


def _kronecker(group: Group) -> Read:
    first, second = _half(group, "1"), _half(group, "2")
    # Both whole: there is no rank, and alpha counts for nothing.
    factored = first if first.b is not None else second
    return "LoKr", Kronecker(first, second), 0 if factored.b is None else factored.b.shape[0]


def _half(group: Group, number: str) -> Half:
    whole, name_a, name_b = f"lokr_w{number}", f"lokr_w{number}_a", f"lokr_w{number}_b"
    core = f"lokr_t{number}"
    most = 5 if number == "2" else 2
    if whole in group:
        if name_a in group or name_b in group or core in group:
            raise group.fault(f"{whole!r} is there whole and as factors")
        return Half(group.matrix(whole, most))
    a, b = group.matrix(name_a), group.matrix(name_b, most)
    middle = group.matrix(core, 5) if core in group else None
    ranks = (a.shape[1], a.shape[1]) if middle is None else tuple(middle.shape[:2])
    if ranks != (a.shape[0 if middle is not None else 1], b.shape[0]):
        raise group.disagree(name_a, name_b, core)
    return Half(a=a, b=b if middle is None else b.flatten(1), core=middle)


def _diff(group: Group) -> Read:
    diff = group.tensor("diff")
    if not 1 <= diff.dim() <= 5 or not diff.numel():
        raise group.not_a("vector or a matrix", "diff")
    return "norm" if diff.dim() == 1 else "diff", Whole(diff), 0


def _norm(group: Group) -> Read:
    diff = group.tensor("w_norm")
    if not diff.dim() or not diff.numel():
        raise group.not_a("vector", "w_norm")
    return "norm", Whole(diff), 0


def _has_kernel(tensor: Tensor) -> bool:
    return tensor.dim() > 2 and any(size != 1 for size in tensor.shape[2:])


_READERS: dict[str, Callable[[Group], Read]] = {
    "LoRA": _factors,
    "an embedding's LoRA": _embedding,
    "LoHa": _hadamard,
    "LoKr": _kronecker,
    "a full change": _diff,
    "a norm's change": _norm,
}

_FAMILY = {
    role: family
    for family, roles in {
        "LoRA": ("down", "up", "mid", "up_bias"),
        "an embedding's LoRA": ("embedding_down", "embedding_up"),
        "LoHa": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
        "LoKr": (
            "lokr_w1",
            "lokr_w1_a",
            "lokr_w1_b",
            "lokr_w2",
            "lokr_w2_a",
            "lokr_w2_b",
            "lokr_t2",
        ),
        "a full change": ("diff",),
        "a norm's change": ("w_norm",),
    }.items()
    for role in roles
}
