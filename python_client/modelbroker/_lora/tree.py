"""The modules of a component by their names, as they are without PEFT and torch.compile."""

from __future__ import annotations

from typing import TypeAlias

import torch

_Children: TypeAlias = "dict[str, torch.nn.Module | None]"


class Tree:
    """Made by one walk: later changes of the component are not seen, but is_current() tells."""

    def __init__(self, root: torch.nn.Module) -> None:
        self.modules: dict[str, torch.nn.Module] = {}
        self.unreachable: set[str] = set()  # names in a layer that reads weights without calls
        self._parents: list[tuple[_Children, _Children]] = []  # as they are, and as they were
        self._leaves: list[_Children] = []
        root = self._meant(root)
        self._walk(root, "", (), isinstance(root, torch.nn.MultiheadAttention))

    def is_current(self) -> bool:
        """Whether every module still has the children that it had."""
        return not any(self._leaves) and all(now == before for now, before in self._parents)

    def _walk(
        self, module: torch.nn.Module, prefix: str, above: tuple[int, ...], unreachable: bool
    ) -> None:
        """`above`: what the module lies in, since a tree may hold itself."""
        if id(module) in above:
            return
        above = (*above, id(module))
        for name, found in module._modules.items():
            if found is None:
                continue
            path, child, hidden = prefix + name, found, unreachable
            if found._modules:  # most have none: the rest costs milliseconds
                child = self._meant(found)
                if isinstance(child, torch.nn.MultiheadAttention):
                    hidden = True
                    self.unreachable |= {f"{path}.in_proj", f"{path}.in_proj_weight"}
                self._walk(child, f"{path}.", above, hidden)
            else:
                self._leaves.append(found._modules)
            self.modules[path] = child
            if hidden:
                self.unreachable.add(path)

    def _meant(self, module: torch.nn.Module) -> torch.nn.Module:
        """What PEFT or torch.compile wrapped, or the module itself."""
        inner: torch.nn.Module | None = module
        while inner is not None:
            module, parts = inner, inner._modules
            self._parents.append((parts, dict(parts)))
            inner = parts.get("base_layer")
            if inner is None:
                inner = parts.get("_orig_mod")
            if inner is None and "base_model" in parts:
                inner = _of_peft_model(module)
        return module


def _of_peft_model(module: torch.nn.Module) -> torch.nn.Module | None:
    """A PeftModel holds its tuner as `base_model`, which holds the user's model as `model`."""
    tuner = module._modules["base_model"]
    if tuner is None or not type(module).__name__.startswith("Peft"):
        return None
    return tuner._modules.get("model")
