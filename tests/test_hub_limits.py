"""Servers that never answer, drip, page or send for ever, and where the token goes; against real servers."""

import itertools
import json
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import huggingface_hub
import pytest

from tap_hf import HubError, load_backbone
from tap_hf.hub import pull
from tap_hf.hub_client import download, list_files
from tap_hf.hub_guard import bounded
from tap_hf.models import checkpoint_dir
from tap_hf.recipe import fetch
from tests.commands import assert_a_users_mistake
from tests.conftest import Cli
from tests.hub_server import HubServer

SECONDS = 2.0  # that a command waits in these tests
LISTING = "GET /api/models/org/clinic"
FILE = "GET /org/clinic/resolve"


@pytest.fixture
def slow(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub with one repository; commands wait for it only shortly."""
    monkeypatch.setenv("TAP_HF_HUB_SECONDS", str(SECONDS))
    hub.put("model org/clinic", {"config.json": b"{}" * 100})
    hub.over = threading.Event()  # type: ignore[attr-defined]
    yield hub
    hub.over.set()  # type: ignore[attr-defined]


def never(request: BaseHTTPRequestHandler) -> None:
    request.server.over.wait(60)  # type: ignore[attr-defined]


def drip(request: BaseHTTPRequestHandler) -> None:
    """Send the head of an answer byte by byte, for ever."""
    request.wfile.write(b"HTTP/1.1 200 OK\r\nX-Filler: ")
    while not request.server.over.wait(0.05):  # type: ignore[attr-defined]
        request.wfile.write(b"a")


def start(request: BaseHTTPRequestHandler, size: int | None, status: int = 200, **headers: str) -> None:
    request.send_response(status)
    request.send_header(*(("Transfer-Encoding", "chunked") if size is None else ("Content-Length", str(size))))
    for name, value in {"ETag": '"a"', "X-Repo-Commit": "a" * 40, **headers}.items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()


def send(request: BaseHTTPRequestHandler, content: bytes, **headers: str) -> None:
    start(request, len(content), **headers)
    request.wfile.write(content)


def drip_content(request: BaseHTTPRequestHandler) -> None:
    start(request, 10**6)
    while not request.server.over.wait(0.05):  # type: ignore[attr-defined]
        request.wfile.write(b"a")


def stall(request: BaseHTTPRequestHandler) -> None:
    start(request, 200)
    request.wfile.write(b"[")
    never(request)


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        *itertools.product((LISTING, FILE), (never, drip, drip_content)),
        *itertools.product(("HEAD /org/clinic/resolve",), (never, drip)),
        (LISTING, stall),
        pytest.param(FILE, stall, marks=pytest.mark.slow),  # is resumed a few times
    ],
)
def test_a_slow_server_is_given_up(
    slow: HubServer, request_: str, answer: Callable[[BaseHTTPRequestHandler], None]
) -> None:
    slow.answers[request_] = answer
    begun = time.monotonic()
    with pytest.raises(HubError, match=r"127\.0\.0\.1 is too slow: .*In this command, \d+ answers with .* bytes came"):
        download(list_files("org/clinic", None, None), "config.json", None)
    assert time.monotonic() - begun < 3 * SECONDS


def test_a_command_has_one_limit_of_time(slow: HubServer, cli: Cli, tmp_path: Path) -> None:
    """Each page comes in time, but there is always another."""

    def page(request: BaseHTTPRequestHandler) -> None:
        time.sleep(SECONDS / 10)
        send(request, b"[]", Link=f'<{slow.url}{request.path}>; rel="next"')

    slow.answers["GET .*/tree/"] = page
    begun = time.monotonic()
    done = cli("pull", "org/clinic", "--output-dir", tmp_path / "pulled")
    assert time.monotonic() - begun < 3 * SECONDS
    assert_a_users_mistake(done, "is too slow: GET /api/models/org/clinic/tree/", "TAP_HF_HUB_SECONDS")


@pytest.mark.parametrize("header", ["300", "9" * 5000, "²"])
@pytest.mark.parametrize("request_", [LISTING, "(GET|HEAD) /org/clinic/resolve"])
def test_no_server_is_waited_for_longer_than_the_limit(slow: HubServer, request_: str, header: str) -> None:
    def busy(request: BaseHTTPRequestHandler) -> None:
        start(request, 0, 429, Retry_After=header)

    slow.answers[request_] = busy
    begun = time.monotonic()
    with pytest.raises(HubError, match=r"answered 429 and asks to wait .* s, longer than the 2 s that are left"):
        download(list_files("org/clinic", None, None), "config.json", None)
    assert time.monotonic() - begun < SECONDS


@pytest.mark.parametrize("request_", [LISTING, "GET .*/tree/", FILE])
def test_an_endless_answer_is_cut(hub: HubServer, request_: str) -> None:
    """970 MB of a reply were once read into memory."""
    sent = 0

    def endless(request: BaseHTTPRequestHandler) -> None:
        nonlocal sent
        start(request, None)
        while True:
            request.wfile.write(b"100000\r\n" + b" " * 2**20 + b"\r\n")
            sent += 2**20

    hub.put("model org/clinic", {"config.json": b"{}" * 100})
    hub.answers[request_] = endless
    with pytest.raises(HubError, match=r"sends more than [\d,]+ bytes for .*, which are the most that are expected"):
        download(list_files("org/clinic", None, None), "config.json", None)
    assert sent < 80 * 2**20


def test_a_small_answer_does_not_unpack_to_a_huge_one(hub: HubServer) -> None:
    bomb = zlib.compressobj(wbits=31)
    content = bomb.compress(b"[" + b" " * 2**20 + b"]") + bomb.flush()
    hub.put("model org/clinic", {})
    hub.answers[LISTING] = lambda request: send(request, content, Content_Encoding="gzip")
    with pytest.raises(HubError, match="sends compressed answers, which were not asked for"):
        list_files("org/clinic", None, None)


def test_endless_pages_are_not_followed(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tap_hf.hub_guard._MAX_PAGES", 20)
    hub.put("model org/clinic", {})
    hub.answers["GET .*/tree/"] = lambda request: send(request, b"[]", Link=f'<{hub.url}{request.path}>; rel="next"')
    with pytest.raises(HubError, match="sends a list in more than 20 pages"):
        list_files("org/clinic", None, None)


def test_the_size_of_a_file_is_asked_before_it_is_downloaded(hub: HubServer) -> None:
    fetch.cache_clear()
    hub.put("dataset org/notes", {"notes.csv": b"a,b\n1,2\n"})
    hub.answers["HEAD .*resolve.*"] = lambda request: start(request, 100 * 10**9)
    with pytest.raises(HubError, match=r"offers 100,000,000,000 bytes for .*notes\.csv, expected at most 10,737,4"):
        fetch("hub://datasets/org/notes/notes.csv")
    assert not any(request.startswith("GET") for request in hub.requests)


@pytest.mark.parametrize("content", [b"[" * 10**6, b"null", b"[1]", b'{"sha": 1, "siblings": 5}', b"<html>"])
def test_an_answer_that_is_not_the_hubs_is_one_message(hub: HubServer, content: bytes) -> None:
    for request in (LISTING, "GET .*/tree/"):
        hub.put("model org/clinic", {})
        hub.answers = {request: lambda request: send(request, content)}
        with pytest.raises(HubError, match="org/clinic"):
            list_files("org/clinic", None, None)


# ---------------------------------------------------------------- where the token goes


@pytest.fixture
def other() -> Iterator[HubServer]:
    """Another host: it has another port, and notes which tokens it is given."""
    server = HubServer().start()
    yield server
    server.shutdown()
    server.server_close()


def redirect(target: str, status: int = 302, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    return lambda request: start(request, 0, status, Location=target + request.path, **headers)


def test_the_token_goes_to_no_other_host(hub: HubServer, other: HubServer) -> None:
    hub.put("model org/clinic", {"config.json": b"{}"})
    other.answers["GET .*/tree/"] = lambda request: send(request, b"[]")
    hub.answers["GET .*/tree/"] = lambda request: send(request, b"[]", Link=f'<{other.url}{request.path}>; rel="next"')
    list_files("org/clinic", None, None)
    hub.answers = {"GET .*/tree/": redirect(other.url)}
    list_files("org/clinic", None, None)
    assert len(other.requests) == 2
    assert set(other.given.values()) == {""}
    assert set(hub.given.values()) == {"Bearer hf_alice"}


def test_a_file_of_another_host_is_downloaded_without_the_token(hub: HubServer, other: HubServer) -> None:
    """As the Hub's own storage has them."""
    other.answers["GET .*"] = lambda request: send(request, b"{}")
    hub.put("model org/clinic", {"config.json": b"{}"})
    hub.answers["(HEAD|GET) .*resolve"] = redirect(other.url, X_Linked_Size="2", X_Linked_ETag='"a"')
    assert download(list_files("org/clinic", None, None), "config.json", None).read_bytes() == b"{}"
    assert set(other.given.values()) == {""}


def test_a_way_to_renew_tokens_leads_to_no_other_host(
    hub: HubServer, other: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub's own transfers send the token wherever this header says, outside of Python."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", False)
    hub.put("model org/clinic", {"adapter_model.safetensors": b"weights"})
    content = b"weights"

    def xet(request: BaseHTTPRequestHandler) -> None:
        route = {"X_Xet_Hash": "a" * 64, "X_Xet_Refresh_Route": f"{other.url}/api/token"}
        start(request, len(content), **route)

    hub.answers["HEAD .*resolve"] = xet
    assert download(list_files("org/clinic", None, None), "adapter_model.safetensors", None).read_bytes() == content
    assert other.requests == []


def test_a_base_model_is_loaded_within_the_limits(slow: HubServer) -> None:
    slow.put("model org/base", {file.name: file.read_bytes() for file in checkpoint_dir().iterdir() if file.is_file()})
    slow.answers["GET .*model.safetensors"] = drip_content
    with pytest.raises(HubError, match="is too slow"):
        load_backbone("org/base")


def test_requests_of_others_keep_their_own_limits(slow: HubServer) -> None:
    """A program that also uses `huggingface_hub` itself."""
    with bounded():
        pass

    def late(request: BaseHTTPRequestHandler) -> None:
        time.sleep(SECONDS / 4)
        send(request, json.dumps({"id": "org/clinic"}).encode())

    slow.answers[LISTING] = late
    assert huggingface_hub.HfApi().model_info("org/clinic").id == "org/clinic"
    with pytest.raises(HubError, match="is too slow"):
        pull("org/clinic", Path("unused"))


def test_a_server_that_redirects_in_circles_is_one_message(slow: HubServer, cli: Cli, tmp_path: Path) -> None:
    slow.answers[LISTING] = lambda request: start(request, 0, 307, Location=request.path, Connection="close")
    told = cli("pull", "org/clinic", "--output-dir", tmp_path / "new")
    assert_a_users_mistake(told, "org/clinic: the server's answer is not one of the Hub (TooManyRedirects")


def test_a_recipe_of_the_hub_has_the_size_of_a_recipe(slow: HubServer) -> None:
    """A server that sends fast could send 10 GiB, as of a table, within the time limit."""
    fetch.cache_clear()
    sent: list[int] = []

    def endless(request: BaseHTTPRequestHandler) -> None:
        start(request, None)
        while request.command == "GET":
            request.wfile.write(b"100000\r\n" + b" " * 2**20 + b"\r\n")
            sent.append(2**20)

    slow.answers[FILE] = endless
    slow.answers["HEAD /org/clinic/resolve"] = lambda request: start(request, 10)
    with pytest.raises(HubError, match="2,097,152 bytes"):
        fetch("hub://org/clinic/recipe.yaml")
    assert sum(sent) < 2**26


def test_nothing_else_of_the_hub_is_asked_for(hub: HubServer) -> None:
    """`huggingface_hub` keeps a list of programs as the server sends it, and fails on it from then on."""
    hub.answers["GET /api/[^m]"] = lambda request: send(request, b"7")
    with bounded(), pytest.raises(HubError, match="/api/list-of-programs of the Hub is not needed"):
        huggingface_hub.get_session().get(f"{hub.url}/api/list-of-programs")
    assert hub.requests == []


FILE_ENTRY = {"type": "file", "path": "config.json", "size": 2, "oid": "0" * 40}


@pytest.mark.parametrize("wrong", [{"path": 3}, {"path": None}, {"size": "2"}, {"size": -1}, {"size": None}])
def test_a_list_of_files_has_names_and_sizes(hub: HubServer, cli: Cli, wrong: dict[str, object]) -> None:
    hub.put("model org/clinic", {"config.json": b"{}"})
    hub.answers["GET .*/tree/"] = lambda request: send(request, json.dumps([FILE_ENTRY | wrong]).encode())
    told = cli("predict", "--repo", "org/clinic", "--text", "x")
    assert_a_users_mistake(told, "org/clinic: the server's answer is not one of the Hub: it has a file (")


@pytest.mark.parametrize("commit", ["../../../mine", "main", "", "\x1b[2J", "a" * 5000])
def test_a_commit_is_a_checksum(hub: HubServer, cli: Cli, commit: str) -> None:
    """`huggingface_hub` makes a folder of that name."""
    hub.answers[LISTING] = lambda request: send(request, json.dumps({"id": "org/clinic", "sha": commit}).encode())
    told = cli("predict", "--repo", "org/clinic", "--text", "x")
    assert "Traceback" not in told.err
    assert told.code == 2
