"""Threads that hand in their files at once."""

from __future__ import annotations

import threading

import pytest

from modelbroker._deadline import Deadline
from modelbroker._session import Session


def meet_after_offers(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    """So many threads' files are all handed in, or refused, before a request names one of them."""
    offer, barrier = Session.offer, threading.Barrier(threads)

    def meet(session: Session, descriptor: int, deadline: Deadline) -> str:
        try:
            return offer(session, descriptor, deadline)
        finally:
            barrier.wait(60)

    monkeypatch.setattr(Session, "offer", meet)
