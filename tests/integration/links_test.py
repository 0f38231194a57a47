"""Names follow the file at their own path.

Several paths may lead to one file, and elsewhere later.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

import modelbroker
from modelbroker import NotFoundError, StaleGenerationError
from support import files
from support.broker import BrokerProcess
from support.hanging_files import hanging_file
from support.workers import assert_books_are_the_kernels

MakeBroker = Callable[..., BrokerProcess]


def point(link: Path, target: Path) -> None:
    """Makes the link lead there from now on, in one step."""
    new = link.with_name("new")
    new.symlink_to(target)
    new.rename(link)


@dataclass(frozen=True)
class Links:
    """Two links that lead to version 1, and are loaded under their names."""

    broker: BrokerProcess
    client: modelbroker.Broker
    prod: Path
    canary: Path
    versions: list[Path]

    def seeds(self) -> dict[str, str]:
        seeds = {}
        for name in ("prod", "canary"):
            with self.client.attach(name) as weights:
                seeds[name] = weights.metadata["seed"]
        return seeds


@pytest.fixture
def links(make_broker: MakeBroker, tmp_path: Path) -> Links:
    broker = make_broker("--ram-budget", "40MiB").start()
    versions = [files.write_random(tmp_path / f"v{i}.safetensors", 8, seed=i) for i in range(3)]
    made = Links(broker, broker.connect(), tmp_path / "prod", tmp_path / "canary", versions)
    for link in (made.prod, made.canary):
        point(link, versions[1])
        made.client.load(link, link.name)
    return made


def test_a_block_that_keeps_one_of_its_links_is_shown_at_that_after_a_restart(links: Links) -> None:
    point(links.prod, links.versions[2])
    links.client.load(links.prod)

    def paths() -> dict[str, str]:
        return {model.name: model.path for model in links.client.list()}

    expected = {"prod": str(links.prod), "canary": str(links.canary)}
    assert paths() == expected
    links.broker.kill()
    links.broker.start()
    assert paths() == expected


def test_one_path_that_leads_elsewhere_takes_only_its_own_names_along(links: Links) -> None:
    point(links.prod, links.versions[2])
    assert links.client.load(links.prod, "prod").outcome == "loaded"
    assert links.seeds() == {"prod": "2", "canary": "1"}
    point(links.canary, links.versions[2])
    assert links.client.load(links.canary, "canary").outcome == "resident"
    assert links.seeds() == {"prod": "2", "canary": "2"}
    assert [(model.name, model.aliases) for model in links.client.list()] == [("prod", ["canary"])]
    assert_books_are_the_kernels(links.broker)


def test_hard_links_are_paths_too(broker: BrokerProcess, tmp_path: Path) -> None:
    first = files.write_random(tmp_path / "first.safetensors", 1, seed=1)
    second = tmp_path / "second.safetensors"
    second.hardlink_to(first)
    with broker.connect() as client:
        client.load(first, "first")
        client.load(second, "second")
        files.write_random(tmp_path / "new", 1, seed=2).rename(first)
        client.load(first)
        with client.attach("first") as new, client.attach("second") as old:
            assert (new.metadata["seed"], old.metadata["seed"]) == ("2", "1")


def test_the_names_of_every_path_are_kept_over_a_restart(links: Links) -> None:
    links.broker.kill()
    links.broker.start()
    point(links.canary, links.versions[2])
    links.client.load(links.canary, "canary")
    assert links.seeds() == {"prod": "1", "canary": "2"}


def test_an_evicted_name_leads_back_to_its_own_path(links: Links) -> None:
    point(links.prod, links.versions[2])
    big = files.write_random(links.prod.with_name("big.safetensors"), 35)
    links.client.load(big)
    links.client.unload("big", wait=True)
    assert links.client.list() == []
    assert links.seeds() == {"prod": "2", "canary": "1"}


def test_every_path_stands_for_the_model(links: Links) -> None:
    links.client.pin(links.canary)
    assert [model.pinned for model in links.client.list()] == [True]
    links.canary.unlink()
    with links.client.attach(links.canary) as weights:  # its weights are there yet
        assert weights.metadata["seed"] == "1"


def test_a_load_that_a_newer_one_overtook_takes_no_name_back(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    content = files.write_random(tmp_path / "content", 30, seed=1).read_bytes()
    newer = files.write_random(tmp_path / "newer.safetensors", 1, seed=2)
    link = tmp_path / "m.safetensors"
    with (
        hanging_file(tmp_path / "fuse", content, 5) as slow,
        broker.connect() as client,
        broker.connect() as other,
        ThreadPoolExecutor(1) as pool,
    ):
        point(link, slow.path)
        overtaken = pool.submit(client.load, link, "m")
        assert slow.hanging.wait(60)
        point(link, newer)
        assert other.load(link, "m").outcome == "loaded"
        slow.go_on()
        with pytest.raises(StaleGenerationError, match="load it again"):
            overtaken.result(60)
        with client.attach("m") as weights:
            assert weights.metadata["seed"] == "2"
        assert client.load(link, "m").outcome == "resident"
    assert_books_are_the_kernels(broker)


def test_a_path_that_leads_back_is_believed(links: Links) -> None:
    with links.client.attach("prod"):  # version 1 stays, or drains
        for version in (2, 1, 2, 1):
            for link in (links.prod, links.canary):
                point(link, links.versions[version])
                links.client.load(link, link.name)
            assert links.seeds() == {"prod": str(version), "canary": str(version)}


def test_a_new_generation_is_kept_as_the_old_one_was(broker: BrokerProcess, tmp_path: Path) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 1, seed=1)
    with broker.connect() as client:
        client.load(path, "m", type="unet", keep_alive=3600, pin=True)
        files.write_random(tmp_path / "new", 1, seed=2).rename(path)
        with client.attach(path) as weights:
            assert (weights.model, weights.metadata["seed"]) == ("m", "2")
        (model,) = client.list()
        assert (model.type, model.keep_alive, model.pinned) == ("unet", 3600, True)


def test_what_was_evicted_is_unloaded_by_its_path(links: Links) -> None:
    big = files.write_random(links.prod.with_name("big.safetensors"), 35)
    links.client.load(big)
    assert links.client.unload(links.prod).freed == 0
    with pytest.raises(NotFoundError):
        links.client.attach("prod")
    with pytest.raises(NotFoundError):
        links.client.unload(links.prod)
    links.client.unload("big", wait=True)
    with links.client.attach("canary"):
        assert os.path.lexists(links.canary)
