"""Workers that know nothing of this package: pyzmq, msgpack, and version 1 of the protocol."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import zlib
from pathlib import Path
from typing import Any

import msgpack
import pytest
import safetensors.numpy
import zmq

from support import files
from support.broker import BrokerProcess, run_python, start_python, wait_until
from support.raw_wire import Socket, dealer, received
from support.workers import line_of, tell

# An existing worker: nothing here may import modelbroker. It prints one JSON object.
WORKER = """
import json, mmap, os, struct, sys, zlib
import msgpack, zmq

endpoint, kind, path = sys.argv[1:4]
context = zmq.Context()
peer = context.socket(getattr(zmq, kind))
peer.linger = 0
peer.rcvtimeo = 30000
peer.connect(endpoint)
count = 0
log = []

def ask(type_, data=None):
    global count
    count += 1
    peer.send(msgpack.packb({"type": type_, "data": data or {}, "request_id": count}))
    reply = msgpack.unpackb(peer.recv())
    assert reply["request_id"] == count, reply
    log.append([type_, sorted(reply)])
    return reply["data"] if reply["success"] else reply["error"]

out = {}
out["loaded"] = ask("model.load_model", {"path": path, "name": "w", "type": "unet",
                                         "estimated_size_mb": 12.5})
out["info"] = ask("model.get_model_info", {"name": "w"})
out["all_info"] = ask("model.get_model_info")
out["list"] = ask("model.list")
granted = ask("model.attach", {"model": "w"})
out["attached"] = granted
(block,) = granted["blocks"]
file = os.open(block["path"], os.O_RDONLY)
memory = mmap.mmap(file, block["size"], mmap.MAP_SHARED, mmap.PROT_READ)
os.close(file)
assert memory[:8] == b"MBROKER1"
version, reader, header, size = struct.unpack_from("<HHIQ", memory, 8)
payload, payload_size, at, length = struct.unpack_from("<4Q", memory, 24)
assert (version, reader, header, size) == (1, 1, 4096, block["size"])
assert (payload, payload_size) == (block["payload_offset"], block["payload_size"])
assert (at, length) == (block["manifest_offset"], block["manifest_size"])
manifest = msgpack.unpackb(memory[at:at + length])
out["manifest"] = {key: manifest[key] for key in ("version", "name", "type", "format", "metadata")}
out["tensors"] = {
    name: [dtype, shape, zlib.crc32(memory[payload + offset:payload + offset + count_])]
    for name, dtype, shape, offset, count_ in manifest["tensors"]
}
out["held"] = ask("model.get", {"model": "w"})["model"]["leases"]
memory.close()
out["detached"] = ask("model.detach", {"lease": granted["lease"]})
out["detached_again"] = ask("model.detach", {"lease": granted["lease"]})
out["unloaded"] = ask("model.unload_model", {"name": "w"})
out["error"] = ask("model.attach", {"model": "w"})
out["pid"] = os.getpid()
out["log"] = log
assert "modelbroker" not in sys.modules
print(json.dumps(out))
"""


def ask(peer: Socket, whole: dict[str, Any]) -> dict[str, Any]:
    peer.send(msgpack.packb(whole))
    return received(peer.recv())


@pytest.mark.parametrize("kind", ["REQ", "DEALER"])
def test_a_worker_of_pyzmq_and_msgpack_loads_attaches_reads_and_unloads(
    broker: BrokerProcess, tmp_path: Path, kind: str
) -> None:
    path = files.write_random(tmp_path / "weights.safetensors", 7)
    done = run_python(WORKER, broker.endpoint, kind, str(path))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    stock = safetensors.numpy.load_file(path)
    assert told["tensors"] == {
        name: ["F16", list(array.shape), zlib.crc32(array.data)] for name, array in stock.items()
    }
    size = told["loaded"]["bytes"]
    assert (told["loaded"]["model"], told["loaded"]["outcome"]) == ("w", "loaded")
    info = {
        "path": str(path),
        "type": "unet",
        "size_mb": size / (1 << 20),
        "generation": told["loaded"]["generation"],
    }
    for one in (told["info"], told["all_info"]):
        assert one["loaded_models"] == {"w": info}
        assert one["model_count"] == 1
        assert one["memory_usage_mb"] == size / (1 << 20)
        assert one["available_memory_mb"] > 0
    (model,) = told["list"]["models"]
    assert (model["name"], model["state"], model["type"]) == ("w", "resident", "unet")
    assert model["block_path"] == told["attached"]["blocks"][0]["path"]
    assert told["manifest"] == {
        "version": 1,
        "name": "w",
        "type": "unet",
        "format": "safetensors",
        "metadata": {"seed": "0"},
    }
    assert [(lease["pid"], lease["uid"]) for lease in told["held"]] == [(told["pid"], os.geteuid())]
    assert (told["detached"], told["detached_again"]) == ({"released": True}, {"released": False})
    assert told["unloaded"]["freed"] + told["unloaded"]["draining"] == size
    assert told["error"].startswith("not_found: no model 'w' is loaded")
    for type_, fields in told["log"]:
        wanted = "error" if told["log"][-1] == [type_, fields] else "data"
        assert fields == sorted(["request_id", "success", wanted])
    wait_until(broker.is_empty)


@pytest.mark.parametrize(
    "request_id", [0, 7, -1, 2**63, 2**64 - 1, -(2**63), "word", "", "w" * 500]
)
def test_a_request_id_comes_back_as_it_was_sent(broker: BrokerProcess, request_id: Any) -> None:
    with dealer(broker) as peer:
        for type_ in ("session.ping", "model.explode"):
            reply = ask(peer, {"type": type_, "data": {}, "request_id": request_id})
            assert (reply["request_id"], type(reply["request_id"])) == (
                request_id,
                type(request_id),
            )
            assert "v" not in reply


def test_request_id_and_data_may_be_left_out(broker: BrokerProcess) -> None:
    with dealer(broker) as peer:
        reply = ask(peer, {"type": "session.ping"})
        assert reply.get("request_id") is None
        assert reply["success"]


ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown type": ({"type": "explode"}, "unimplemented: "),
    "no type": ({"data": {}}, "invalid_argument: "),
    "unknown model": ({"type": "model.get", "data": {"model": "x"}}, "not_found: "),
    "no such file": ({"type": "model.load_model", "data": {"path": "/no/such"}}, "not_found: "),
    "a directory": ({"type": "model.load_model", "data": {"path": "/tmp"}}, "invalid_argument: "),
    "wrong kind": ({"type": "model.attach", "data": {"model": 1}}, "invalid_argument: "),
    "not msgpack's map": ({"type": "model.attach", "data": [1]}, "invalid_argument: "),
    "restate": ({"type": "lease.restate", "data": {}}, "invalid_argument: "),
}


@pytest.mark.parametrize("kind", [zmq.DEALER, zmq.REQ], ids=["DEALER", "REQ"])
def test_an_error_is_one_string_of_code_and_message(broker: BrokerProcess, kind: int) -> None:
    with dealer(broker, kind) as peer:
        for case, (whole, start) in ERRORS.items():
            reply = ask(peer, {**whole, "request_id": 3})
            assert (reply["success"], reply["request_id"]) == (False, 3), case
            assert isinstance(reply["error"], str), case
            assert reply["error"].startswith(start), (case, reply)
            assert len(reply["error"]) > len(start), case


def test_a_repeated_request_of_version_1_is_done_again(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    broker.cli("load", files.write_random(tmp_path / "m.safetensors"), "--name", "m")
    whole = {"type": "model.attach", "data": {"model": "m"}, "request_id": 1}
    with dealer(broker) as peer:
        leases = [ask(peer, whole)["data"]["lease"] for _ in range(3)]
        assert len(set(leases)) == 3
        assert broker.books()["leases"] == 3
        assert ask(peer, {"type": "session.bye"})["data"] == {"released": 3}
    assert broker.books()["leases"] == 0


HOLDER = """
import sys
import msgpack, zmq

