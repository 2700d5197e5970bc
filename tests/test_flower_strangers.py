"""Who is let in: what somebody can do who reaches the server and has its public certificate, but no registered key."""

import http.client
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason='the extra is not installed: pip install "tap_hf[flower]"')

import httpx
from flwr.proto.control_pb2 import ListNodesRequest, ListRunsRequest, RegisterNodeRequest, StartRunRequest
from flwr.proto.fab_pb2 import Fab, GetFabRequest
from flwr.proto.fleet_pb2 import PullMessagesRequest, RegisterNodeFleetRequest
from flwr.proto.message_pb2 import PullObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from benchmarks.flower_federation import Federation, open_federation
from tap_hf.federation.engines.flower import Tls, make_keys, open_server
from tap_hf.federation.engines.flower.project import build_app
from tap_hf.federation.engines.flower.superlink import FlowerError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with open_federation(tmp_path_factory.mktemp("federation"), ["clinic_a"]) as opened:
        yield opened


@pytest.fixture
def control(federation: Federation) -> Iterator[ControlHttpClient]:
    client = ControlHttpClient.from_server_address(federation.address, False, federation.ca.read_bytes(), [])
    yield client
    client.close()


@pytest.fixture
def behind_the_proxy(federation: Federation) -> Iterator[ControlHttpClient]:
    """The same, for somebody on the server's machine."""
    with federation.control() as client:
        yield client


@pytest.fixture
def stranger(federation: Federation) -> Iterator[tuple[FleetHttpClient, bytes]]:
    """A client of the nodes' API with a key of its own, and its public key."""
    private, public = generate_key_pairs()
    signs = NodeAuthHttpInterceptor(private, public)
    client = FleetHttpClient.from_server_address(federation.address, False, str(federation.ca), interceptors=[signs])
    yield client, public_key_to_bytes(public)
    client.close()


def status_of(call: Callable[[], object]) -> int:
    try:
        call()
    except httpx.HTTPStatusError as error:
        return error.response.status_code
    return 200


def test_a_stranger_can_neither_submit_a_run_nor_register_a_key_nor_list_anything(
    control: ControlHttpClient, behind_the_proxy: ControlHttpClient
) -> None:
    assert status_of(lambda: behind_the_proxy.ListNodes(ListNodesRequest())) == 200, "it is the proxy that keeps it out"
    runs = len(behind_the_proxy.ListRuns(ListRunsRequest()).run_dict)
    nodes = len(behind_the_proxy.ListNodes(ListNodesRequest()).nodes_info)
    key = public_key_to_bytes(generate_key_pairs()[1])
    assert status_of(lambda: control.StartRun(StartRunRequest(fab=Fab(content=build_app())))) == 404
    assert status_of(lambda: control.RegisterNode(RegisterNodeRequest(public_key=key, name="stranger"))) == 404
    assert status_of(lambda: control.ListNodes(ListNodesRequest())) == 404
    assert len(behind_the_proxy.ListRuns(ListRunsRequest()).run_dict) == runs
    assert len(behind_the_proxy.ListNodes(ListNodesRequest()).nodes_info) == nodes


def test_a_stranger_gets_no_task_of_the_server(federation: Federation, behind_the_proxy: ControlHttpClient) -> None:
    outside = (federation.address, federation.ca)
    inside = (behind_the_proxy._base_url.removeprefix("https://"), federation.folder / "flower/ca.crt")
    for (address, ca), expected in ((outside, {404}), (inside, {401, 403})):  # inside, it lacks the secret
        client = RuntimeHttpClient.from_server_address(address, False, ca.read_bytes(), [])
        asked = AcquireTaskRequest(supported_task_types=["flwr-serverapp"])
        assert status_of(lambda client=client, asked=asked: client.AcquireTask(asked)) in expected
        client.close()


