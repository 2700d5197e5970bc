"""Bytes over Flower, between real processes behind nginx."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason='the extra is not installed: pip install "tap_hf[flower]"')

from benchmarks.flower_federation import Federation, open_federation
from tap_hf.federation import Failure

pytestmark = pytest.mark.slow
SITES = ["clinic_a", "clinic_b", "lab"]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with open_federation(tmp_path_factory.mktemp("federation"), SITES, largest=10_000_000) as opened:
        yield opened


def answers(federation: Federation, requests: dict[str, bytes], timeout: float = 60) -> dict[str, bytes | Failure]:
    replies = list(federation.transport.exchange(requests, timeout))
    assert sorted(site for site, _ in replies) == sorted(requests), "each site is yielded once"
    return dict(replies)


def process_ids(federation: Federation) -> dict[str, bytes]:
    return {site: str(process.pid).encode() for site, process in federation.sites.items()}


@pytest.mark.parametrize("size", [0, 1, 6_000_000])
def test_each_site_answers_its_own_request_whole(federation: Federation, size: int) -> None:
    requests = {site: site.encode() * (size // 5) + bytes(size % 5) for site in SITES}
    ids = process_ids(federation)
    assert answers(federation, requests) == {site: ids[site] + b" " + requests[site] for site in SITES}


def test_one_process_answers_all_requests_of_a_site(federation: Federation) -> None:
    first, second = (answers(federation, {"lab": b"which"}) for _ in range(2))
    assert first == second == {"lab": process_ids(federation)["lab"] + b" which"}


def test_what_a_handler_raises_stays_at_the_site(federation: Federation) -> None:
    assert answers(federation, {"lab": b"fail patient 17", "clinic_a": b"x"})["lab"] == Failure("error")
    assert b"SECRET patient 17" in (federation.folder / "lab/site.log").read_bytes()
    at_the_server = [path for path in (federation.folder / "flower").rglob("*") if path.is_file()]
    assert not [path for path in at_the_server if b"patient 17" in path.read_bytes().replace(b"fail patient 17", b"")]


def test_a_late_reply_is_dropped(federation: Federation) -> None:
    start = time.monotonic()
    got = answers(federation, {"lab": b"sleep 15", "clinic_a": b"on time"}, timeout=10)
    assert (got["lab"], time.monotonic() - start < 14) == (Failure("late"), True)
    assert got["clinic_a"] == process_ids(federation)["clinic_a"] + b" on time"
    assert answers(federation, {"lab": b"again"}) == {"lab": process_ids(federation)["lab"] + b" again"}


def test_who_is_not_connected_is_gone_at_once(federation: Federation) -> None:
    start = time.monotonic()
    assert answers(federation, {"elsewhere": b"x"}) == {"elsewhere": Failure("gone")}
    assert time.monotonic() - start < 3


def test_a_reply_that_is_too_large_is_not_taken(federation: Federation) -> None:
    assert answers(federation, {"lab": b"large 10000001"}) == {"lab": Failure("too_large")}
    assert answers(federation, {"lab": b"large 10000000"}) == {"lab": bytes(10_000_000)}


def test_a_site_that_stops_signs_off_and_may_come_back(federation: Federation, tmp_path: Path) -> None:
    federation.stop("lab")
    federation.wait_for({"clinic_a", "clinic_b"}, patience=20)
    federation.start("lab")
    federation.wait_for(set(SITES))
    assert answers(federation, {"lab": b"back"}) == {"lab": process_ids(federation)["lab"] + b" back"}