peer = zmq.Context().socket(zmq.REQ)
peer.linger = 0
peer.connect(sys.argv[1])
for line in sys.stdin:
    if line == "reconnect\\n":
        peer.close()
        peer = zmq.Context().socket(zmq.REQ)
        peer.connect(sys.argv[1])
    peer.send(msgpack.packb({"type": "model.attach", "data": {"model": "m"}, "request_id": 1}))
    print(msgpack.unpackb(peer.recv())["data"]["lease"], flush=True)
"""


@pytest.mark.parametrize("end", ["SIGKILL", "exit"])
def test_a_plain_workers_leases_end_with_its_process(
    broker: BrokerProcess, tmp_path: Path, end: str
) -> None:
    broker.cli("load", files.write_random(tmp_path / "m.safetensors", 5), "--name", "m")
    worker = start_python(HOLDER, [broker.endpoint])
    try:
        for line in ("attach", "attach", "reconnect"):
            tell(worker, line)
            assert line_of(worker)
        assert broker.books()["leases"] == 3
        (model,) = broker.cli_json("ps")
        assert model["leases"] == [{"pid": worker.pid, "uid": os.geteuid()}] * 3
        broker.cli("unload", "m")
        assert broker.books()["draining"] == model["bytes"]
        if end == "SIGKILL":
            worker.send_signal(signal.SIGKILL)
        else:
            assert worker.stdin is not None
            worker.stdin.close()
        wait_until(broker.is_empty)
    finally:
        worker.kill()
        worker.wait()
        assert worker.stdout is not None
        worker.stdout.close()
        assert worker.stdin is not None
        worker.stdin.close()


# The broker opens a named path with its own rights: root's request gives it no more of them.
@pytest.mark.skipif(os.geteuid() != 0, reason="starts a broker of another user")
def test_a_path_that_root_names_is_opened_with_the_brokers_own_rights() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        path = files.write_random(folder / "m.safetensors")
        path.chmod(0o644)
        secret = files.write_random(folder / "secret.safetensors")
        secret.chmod(0o600)
        other = BrokerProcess()
        run = other.folder / "run"
        other.folder.chmod(0o755)
        run.mkdir(mode=0o700)
        os.chown(run, 65534, 65534)
        script = (
            "import os, sys; os.setgroups([]); os.setresgid(65534, 65534, 65534);"
            "os.setresuid(65534, 65534, 65534); os.execvp(sys.argv[1], sys.argv[1:])"
        )
        binary = folder / "modelbroker"
        binary.write_bytes(Path(other.serve_command()[0]).read_bytes())
        binary.chmod(0o755)
        command = [str(binary), *other.serve_command()[1:]]
        process = start_python(script, command)
        try:
            wait_until(lambda: (run / "fds.sock").exists())
            with dealer(other) as peer:
                assert ask(peer, {"type": "session.hello"})["data"]["uid"] == 0
                for type_, field in (("model.load_model", "path"), ("model.attach", "model")):
                    reply = ask(peer, {"type": type_, "data": {field: str(secret)}})
                    assert not reply["success"], (type_, reply)
                    assert reply["error"].startswith("permission_denied: ")
                assert ask(peer, {"type": "model.list"})["data"]["models"] == []
                reply = ask(peer, {"type": "model.load_model", "data": {"path": str(path)}})
                assert reply["success"], reply
            with other.connect() as client:  # with a descriptor of its own it may
                assert client.load(secret, "s").outcome == "loaded"
                client.unload("s", wait=True)
        finally:
            process.kill()
            process.communicate()
            for left in Path("/dev/shm").glob(f"modelbroker.65534.{other.instance}.*"):
                left.unlink()
            other.stop()


STRANGER = """
import os, socket, sys
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
for name, kind in (("broker.sock", socket.SOCK_STREAM), ("fds.sock", socket.SOCK_SEQPACKET)):
    with socket.socket(socket.AF_UNIX, kind) as peer:
        try:
            peer.connect(f"{sys.argv[1]}/{name}")
            print("connected")
        except PermissionError:
            print("refused")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="gives up root's rights, so it needs them")
def test_a_stranger_reaches_neither_socket(broker: BrokerProcess) -> None:
    broker.folder.chmod(0o755)
    for mode in (0o700, 0o755):
        broker.run.chmod(mode)
        done = run_python(STRANGER, str(broker.run))
        assert done.stdout.split() == ["refused", "refused"], done.stderr


def test_the_brokers_own_uid_may_name_a_path(broker: BrokerProcess, tmp_path: Path) -> None:
    path = files.write_random(tmp_path / "m.safetensors")
    with dealer(broker) as peer:
        hello = ask(peer, {"type": "session.hello"})["data"]
        assert (hello["uid"], hello["pid"]) == (os.geteuid(), os.getpid())
        assert hello["ram_directory"] == str(broker.ram)
        reply = ask(peer, {"type": "model.load_model", "data": {"path": str(path)}})
        assert reply["data"]["outcome"] == "loaded"
        path.unlink()
        reply = ask(peer, {"type": "model.load_model", "data": {"path": str(path)}})
        assert reply["error"].startswith("not_found: ")