def test_a_stranger_cannot_register_as_a_node(stranger: tuple[FleetHttpClient, bytes]) -> None:
    client, key = stranger
    assert status_of(lambda: client.RegisterNode(RegisterNodeFleetRequest(public_key=key))) == 404


def test_a_stranger_cannot_read_a_set(
    federation: Federation, stranger: tuple[FleetHttpClient, bytes], behind_the_proxy: ControlHttpClient
) -> None:
    client, _ = stranger
    (node,) = behind_the_proxy.ListNodes(ListNodesRequest()).nodes_info
    run = next(iter(behind_the_proxy.ListRuns(ListRunsRequest()).run_dict))
    site = Node(node_id=node.node_id)
    calls = [
        lambda: client.PullMessages(PullMessagesRequest(node=site)),
        lambda: client.PullObject(PullObjectRequest(node=site, run_id=run, object_id="0" * 64)),
        lambda: client.GetRun(GetRunRequest(node=site, run_id=run)),
        lambda: client.GetFab(GetFabRequest(node=site, run_id=run, hash_str="0" * 64)),
    ]
    assert [status_of(call) for call in calls] == [401] * len(calls)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/..%2fcontrol/start-run",
        "/v1/fleet/pull-messages/../../control/start-run",
        "/v1/control/start-run/../../fleet/pull-messages",
        "//v1//control//start-run",
        "/v1/control/start-run?/v1/fleet/pull-messages",
        "/v1/runtime/acquire-task",
        "/docs",
        "/openapi.json",
        "/",
    ],
)
def test_no_path_leads_around_the_proxy(federation: Federation, behind_the_proxy: ControlHttpClient, path: str) -> None:
    runs = len(behind_the_proxy.ListRuns(ListRunsRequest()).run_dict)
    host, port = federation.address.split(":")
    context = ssl.create_default_context(cafile=federation.ca)
    connection = http.client.HTTPSConnection(host, int(port), context=context)
    body = StartRunRequest(fab=Fab(content=build_app())).SerializeToString()
    connection.request("POST", path, body, {"content-type": PROTOBUF_MEDIA_TYPE, "accept": PROTOBUF_MEDIA_TYPE})
    status = connection.getresponse().status
    connection.close()
    assert status in (400, 401, 404)
    assert len(behind_the_proxy.ListRuns(ListRunsRequest()).run_dict) == runs


def test_a_node_with_a_key_that_is_not_registered_does_not_take_part(federation: Federation, tmp_path: Path) -> None:
    make_keys(tmp_path, ["clinic_a"], ["localhost"])  # another key under a name that is registered
    federation.start("stranger", key=tmp_path / "clinic_a.key")
    log = federation.folder / "stranger/flower-supernode.log"
    deadline = time.monotonic() + 60
    while "could not be activated" not in (text := log.read_text() if log.exists() else "") and "code:" not in text:
        assert time.monotonic() < deadline, text
        time.sleep(0.5)
    assert federation.transport.sites() == {"clinic_a"}
    federation.stop("stranger")


def test_a_server_that_another_authority_has_signed_is_not_spoken_to(federation: Federation, tmp_path: Path) -> None:
    make_keys(tmp_path, ["x"], ["localhost"])
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"https://{federation.address}/", verify=ssl.create_default_context(cafile=tmp_path / "ca.crt"))


def test_without_nginx_no_other_machine_reaches_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tap_hf.federation.engines.flower.superlink.find_nginx", lambda: None)
    make_keys(tmp_path, ["a"], ["localhost"])
    tls = Tls(tmp_path / "server.pem", tmp_path / "server.key", tmp_path / "ca.crt")
    for listen in ("0.0.0.0:8443", "[::]:8443", "fl.example.org:8443"):
        with (
            pytest.raises(FlowerError, match="nginx is not installed"),
            open_server(listen, tls, tmp_path, tmp_path / "flower", anywhere=False, largest=1),
        ):
            pass
    assert not (tmp_path / "flower").exists()
