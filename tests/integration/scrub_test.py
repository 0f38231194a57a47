"""A flipped bit is found, the block withdrawn and told of, and loaded again by the next attach."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import modelbroker
from support import files
from support.broker import BrokerProcess, wait_until
from support.damage import flip, flip_in_payload
from support.listener import listening, sparse_model
from support.raw_wire import call, dealer, frame, open_session, packet, packets, received
from support.workers import (
    assert_books_are_the_kernels,
    assert_right_bytes,
    crcs,
    line_of,
    tell,
    workers,
)

MIB = 1 << 20
CHUNK = 16 * MIB
QUIET = ("--scrub-rate", "0")  # nothing but what is asked for

# Holds a model; tells a byte of its tensor for each line that it gets.
READER = """
import sys
import modelbroker

weights = modelbroker.connect(timeout=30).attach(sys.argv[1])
data = weights.raw("t0")
print("ready", flush=True)
for line in sys.stdin:
    print(int(data[int(line)]), flush=True)
"""


@pytest.fixture
def quiet(make_broker: Callable[..., BrokerProcess]) -> BrokerProcess:
    return make_broker(*QUIET).start()


def test_good_blocks_are_found_good(quiet: BrokerProcess, tmp_path: Path) -> None:
    for number, megabytes in enumerate((0.1, 5, 40)):
        quiet.cli(
            "load", files.write_random(tmp_path / f"m{number}.safetensors", megabytes, number)
        )
    with listening(quiet) as ear, quiet.connect() as client:
        found = client.scrub()
        assert (found.damaged, [model.outcome for model in found.models]) == (0, ["good"] * 3)
        assert {model.model for model in found.models} == {"m0", "m1", "m2"}
        assert found.bytes > 45e6
        books = quiet.books()
        assert (books["scrubbed_bytes"], books["scrub_errors"]) == (found.bytes, 0)
        one = client.scrub("m1").models
        assert [model.model for model in one] == ["m1"]
        assert client.scrub(tmp_path / "m2.safetensors").models[0].model == "m2"
        assert not {"model.damaged", "model.unloaded"} & set(ear.types())
        with pytest.raises(modelbroker.NotFoundError):
            client.scrub("m9")
    assert_books_are_the_kernels(quiet)


@pytest.mark.parametrize("at", [0, CHUNK + 12345, 39_999_999])
def test_a_bit_that_flips_is_found_and_the_next_attach_loads_the_model_again(
    quiet: BrokerProcess, tmp_path: Path, at: int
) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 40)
    expected = crcs(path)
    before = quiet.cli_json("load", path, "--pin", "--type", "unet")
    quiet.cli("load", path, "--name", "other")
    (block,) = quiet.blocks()
    with listening(quiet) as ear, quiet.connect() as client:
        offset = flip_in_payload(block, at)
        found = client.scrub()
        assert found.damaged == 1
        (model,) = found.models
        assert (model.model, model.outcome) == ("m", "damaged")
        assert (model.block, model.generation) == (before["block"], before["generation"])
        chunk = model.chunk
        assert model.offset <= offset < model.offset + CHUNK
        assert chunk == at // CHUNK
        damaged = ear.until("model.damaged")["data"]
        assert damaged["outcome"] == "withdrawn"
        assert (damaged["model"], damaged["path"]) == ("m", str(path))
        assert damaged["generation"] == before["generation"]
        assert (damaged.get("chunk", 0), damaged["offset"]) == (chunk, model.offset)
        assert client.list() == []
        assert_right_bytes(client, "m", expected)
        assert_right_bytes(client, "other", expected)
        loaded = ear.until("model.loaded")["data"]
        assert loaded["generation"] > before["generation"]
        ear.until("model.alias", model="other")
        (now,) = client.list()
        assert (now.name, now.aliases, now.type, now.pinned) == ("m", ["other"], "unet", True)
        assert now.generation == loaded["generation"]
        wait_until(lambda: not block.exists())  # nobody had the old one
        assert client.scrub().damaged == 0
        assert quiet.books()["scrub_errors"] == 1
    assert "is damaged at offset" in quiet.output()
    assert_books_are_the_kernels(quiet)


def test_header_and_manifest_are_looked_at_too(quiet: BrokerProcess, tmp_path: Path) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 5)
    quiet.cli("load", path)
    with quiet.connect() as client:
        for offset, what in ((80, "header"), (4096 + 9, "manifest")):
            (block,) = quiet.blocks()
            flip(block, offset)
            (model,) = client.scrub("m").models
            assert model.outcome == "damaged"
            assert what in model.reason
            assert_right_bytes(client, "m", crcs(path))
            wait_until(lambda block=block: not block.exists())


def test_holders_keep_their_mapping_until_they_attach_again(
    quiet: BrokerProcess, tmp_path: Path
) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 20)
    generation = quiet.cli_json("load", path)["generation"]
    (block,) = quiet.blocks()
    original = path.read_bytes()[-20_000_000:]
    with workers(quiet, 1, READER, "m") as (worker,), quiet.connect() as client:
        tell(worker, "77")
        assert line_of(worker) == str(original[77])
        flip_in_payload(block, 77)
        assert client.scrub("m").damaged == 1
        with client.attach("m") as weights:
            assert weights.generation > generation
            assert weights.raw("t0")[77] == original[77]
        # Damaged as it is, it is there to the last byte.
        tell(worker, "77")
        assert line_of(worker) == str(original[77] ^ 1)
        tell(worker, "-1")
        assert line_of(worker) == str(original[len(original) // 4 - 1])
        states = {model["state"]: model for model in quiet.cli_json("ps")}
        assert states["draining"]["generation"] == generation
        assert [lease["pid"] for lease in states["draining"]["leases"]] == [worker.pid]
        # It is not revived, whoever asks for its file.
        assert client.load(path).outcome == "resident"
        client.unload("m", wait=True)
        assert client.load(path).outcome == "loaded"
        assert_books_are_the_kernels(quiet)
    wait_until(lambda: quiet.books()["draining"] == 0)


@pytest.mark.parametrize("names_lost", [False, True])
def test_what_was_damaged_before_a_restart_is_not_revived_after_it(
    quiet: BrokerProcess, tmp_path: Path, names_lost: bool
) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 20)
    quiet.cli("load", path)
    (block,) = quiet.blocks()
    with workers(quiet, 1, READER, "m"):
        flip_in_payload(block, 77)
        with quiet.connect() as client:
            assert client.scrub("m").damaged == 1
            assert_right_bytes(client, "m", crcs(path))  # loaded again
            client.unload("m", wait=True)
        quiet.kill()
        if names_lost:
            for file in quiet.run.glob("state.db*"):
                file.unlink()
        quiet.start()
        with quiet.connect() as client:
            assert client.load(path).outcome == "loaded"
            assert_right_bytes(client, "m", crcs(path))


def test_a_whole_block_that_drained_before_a_restart_is_revived_after_it(
    quiet: BrokerProcess, tmp_path: Path
) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 20)
    quiet.cli("load", path)
    with workers(quiet, 1, READER, "m"):
        quiet.cli("unload", "m")
        quiet.kill()
        quiet.start()
        with quiet.connect() as client:
            assert client.load(path).outcome == "revived"
            assert_right_bytes(client, "m", crcs(path))


@pytest.mark.parametrize("source", ["changed", "removed"])
def test_the_source_of_a_damaged_model_counts_as_it_is_at_the_attach(
    quiet: BrokerProcess, tmp_path: Path, source: str
) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 5)
    quiet.cli("load", path)
    (block,) = quiet.blocks()
    with quiet.connect() as client:
        flip_in_payload(block)
        assert client.scrub().damaged == 1
        if source == "changed":
            files.write_random(path, 5, seed=1)
            assert_right_bytes(client, "m", crcs(path))
            client.unload("m", wait=True)
        else:
            path.unlink()
            with pytest.raises(modelbroker.NotFoundError, match="cannot be loaded again"):
                client.attach("m")
    wait_until(quiet.is_empty)


def test_a_damaged_model_whose_path_leads_nowhere_is_only_withdrawn(
    quiet: BrokerProcess, tmp_path: Path
) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 5)
    with packets(quiet) as fds, dealer(quiet) as peer:
        session = open_session(fds)
        source = os.open(path, os.O_RDONLY)
        handle = packet(fds, frame("file.offer"), source)[0]["data"]["file"]
        os.close(source)
        data = {"file": handle, "path": str(tmp_path / "elsewhere"), "name": "m"}
        assert call(peer, "model.load_model", data, session=session)["success"]
        (block,) = quiet.blocks()
        flip_in_payload(block)
        asked = call(peer, "cache.scrub", {"model": "m"}, "s", session=session)
        assert asked["data"]["damaged"] == 1
        attached = call(peer, "model.attach", {"model": "m"}, "a", session=session)
        assert attached["error"]["code"] == "not_found"
    wait_until(quiet.is_empty)


def test_without_room_for_both_it_is_loaded_once_the_old_one_is_gone(
    make_broker: Callable[..., BrokerProcess], tmp_path: Path
) -> None:
    broker = make_broker(*QUIET, "--ram-budget", "32MiB").start()
    path = files.write_random(tmp_path / "m.safetensors", 20)
    broker.cli("load", path)
    (block,) = broker.blocks()
    with broker.connect() as client:
        with workers(broker, 1, READER, "m"):
            flip_in_payload(block)
            assert client.scrub().damaged == 1
            with pytest.raises(modelbroker.ResourceExhaustedError):
                client.attach("m")
        wait_until(lambda: not block.exists())
        assert_right_bytes(client, "m", crcs(path))


# ---- in the way of nobody


def test_unload_and_eviction_do_not_wait_for_a_scrub(
    make_broker: Callable[..., BrokerProcess], tmp_path: Path
) -> None:
    broker = make_broker(*QUIET, "--ram-budget", "768MiB").start()
    path = sparse_model(tmp_path / "m.safetensors", 512)
    other = sparse_model(tmp_path / "other.safetensors", 400)
    with dealer(broker) as peer, listening(broker) as ear:
        for verb in ("model.unload_model", "model.load_model"):
            broker.cli("load", path)
            ear.until("model.loaded")
            data = {"model": "m"} if verb == "model.unload_model" else {"path": str(other)}
            peer.send(frame("cache.scrub", {}, "scrub"))  # its first chunk is being looked at
            peer.send(frame(verb, data, "verb"))
            replies = {
                reply["request_id"]: reply
                for reply in (received(peer.recv()), received(peer.recv()))
            }
            assert replies["verb"]["success"], replies
            if verb == "model.unload_model":
                assert replies["verb"]["data"]["freed"] >= 512 * MIB
                assert replies["verb"]["data"]["draining"] == 0
            (found,) = replies["scrub"]["data"]["models"]
            assert (found["model"], found["outcome"]) == ("m", "gone")
            assert found["bytes"] < 512 * MIB
        assert ear.until("model.evicted")["data"]["model"] == "m"
        assert broker.books()["scrub_errors"] == 0
        assert [model["name"] for model in broker.cli_json("ps")] == ["other"]
    assert_books_are_the_kernels(broker)


def test_background_and_unload(make_broker: Callable[..., BrokerProcess], tmp_path: Path) -> None:
    broker = make_broker("--scrub-rate", "16MiB", "--scrub-interval", "1ms").start()
    broker.cli("load", sparse_model(tmp_path / "m.safetensors", 512))
    wait_until(lambda: broker.books()["scrubbed_bytes"] > CHUNK)
    freed = broker.cli_json("unload", "m")
    assert (freed["freed"] >= 512 * MIB, freed["draining"]) == (True, 0)
    assert broker.is_empty()


def test_who_asked_and_went_away_is_not_waited_for(quiet: BrokerProcess, tmp_path: Path) -> None:
    quiet.cli("load", sparse_model(tmp_path / "m.safetensors", 512))
    with quiet.connect() as client:
        for _ in range(3):
            with pytest.raises(modelbroker.DeadlineExceededError):
                client.scrub(timeout=0.001)
        with dealer(quiet) as peer:
            for number in range(20):
                peer.send(frame("cache.scrub", {}, f"r{number}"))
            assert received(peer.recv())["data"]["models"][0]["outcome"] == "good"
            call(peer, "session.bye", {}, "bye")
        done = quiet.books()["scrubbed_bytes"]
        assert client.scrub().damaged == 0
        assert quiet.books()["scrubbed_bytes"] < done + 3 * 513 * MIB


def test_a_kill_during_a_scrub_costs_nothing(quiet: BrokerProcess, tmp_path: Path) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 100)
    expected = crcs(path)
    loaded = quiet.cli_json("load", path)
    for pause in (0, 0.005, 0.02):
        with dealer(quiet) as peer:
            peer.send(frame("cache.scrub", {}))
            time.sleep(pause)
            quiet.kill()
        quiet.start()
        (model,) = quiet.cli_json("ps")
        assert (model["name"], model["generation"]) == ("m", loaded["generation"])
        with quiet.connect() as client:
            assert_right_bytes(client, "m", expected)
            assert client.scrub().damaged == 0


def test_a_clean_stop_during_a_scrub(quiet: BrokerProcess, tmp_path: Path) -> None:
    quiet.cli("load", sparse_model(tmp_path / "m.safetensors", 512))
    with dealer(quiet) as peer:
        peer.send(frame("cache.scrub", {}))
        wait_until(lambda: quiet.books()["scrubbed_bytes"] > 0)
        assert quiet.terminate() == 0
        reply = received(peer.recv())
        assert reply["success"] or reply["error"]["code"] == "unavailable"
    assert quiet.blocks() == []


# ---- in the background


def test_what_an_earlier_broker_left_is_looked_at_first(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 20)
    loaded = broker.cli_json("load", path, "--name", "m")
    assert broker.books()["scrubbed_bytes"] == 0  # hashed as it was read: not due for a day
    broker.kill()
    (block,) = broker.blocks()
    flip_in_payload(block, 3_000_000)
    broker.start()
    wait_until(lambda: broker.books()["scrub_errors"] == 1)
    wait_until(lambda: not block.exists())
    with broker.connect() as client:
        assert_right_bytes(client, "m", crcs(path))
        assert client.list()[0].generation > loaded["generation"]
        # Found good after the next restart, once.
        broker.kill()
        broker.start()
        wait_until(lambda: broker.books()["scrubbed_bytes"] > 20_000_000)
        assert broker.books()["scrub_errors"] == 0


def test_damage_of_a_living_block_is_found_at_its_interval(
    make_broker: Callable[..., BrokerProcess], tmp_path: Path
) -> None:
    broker = make_broker("--scrub-interval", "100ms", "--scrub-rate", "1GiB").start()
    path = files.write_random(tmp_path / "m.safetensors", 40)
    broker.cli("load", path)
    (block,) = broker.blocks()
    with listening(broker) as ear:
        flip_in_payload(block, CHUNK)
        assert ear.until("model.damaged")["data"]["chunk"] == 1
    with broker.connect() as client:
        assert_right_bytes(client, "m", crcs(path))


def test_the_rate_is_never_passed(
    make_broker: Callable[..., BrokerProcess], tmp_path: Path
) -> None:
    broker = make_broker("--scrub-rate", "32MiB/s", "--scrub-interval", "1ms").start()
    broker.cli("load", sparse_model(tmp_path / "m.safetensors", 64))
    wait_until(lambda: broker.books()["scrubbed_bytes"] > 0)
    began = time.monotonic()
    before = broker.books()["scrubbed_bytes"]
    time.sleep(2)
    done = broker.books()["scrubbed_bytes"] - before
    assert done <= 32 * MIB * (time.monotonic() - began) + 2 * CHUNK
    wait_until(
        lambda: broker.books()["scrubbed_bytes"] > before + 64 * MIB
    )  # it goes round and round


def test_off_and_on_again(make_broker: Callable[..., BrokerProcess], tmp_path: Path) -> None:
    config = tmp_path / "broker.toml"
    config.write_text('[scrub]\nrate = "0"\n')
    broker = make_broker("--config", str(config)).start()
    broker.cli("load", files.write_random(tmp_path / "m.safetensors", 5))
    broker.kill()
    broker.start()
    time.sleep(0.5)
    assert broker.books()["scrubbed_bytes"] == 0
    config.write_text('[scrub]\nrate = "64MiB"\n')
    assert broker.process is not None
    broker.process.send_signal(signal.SIGHUP)
    wait_until(lambda: broker.books()["scrubbed_bytes"] > 5_000_000)


@pytest.mark.parametrize("who", ["load", "attach", "attach by path", "scrub"])
@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_block_whose_file_was_removed_is_loaded_again(
    quiet: BrokerProcess, tmp_path: Path, who: str, how: str
) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 5)
    before = quiet.cli_json("load", path, "--pin", "--type", "unet")
    quiet.cli("load", path, "--name", "other")
    (block,) = quiet.blocks()
    with listening(quiet) as ear, quiet.connect() as client:
        held = client.attach("m")
        block.unlink()
        if how == "replaced":
            block.write_bytes(b"nothing of ours")
        if who == "load":
            assert client.load(path, "m").outcome in ("loaded", "resident")
        elif who == "scrub":
            assert [m.outcome for m in client.scrub().models] == ["damaged"]
        else:
            assert_right_bytes(client, "m" if who == "attach" else str(path), crcs(path))
        damaged = ear.until("model.damaged")["data"]
        assert (damaged["outcome"], damaged["block"]) == ("withdrawn", before["block"])
        assert "somebody removed it" in damaged["reason"]
        assert_right_bytes(client, "m", crcs(path))
        assert_right_bytes(client, "other", crcs(path))
        (now,) = client.list()
        assert (now.name, now.aliases) == ("m", ["other"])
        assert (now.type, now.pinned) == ("unet", True)
        assert now.generation > before["generation"]
        held.release()
        if how == "replaced":
            block.unlink(missing_ok=True)
        wait_until(lambda: not client.status().tiers["ram"].draining)
        assert_books_are_the_kernels(quiet)
        for name in ("m", "other"):
            client.unload(name)
    wait_until(quiet.is_empty)


def test_a_model_whose_file_was_removed_can_be_unloaded(
    quiet: BrokerProcess, tmp_path: Path
) -> None:
    path = files.write_random(tmp_path / "m.safetensors", 5)
    quiet.cli("load", path)
    (block,) = quiet.blocks()
    with quiet.connect() as client, client.attach("m") as held:
        block.unlink()
        client.unload("m")
        assert quiet.books()["made"] == 0
        assert client.load(path).outcome == "loaded"  # what drains there has no file to revive
        assert_right_bytes(client, "m", crcs(path))
        assert held.raw("t0").nbytes > 0
    quiet.cli("unload", "m")
    wait_until(quiet.is_empty)
