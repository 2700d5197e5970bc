"""Processes of a federation over Flower that die while a request is on its way, and a network that fails."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

pytest.importorskip("flwr", reason='the extra is not installed: pip install "tap_hf[flower]"')

from flwr.proto.control_pb2 import ListRunsRequest, StopRunRequest

from benchmarks.flower_federation import Federation, Wire, open_federation
from tap_hf.federation import Failure

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with open_federation(tmp_path_factory.mktemp("federation"), ["a", "b"]) as opened:
        yield opened


def exchange_during(
    federation: Federation, fault: Callable[[], object], request: bytes = b"sleep 4", timeout: float = 150
) -> dict[str, bytes | Failure]:
    """Return the replies to a request; the fault comes when the sites have it."""
    before = [federation.asked(site) for site in "ab"]

    def fail() -> None:
        while any(federation.asked(site) == count for site, count in zip("ab", before, strict=True)):
            time.sleep(0.1)
        fault()

    failing = threading.Thread(target=fail, daemon=True)
    failing.start()
    got = dict(federation.transport.exchange({"a": request, "b": request}, timeout))
    failing.join()
    return got


def kill(parent: int, command: str) -> None:
    (found,) = [p for p in psutil.Process(parent).children(recursive=True) if command in " ".join(p.cmdline()[:6])][:1]
    os.kill(found.pid, signal.SIGKILL)


def is_answered(federation: Federation, site: str, answer: bytes | Failure) -> bool:
    return answer == str(federation.sites[site].pid).encode() + b" sleep 4"


def test_a_superlink_that_is_killed_is_started_again_and_loses_nothing(federation: Federation) -> None:
    got = exchange_during(federation, lambda: kill(os.getpid(), "flower-superlink"))
    assert all(is_answered(federation, site, answer) for site, answer in got.items()), got


def test_a_proxy_that_is_killed_is_started_again_and_loses_nothing(federation: Federation) -> None:
    got = exchange_during(federation, lambda: kill(os.getpid(), "nginx"))
    assert all(is_answered(federation, site, answer) for site, answer in got.items()), got


def test_a_site_that_is_killed_is_gone_at_once_and_the_others_are_not(federation: Federation) -> None:
    start = time.monotonic()
    got = exchange_during(federation, lambda: federation.sites["a"].kill(), b"sleep 10")
    assert got["a"] == Failure("gone")
    assert isinstance(got["b"], bytes)
    assert time.monotonic() - start < 40
    federation.sites.pop("a").wait()
    federation.start("a")
    federation.wait_for({"a", "b"}, patience=60)
    assert is_answered(federation, "a", dict(federation.transport.exchange({"a": b"sleep 4"}, 60))["a"])


def test_a_supernode_that_is_killed_is_gone_until_the_server_has_noticed(federation: Federation) -> None:
    start = time.monotonic()
    got = exchange_during(federation, lambda: kill(federation.sites["a"].pid, "flower-supernode"))
    assert got["a"] == Failure("gone")
    assert is_answered(federation, "b", got["b"])
    assert time.monotonic() - start < 90
    federation.wait_for({"a", "b"}, patience=60)
    assert is_answered(federation, "a", dict(federation.transport.exchange({"a": b"sleep 4"}, 60))["a"])


def test_a_site_whose_process_is_stopped_is_late_and_comes_back(federation: Federation) -> None:
    got = exchange_during(federation, lambda: federation.sites["a"].send_signal(signal.SIGSTOP), timeout=12)
    federation.sites["a"].send_signal(signal.SIGCONT)
    assert got["a"] == Failure("late")
    assert is_answered(federation, "a", dict(federation.transport.exchange({"a": b"sleep 4"}, 60))["a"])


@pytest.fixture
def wire(federation: Federation) -> Iterator[Wire]:
    """The connection of site a."""
    with Wire(federation.address) as wire:
        federation.stop("a")
        federation.start("a", address=wire.address)
        federation.wait_for({"a", "b"})
        yield wire
        federation.stop("a")
    federation.start("a")
    federation.wait_for({"a", "b"})


def test_a_network_that_fails_for_a_while_loses_no_site(federation: Federation, wire: Wire) -> None:
    for fail in (wire.stall, wire.cut):

        def fail_for_a_while(fail: Callable[[], None] = fail) -> None:
            fail()
            threading.Timer(12, wire.heal).start()

        got = exchange_during(federation, fail_for_a_while)
        assert is_answered(federation, "b", got["b"])
        assert is_answered(federation, "a", got["a"]) or (fail, got["a"]) == (wire.cut, Failure("gone"))
    federation.wait_for({"a", "b"}, patience=90)
    assert is_answered(federation, "a", dict(federation.transport.exchange({"a": b"sleep 4"}, 60))["a"])


def test_a_request_that_never_comes_whole_does_not_hold_up_the_next(federation: Federation, wire: Wire) -> None:
    """Such as one of a server that is started again: its SuperNode has announced it, and forgets it."""
    log, large = federation.folder / "a/flower-supernode.log", os.urandom(60_000_000)
    before = log.read_bytes().count(b"Receiving")

    def fail() -> None:
        while log.read_bytes().count(b"Receiving") == before:
            time.sleep(0.02)
        wire.stall()
        with federation.control() as control:
            (run,) = (r for r in control.ListRuns(ListRunsRequest()).run_dict.values() if r.status.status == "running")
            control.StopRun(StopRunRequest(run_id=run.run_id))
        wire.heal()

    failing = threading.Thread(target=fail, daemon=True)
    failing.start()
    got = dict(federation.transport.exchange({"a": large}, 100))
    failing.join()
    assert got["a"] == str(federation.sites["a"].pid).encode() + b" " + large


def test_a_run_that_flower_has_ended_is_followed_by_another(federation: Federation) -> None:
    """Which it does if it does not hear from the server's process for a minute, such as from a laptop that sleeps."""
    with federation.control() as control:
        (run,) = (r for r in control.ListRuns(ListRunsRequest()).run_dict.values() if r.status.status == "running")
        runs = len(control.ListRuns(ListRunsRequest()).run_dict)
        got = exchange_during(federation, lambda: control.StopRun(StopRunRequest(run_id=run.run_id)))
        assert all(is_answered(federation, site, answer) for site, answer in got.items()), got
        assert len(control.ListRuns(ListRunsRequest()).run_dict) == runs + 1


def test_a_second_site_with_the_same_key_does_not_disturb_the_first(federation: Federation) -> None:
    federation.start("twin", key=federation.folder / "keys/a.key")
    log = federation.folder / "twin/flower-supernode.log"
    deadline = time.monotonic() + 60
    while not (log.exists() and "Failed to initialize the connection" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    got = dict(federation.transport.exchange({"a": b"sleep 4"}, 60))
    assert is_answered(federation, "a", got["a"])
    federation.stop("twin")
    assert is_answered(federation, "a", dict(federation.transport.exchange({"a": b"sleep 4"}, 60))["a"])
