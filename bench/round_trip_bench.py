"""P6: the shortest request and its answer: how long, how many a second, and while others load.

Beside a bare ZeroMQ echo (DEALER to ROUTER over ipc, in C++), asked in C++ and by pyzmq and
msgpack. Requests a second: 8 clients that wait for each answer, the broker on one core and they on
the others.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import harness
import sources
from figures import at_least, within_times

_REQUEST = "150"  # bytes, about ours
_CLIENTS = 8
_QUANTILES = (("p50", 0.5), ("p99", 0.99))
# Many short rounds: whatever else the machine does, its host above all, is in each long one's p99.
_ROUNDS_PER_RUN = 4


def quantiles(run: harness.Run, *command: str) -> dict[str, float]:
    """Of one round of samples, in seconds."""
    taken = run.samples(*command)[:, 1]
    return {name: harness.quantile(taken, share) / 1e9 for name, share in _QUANTILES}


def best_quantiles(
    runs: int, ways: dict[str, Callable[[], dict[str, float]]]
) -> dict[str, dict[str, float]]:
    """The least of each quantile, in turns."""
    best = {way: {name: float("inf") for name, _ in _QUANTILES} for way in ways}
    for _ in range(runs):
        for way, once in ways.items():
            found = once()
            best[way] = {name: min(best[way][name], found[name]) for name, _ in _QUANTILES}
    return best


def alone(run: harness.Run, ask: str, ping: str, amount: str, count: str) -> None:
    """Nothing else goes on."""
    rounds = run.runs * _ROUNDS_PER_RUN
    best = best_quantiles(
        rounds,
        {
            "cpp": lambda: quantiles(run, "client_bench", "ping", ping, amount),
            "echo": lambda: quantiles(run, "zmq_echo_bench", "ask", ask, _REQUEST, amount),
            "python": lambda: run.said("ping", ping, count),
            "pyzmq": lambda: run.said("echo", ask, count),
        },
    )
    for name, _ in _QUANTILES:
        for ours, theirs, words, most in (
            ("cpp", "echo", "bare C++ echo", 1.3),
            ("python", "pyzmq", "pyzmq, msgpack echo", 1.5),
        ):
            run.figures.add(
                f"round_trip_{ours}_{name}",
                best[ours][name],
                words,
                best[theirs][name],
                runs=rounds,
                goal=within_times(most),
            )


def beside_others(run: harness.Run, broker: harness.Broker, ask: str) -> None:
    """While a file is loaded and unloaded over and over, and 50 attaches a second are served."""
    path = run.source()
    small = run.folder / "held.safetensors"
    sources.write_sparse(small, 10**7)
    broker.load(small, "held")
    harness.read_through(path)
    # Long enough that each round meets loads and unloads.
    amount = "4s" if run.whole else "1s"
    ours = {"cpp": lambda: quantiles(run, "client_bench", "ping", broker.endpoint, amount)}
    quiet = best_quantiles(run.runs, ours)["cpp"]["p99"]
    others = [
        run.worker("churn", str(path), broker.endpoint),
        run.worker("attach_often", "held", broker.endpoint),
    ]
    for other in others:
        other.hear()
    theirs = {"echo": lambda: quantiles(run, "zmq_echo_bench", "ask", ask, _REQUEST, amount)}
    best = best_quantiles(run.runs, ours | theirs)
    for other in others:
        other.prompt()
        if other.hear()["rounds"] == 0:
            raise RuntimeError("nothing went on beside")
        other.end()
    busy = best["cpp"]["p99"]
    run.figures.add(
        "round_trip_cpp_p99_beside_loads",
        busy,
        "ours alone",
        quiet,
        runs=run.runs,
        goal=within_times(1.2),
        applies=run.whole,
    )
    run.figures.add(
        "round_trip_cpp_p99_beside_loads",
        busy,
        "bare C++ echo beside them",
        best["echo"]["p99"],
        runs=run.runs,
    )


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def throughput(run: harness.Run, amount: str) -> None:
    """Requests a second of 8 clients."""
    cores = sorted(os.sched_getaffinity(0))
    one, others = {cores[0]}, set(cores[1:]) or set(cores)
    broker = run.broker(cores=one)
    ask = run.echo(one)
    rest = (str(_CLIENTS), amount)

    def rate(*command: str) -> float:
        os.sched_setaffinity(0, others)  # inherited
        try:
            requests, seconds = run.tool(*command).split()
        finally:
            os.sched_setaffinity(0, cores)
        return int(requests) / float(seconds)

    best, echo, busy = 0.0, 0.0, float("inf")
    for _ in range(run.runs):
        before = cpu_seconds(broker.pid)
        now = rate("client_bench", "clients", broker.endpoint, *rest)
        used = (cpu_seconds(broker.pid) - before) / (now * float(amount[:-1]))
        best, busy = max(best, now), min(busy, used)
        echo = max(echo, rate("zmq_echo_bench", "clients", ask, _REQUEST, *rest))
    run.figures.add(
        f"requests_of_{_CLIENTS}_clients",
        best,
        "bare C++ echo",
        echo,
        runs=run.runs,
        unit="1/s",
        more_is_better=True,
        goal=at_least(20000, ">= 20,000 a second"),
    )
    run.figures.add(
        "requests_per_second_of_broker_cpu",
        1 / busy,
        "bare C++ echo's requests a second",
        echo,
        runs=run.runs,
        unit="1/s",
        more_is_better=True,
    )
    broker.stop()


def measure(run: harness.Run) -> None:
    quick = run.arguments.size is not None
    amount, round_amount, count = ("0.5s", "0.1s", "500") if quick else ("2s", "0.5s", "5000")
    broker = run.broker()
    ask = run.echo()
    alone(run, ask, broker.endpoint, round_amount, count)
    throughput(run, amount)
    run.describe(broker)
    beside_others(run, broker, ask)


if __name__ == "__main__":
    sys.exit(harness.main("round_trip", "P6", __doc__, measure))
