"""Becoming one of a cluster, as far as that can be looked at without one."""

from __future__ import annotations

import os
import signal
import socket
import sys

import pytest

from lifedeploy.errors import EngineError
from lifedeploy.scoring import cluster


@pytest.fixture
def port():
    """One that somebody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "localhost:{}"])
def test_a_cluster_that_is_there_is_joined_and_one_that_is_not_is_told_at_once(address, port):
    cluster._require_answer(address.format(port))
    with socket.create_server(("127.0.0.1", 0)) as server:
        nobody = address.format(server.getsockname()[1])
    with pytest.raises(EngineError) as refused:
        cluster._require_answer(nobody)
    assert refused.value.message == f"Ray cannot be joined at {nobody}: Connection refused"
    assert refused.value.hint == "RAY_ADDRESS says where"


@pytest.mark.parametrize("address", ["", "auto", "local"])
def test_where_ray_looks_itself_nobody_is_asked(address):
    cluster._require_answer(address)


def test_a_port_that_cannot_be_is_told():
    with pytest.raises(EngineError, match=r"Ray cannot be joined at 127\.0\.0\.1:99999: "):
        cluster._require_answer("127.0.0.1:99999")


def test_signals_are_answered_by_whom_they_were_answered():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with cluster._same_handlers():
        for number in before:
            signal.signal(number, signal.SIG_IGN)
    assert {number: signal.getsignal(number) for number in before} == before


def test_nothing_is_said_meanwhile_and_everything_afterwards(capfd):
    with pytest.raises(ValueError, match="no"), cluster._without_stderr():
        os.write(2, b"of C++")
        raise ValueError("no")
    os.write(2, b"of ours")
    sys.stderr.flush()
    assert capfd.readouterr().err == "of ours"


def test_what_ray_says_is_the_error_of_a_worker_without_colours():
    wrapped = RuntimeError("\x1b[36mray::Worker()\x1b[39m a page of it")
    assert cluster.said(wrapped) == "ray::Worker() a page of it"
    wrapped.cause = ValueError("the \x1b[31mreason\x1b[0m")
    assert cluster.said(wrapped) == "the reason"
