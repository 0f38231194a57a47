"""One worker of the embedding service: answers HTTP requests on a socket that all workers share."""

from __future__ import annotations

import argparse
import contextlib
import http.server
import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import modelbroker

_MOST_BYTES = 1 << 20
_MOST_SENTENCES = 256
_STATUS_OF = {
    "invalid_argument": 400,
    "permission_denied": 403,
    "not_found": 404,
    "unavailable": 503,
    "resource_exhausted": 503,
    "deadline_exceeded": 504,
}


class Handler(http.server.BaseHTTPRequestHandler):
    """POST /embed {"sentences": [...]}, GET /health. Errors: {"error": {"code", "message"}}."""

    server: Server
    timeout = 10  # for a client that does not send what it announced

    def do_POST(self) -> None:
        self._answer(self._embed, "/embed")

    def do_GET(self) -> None:
        self._answer(self._health, "/health")

    def _answer(self, what: Any, path: str) -> None:
        try:
            if self.path != path:
                raise modelbroker.NotFoundError(
                    f"{self.command} {self.path} is not here: POST /embed, or GET /health"
                )
            status, answer = 200, what()
        except modelbroker.ModelBrokerError as error:
            status = _STATUS_OF.get(error.code, 500)
            answer = {"error": {"code": error.code, "message": error.message}}
        except Exception as error:  # our bug: the worker lives, the client learns no more than that
            self.log_error("%r", error)
            status = 500
            answer = {"error": {"code": "internal", "message": "see the service's log"}}
        body = json.dumps(answer).encode() + b"\n"
        with contextlib.suppress(ConnectionError):  # a client that did not wait
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def _embed(self) -> dict[str, object]:
        sentences = self._sentences()
        model = self.server.model
        return {
            "model": model.name,
            "generation": model.generation,
            "pid": os.getpid(),
            "embeddings": model.embed(sentences),
        }

    def _sentences(self) -> list[str]:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > _MOST_BYTES:
            raise modelbroker.InvalidArgumentError(
                f"the body must have a Content-Length of at most {_MOST_BYTES} bytes"
            )
        try:
            asked = json.loads(self.rfile.read(int(length)))
        except TimeoutError:
            raise modelbroker.DeadlineExceededError(
                f"the body's {length} bytes did not come within {self.timeout} s"
            ) from None
        except (ValueError, RecursionError):
            raise modelbroker.InvalidArgumentError("the body is not JSON") from None
        found = asked.get("sentences") if isinstance(asked, dict) else None
        if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
            raise modelbroker.InvalidArgumentError('the body must be {"sentences": ["...", ...]}')
        if not 1 <= len(found) <= _MOST_SENTENCES:
            raise modelbroker.InvalidArgumentError(
                f"{len(found)} sentences: send 1 to {_MOST_SENTENCES} at a time"
            )
        return found

    def _health(self) -> dict[str, object]:
        """Embeddings need no broker once the weights are mapped: its absence is not our illness."""
        try:
            with modelbroker.connect(self.server.endpoint, timeout=1) as found:
                broker: dict[str, object] = {"boot_id": found.status().boot_id}
        except modelbroker.ModelBrokerError as error:
            broker = {"error": {"code": error.code, "message": error.message}}
        return {"pid": os.getpid(), "model": self.server.model.name, "broker": broker}

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Requests are not logged; errors are."""


class Server(http.server.ThreadingHTTPServer):
    """Serves from a socket that is listened on already."""

    daemon_threads = False  # server_close() waits for the requests that run

    def __init__(self, listening: socket.socket, model: Any, endpoint: str | None) -> None:
        super().__init__(listening.getsockname(), Handler, bind_and_activate=False)
        self.socket.close()
        # Every worker wakes up for a connection, one gets it: the others must not wait in accept().
        listening.setblocking(False)
        self.socket = listening
        self.model, self.endpoint = model, endpoint


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


def _stop_with_parent() -> None:
    """Standard input is a pipe that the service holds open as long as it lives."""
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    signal.signal(signal.SIGTERM, _stop)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", type=int, required=True, help="descriptor to accept from")
    parser.add_argument("--endpoint", help="of the broker")
    parser.add_argument("name", help="the model's, as the broker knows it")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    try:
        import torch
        from embedding_model import EmbeddingModel

        torch.set_num_threads(1)  # the workers are the parallelism
        broker = modelbroker.connect(arguments.endpoint)
        model = EmbeddingModel(broker, arguments.name, arguments.folder)
    except modelbroker.ModelBrokerError as error:
        print(f"error: {error.code}: {error.message}", file=sys.stderr)
        return 1
    with Server(socket.socket(fileno=arguments.socket), model, arguments.endpoint) as server:
        print("ready", flush=True)
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
