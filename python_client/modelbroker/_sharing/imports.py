"""Calls back right after a module was imported, and leaves no trace in that module.

A finder at the head of sys.meta_path asks the finders behind it for the module and gets hold of the
loader they found, for the moment in which the loader runs the module's code.
Imports nothing: every child of modelbroker.run pays for it.
"""

import sys

TYPE_CHECKING = False  # as type checkers know it; typing takes long to import

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

    Callback = Callable[[ModuleType], object]

# Without a lock: one that a fork copies while another thread has it would stay taken in the child.
# append() and remove() of a list are atomic; a callback is called by the thread that removes it.
_wanted: "list[tuple[str, Callback]]" = []
# Modules whose loader will call back.
_followed: "set[str]" = set()


def when_imported(name: str, callback: "Callback") -> None:
    """Calls `callback(module)` once, after that module's import; at once if it was imported before.

    It comes at the next import of anything where another thread was just looking for the module.
    A callback that raises is logged.
    """
    _wanted.append((name, callback))
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    if name in sys.modules:  # also by another thread, just before the finder was there
        _wait_for_its_import(name)
        _call_back(name)


class _Finder:
    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        wanted = {each for each, _ in _wanted}
        for each in wanted:  # imported by a thread that had passed here before it was wanted
            there = each in sys.modules and each not in _followed
            if there and each != name and not _is_under_way(each):
                _call_back(each)
        if name not in wanted:
            return None
        finders = list(sys.meta_path)
        behind = finders.index(self) + 1 if self in finders else 0
        for finder in finders[behind:]:
            find_spec = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find_spec(name, path, target) if find_spec else None
            if spec is not None:
                _follow(spec)
                return spec
        return None


_finder = _Finder()


def _follow(spec: "ModuleSpec") -> None:
    """Has the callbacks called when the loader has run the module's code."""
    loader: Any = spec.loader
    if not hasattr(loader, "exec_module"):
        return  # a namespace package, or of a kind that Python 3.12 dropped
    _followed.add(spec.name)
    if getattr(loader, "name", None) != spec.name or not hasattr(loader, "__dict__"):
        front: Any = _Loader(loader, spec.name)
        spec.loader = front
        return

    # A file's loader is this module's alone: it stays the one that everybody sees.
    def exec_module(module: "ModuleType") -> None:
        vars(loader).pop("exec_module", None)
        loader.exec_module(module)
        _call_back(spec.name)

    loader.exec_module = exec_module


class _Loader:
    """In front of a loader that several modules have, an archive's for instance."""

    def __init__(self, loader: "Any", name: str) -> None:
        self._loader = loader
        self._name = name

    def __getattr__(self, name: str) -> "Any":
        return getattr(self._loader, name)

    def create_module(self, spec: "ModuleSpec") -> "ModuleType | None":
        create: Any = getattr(self._loader, "create_module", lambda _: None)
        module: ModuleType | None = create(spec)
        return module

    def exec_module(self, module: "ModuleType") -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _call_back(self._name)


def _is_under_way(name: str) -> bool:
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return bool(getattr(spec, "_initializing", False))


def _wait_for_its_import(name: str) -> None:
    """By another thread."""
    if _is_under_way(name):
        try:
            __import__(name)
        except Exception:  # as the other thread is told
            return


def _call_back(name: str) -> None:
    module = sys.modules.get(name)
    if module is None:  # its import failed: the next one may not
        return
    _followed.discard(name)
    for pair in list(_wanted):
        if pair[0] != name:
            continue
        try:
            _wanted.remove(pair)
        except ValueError:  # another thread has called it
            continue
        try:
            pair[1](module)
        except Exception as error:
            from logging import getLogger

            getLogger("modelbroker").warning(
                "weights are not shared: what follows the import of %s failed: %s: %s",
                name,
                type(error).__name__,
                error,
            )
    if not _wanted:
        _leave()


def _leave() -> None:
    """Takes the finder out, by a new list: a search under way in the old one would skip one."""
    sys.meta_path = [finder for finder in sys.meta_path if finder is not _finder]
    if _wanted and _finder not in sys.meta_path:  # of another thread, meanwhile
        sys.meta_path.insert(0, _finder)
