"""when_imported: the callback comes once, right after the import, and the module shows no trace."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.resources
import importlib.util
import inspect
import logging
import pkgutil
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from modelbroker._sharing import imports

SOURCE = """
VALUE = 1
LOADER = __loader__
SPEC_LOADER = __spec__.loader

def double(x):
    return 2 * x
"""


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """Nor is anything there: tests of sharing in this process go on to want modules."""
    real, wanted = list(sys.meta_path), list(imports._wanted)
    before = [finder for finder in real if finder is not imports._finder]
    sys.meta_path = list(before)
    imports._wanted.clear()
    modules = set(sys.modules)
    yield
    assert [finder for finder in sys.meta_path if finder is not imports._finder] == before
    sys.meta_path = real
    imports._wanted[:] = wanted
    imports._followed.clear()
    for name in set(sys.modules) - modules:
        if name.startswith("wanted"):
            del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "wanted.py").write_text(SOURCE)
    (tmp_path / "wanted_package").mkdir()
    (tmp_path / "wanted_package/__init__.py").write_text(SOURCE)
    (tmp_path / "wanted_package/data.txt").write_text("data")
    (tmp_path / "wanted_package/part.py").write_text(SOURCE)
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.writestr("wanted_archived.py", SOURCE)
        archive.writestr("wanted_second.py", SOURCE)
    monkeypatch.syspath_prepend(tmp_path / "archive.zip")
    importlib.invalidate_caches()
    return tmp_path


KINDS = ["wanted", "wanted_package", "wanted_package.part", "wanted_archived"]


def facts(module: ModuleType) -> dict[str, Any]:
    spec = module.__spec__
    assert spec is not None
    loader: Any = module.__loader__
    return {
        "loader": (type(loader), sorted(vars(loader))),
        "same": module.LOADER is loader and module.SPEC_LOADER is loader and spec.loader is loader,
        "spec": (spec.name, spec.origin, spec.cached, spec.submodule_search_locations),
        "source": inspect.getsource(module.double),
        "file": module.__file__,
        "again": importlib.util.find_spec(module.__name__) is spec,
        "names": sorted(vars(module)),
    }


@pytest.mark.parametrize("name", KINDS)
def test_the_callback_comes_once_and_the_module_is_as_without_it(folder: Path, name: str) -> None:
    assert folder.exists()
    plain = facts(importlib.import_module(name))
    for each in KINDS:
        sys.modules.pop(each, None)
    seen: list[tuple[ModuleType, int]] = []
    imports.when_imported(name, lambda module: seen.append((module, module.VALUE)))
    assert not seen
    found = importlib.util.find_spec(name)
    assert found is not None
    assert found.loader is not None
    assert not seen
    module = importlib.import_module(name)
    assert seen == [(module, 1)]
    assert facts(module) == plain
    assert plain["same"]
    assert imports._finder not in sys.meta_path
    importlib.reload(module)
    assert seen == [(module, 1)]
    assert facts(module) == plain


def test_a_spec_that_is_only_looked_for_has_the_real_loader(folder: Path) -> None:
    imports.when_imported("wanted", lambda _: None)
    spec = importlib.util.find_spec("wanted")
    assert spec is not None
    assert type(spec.loader) is importlib.machinery.SourceFileLoader
    assert (spec.origin, spec.name) == (str(folder / "wanted.py"), "wanted")
    assert "wanted" in {module.name for module in pkgutil.iter_modules([str(folder)])}
    assert importlib.util.find_spec("wanted_archived") is not None


def test_resources_of_a_wanted_package_are_found(folder: Path) -> None:
    assert folder.exists()
    imports.when_imported("wanted_package", lambda _: None)
    package = importlib.import_module("wanted_package")
    assert importlib.resources.files(package).joinpath("data.txt").read_text() == "data"


def test_a_module_executed_by_hand_calls_back_when_it_is_whole(folder: Path) -> None:
    (folder / "wanted.py").write_text("import wanted_second\n" + SOURCE)
    seen: list[int] = []
    imports.when_imported("wanted", lambda module: seen.append(module.VALUE))
    spec = importlib.util.find_spec("wanted")
    assert spec is not None
    assert spec.loader is not None
    sys.modules["wanted"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["wanted"])
    assert seen == [1]


def test_a_module_of_an_archive_executed_by_hand_calls_back(folder: Path) -> None:
    assert folder.exists()
    seen: list[ModuleType] = []
    imports.when_imported("wanted_archived", seen.append)
    spec = importlib.util.find_spec("wanted_archived")
    assert spec is not None
    assert spec.loader is not None
    assert spec.loader.is_package("wanted_archived") is False  # type: ignore[attr-defined]  # an archive's loader has it
    module = importlib.util.module_from_spec(spec)
    sys.modules["wanted_archived"] = module
    spec.loader.exec_module(module)
    assert seen == [module]


def test_a_module_that_is_there_calls_back_at_once(folder: Path) -> None:
    assert folder.exists()
    module = importlib.import_module("wanted")
    seen: list[ModuleType] = []
    imports.when_imported("wanted", seen.append)
    assert seen == [module]
    assert imports._finder not in sys.meta_path


def test_several_wait_for_several(folder: Path) -> None:
    assert folder.exists()
    seen: list[str] = []
    for name in ("wanted", "wanted", "wanted_second", "wanted_archived"):
        imports.when_imported(name, lambda module: seen.append(module.__name__))
    assert sys.meta_path.count(imports._finder) == 1
    for name in ("wanted_second", "wanted", "wanted_package", "wanted_archived"):
        assert imports._finder in sys.meta_path
        importlib.import_module(name)
    assert seen == ["wanted_second", "wanted", "wanted", "wanted_archived"]
    assert imports._finder not in sys.meta_path


def test_a_callback_that_raises_is_logged_and_the_next_is_called(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert folder.exists()
    seen: list[ModuleType] = []
    imports.when_imported("wanted", lambda _: 1 / 0)
    imports.when_imported("wanted", seen.append)
    with caplog.at_level(logging.WARNING, "modelbroker"):
        module = importlib.import_module("wanted")
    assert seen == [module]
    [message] = caplog.messages
    assert message.startswith("weights are not shared: what follows the import of wanted failed: ")
    assert message.endswith("ZeroDivisionError: division by zero")


def test_an_import_that_fails_calls_back_when_it_succeeds(folder: Path) -> None:
    seen: list[ModuleType] = []
    imports.when_imported("wanted", seen.append)
    (folder / "wanted.py").write_text("raise ValueError('not today')")
    with pytest.raises(ValueError, match="not today"):
        importlib.import_module("wanted")
    assert not seen
    (folder / "wanted.py").write_text(SOURCE + "\n# longer\n")
    assert seen == [importlib.import_module("wanted")]


def test_a_module_that_does_not_exist_is_not_found(folder: Path) -> None:
    assert folder.exists()
    imports.when_imported("wanted_nowhere", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match="No module named 'wanted_nowhere'"):
        importlib.import_module("wanted_nowhere")
    assert importlib.util.find_spec("wanted_nowhere") is None


class Other:
    """Another package's finder, which asks all finders once more, as wrapt's does."""

    def __init__(self) -> None:
        self.under_way = False

    def find_spec(self, name: str, *_: Any) -> Any:
        if name != "wanted" or self.under_way:
            return None
        self.under_way = True
        try:
            return importlib.util.find_spec(name)
        finally:
            self.under_way = False


@pytest.mark.parametrize("place", [0, 1])
def test_it_works_with_other_finders(folder: Path, place: int) -> None:
    assert folder.exists()
    seen: list[ModuleType] = []
    other = Other()
    imports.when_imported("wanted", seen.append)
    sys.meta_path.insert(place, other)
    try:
        assert [importlib.import_module("wanted")] == seen
    finally:
        sys.meta_path.remove(other)


def in_threads(count: int, work: Callable[[], object]) -> None:
    barrier = threading.Barrier(count)

    def run() -> None:
        barrier.wait()
        work()

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_threads_that_import_at_once_see_it_called_back_already(folder: Path) -> None:
    (folder / "wanted.py").write_text(SOURCE + "import time\ntime.sleep(0.05)\n")
    seen: list[ModuleType] = []
    found: list[tuple[int, int]] = []
    imports.when_imported("wanted", seen.append)

    def work() -> None:
        module = importlib.import_module("wanted")
        found.append((module.VALUE, len(seen)))

    in_threads(8, work)
    assert found == [(1, 1)] * 8


def test_who_asks_while_another_thread_imports_waits_for_the_whole_module(folder: Path) -> None:
    (folder / "wanted.py").write_text(
        "import threading\nSTARTED = threading.Event()\nSTARTED.set()\n"
        "GO = threading.Event()\nGO.wait(60)\nVALUE = 1\n"
    )
    importer = threading.Thread(target=importlib.import_module, args=("wanted",))
    importer.start()
    while "wanted" not in sys.modules or not hasattr(sys.modules["wanted"], "GO"):
        pass
    seen: list[int] = []
    asker = threading.Thread(
        target=imports.when_imported, args=("wanted", lambda module: seen.append(module.VALUE))
    )
    asker.start()
    assert not seen
    sys.modules["wanted"].GO.set()
    importer.join()
    asker.join()
    assert seen == [1]


class Slow:
    """A finder that holds a search up."""

    def __init__(self) -> None:
        self.reached, self.go = threading.Event(), threading.Event()

    def find_spec(self, name: str, *_: Any) -> None:
        if name == "wanted":
            self.reached.set()
            self.go.wait(60)


def test_asking_while_another_thread_searches_calls_back_at_the_next_import(folder: Path) -> None:
    assert folder.exists()
    slow = Slow()
    seen: list[ModuleType] = []
    imports.when_imported("wanted_nowhere", seen.append)
    sys.meta_path.insert(1, slow)
    importer = threading.Thread(target=importlib.import_module, args=("wanted",))
    importer.start()
    slow.reached.wait(60)
    imports.when_imported("wanted", seen.append)
    slow.go.set()
    importer.join()
    sys.meta_path.remove(slow)
    assert not seen
    importlib.import_module("wanted_second")
    assert seen == [sys.modules["wanted"]]


def test_asking_and_importing_at_once_calls_back_once(folder: Path) -> None:
    assert folder.exists()
    for _ in range(50):
        sys.modules.pop("wanted", None)
        seen: list[int] = []

        def ask(seen: list[int] = seen) -> None:
            imports.when_imported("wanted", lambda module: seen.append(module.VALUE))

        works: list[Callable[[], object]] = [ask, lambda: importlib.import_module("wanted")] * 3
        in_threads(6, lambda works=works: works.pop()())  # type: ignore[misc]  # its type is in_threads'
        importlib.util.find_spec("wanted_nowhere")
        assert seen == [1, 1, 1]
        assert not imports._wanted
