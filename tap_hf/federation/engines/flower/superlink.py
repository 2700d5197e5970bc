"""The server's side: a SuperLink that knows the sites' keys, and this process as the ServerApp of a run in it."""

import ipaddress
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import certifi
import httpx
from flwr.common.constant import SubStatus
from flwr.common.serde import context_from_proto, run_from_proto
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, StartRunRequest, UnregisterNodeRequest
from flwr.proto.fab_pb2 import Fab
from flwr.proto.runtime_pb2 import PullTaskInputRequest, PushTaskOutputRequest
from flwr.serverapp import Grid
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from tap_hf.atomic_files import private_files, write_atomically
from tap_hf.errors import TapError
from tap_hf.federation.engines.flower.exchange import GridTransport
from tap_hf.federation.engines.flower.keys import (
    CA_CERTIFICATE,
    SERVER_CERTIFICATE,
    SERVER_KEY,
    Tls,
    loopback_certificate,
    read_site_keys,
)
from tap_hf.federation.engines.flower.nginx import find_nginx, nginx_command
from tap_hf.federation.engines.flower.process import ChildProcess, free_port
from tap_hf.federation.engines.flower.project import build_app
from tap_hf.federation.engines.flower.runtime import RETRY, Runtime, keep_alive, make_secret
from tap_hf.federation.engines.transport import Transport

logger = logging.getLogger(__name__)

_PATIENCE = 60.0  # seconds for a SuperLink to start
_POLL = 0.1


class FlowerError(TapError):
    """Flower's processes do not do what they are asked."""


@dataclass(frozen=True)
class SuperLink:
    """A SuperLink on this machine, whose Fleet, Control and Runtime APIs share one address.

    Attributes:
        address: on the loopback interface.
        certificate: of the authority that signed its certificate, as PEM.
        secret: of processes that ask it for tasks.
    """

    address: str
    certificate: bytes
    secret: bytes


@contextmanager
def open_server(listen: str, tls: Tls, sites: Path, folder: Path, anywhere: bool, largest: int) -> Iterator[Transport]:
    """Run a SuperLink that sites reach at `listen`, and a run in it.

    Args:
        listen: host and port. nginx listens there, and the SuperLink behind it; without nginx, the SuperLink itself.
        tls: the server's certificate.
        sites: folder with each site's public key, `SITE.pub`; others are not let in.
        folder: for Flower's database, secret and logs; a later server with the same sites may go on with it.
        anywhere: lets a SuperLink listen where others than this machine reach all of its API.
        largest: bytes of a reply that is taken.

    Raises:
        FlowerError: if a SuperLink would be reached from outside without nginx, or does not start.
    """
    host, port = split_address(listen)
    public_keys = read_site_keys(sites)
    if find_nginx() is None and not _is_loopback(host) and not anywhere:
        raise FlowerError(
            f"Got --listen {listen}, and nginx is not installed. Without nginx before it, whoever reaches Flower's "
            "SuperLink can submit code and register keys. Install nginx (apt install nginx), or listen on 127.0.0.1, "
            "or give --insecure-i-know in a network that you trust as a whole."
        )
    with ExitStack() as stack:
        if find_nginx() is None:
            superlink = stack.enter_context(run_superlink(folder, tls, host, port))
        else:
            superlink = stack.enter_context(run_superlink(folder, None, "127.0.0.1", free_port()))
            proxy = ChildProcess(nginx_command(folder, listen, tls, superlink.address), folder)
            stack.callback(proxy.stop)
        yield stack.enter_context(open_run(superlink, public_keys, largest))


@contextmanager
def run_superlink(folder: Path, tls: Tls | None, host: str, port: int) -> Iterator[SuperLink]:
    """Run a SuperLink with its database in a folder; it is started again if it ends, and goes on where it was.

    Args:
        folder: is created.
        tls: its certificate; without, it gets one of its own for this machine.
        host: it listens on.
        port: it listens on.
    """
    with private_files():
        folder.mkdir(parents=True, exist_ok=True)
        if tls is None:
            for name, content in loopback_certificate().items():
                write_atomically(folder / name, content)
            tls = Tls(folder / SERVER_CERTIFICATE, folder / SERVER_KEY, folder / CA_CERTIFICATE)
    secret = make_secret(folder / "secret")
    authority = tls.authority or Path(certifi.where())
    command = ["flower-superlink", "--host", host, "--port", str(port), "--isolation", "process"]
    command += ["--ssl-ca-certfile", str(authority), "--ssl-certfile", str(tls.certificate)]
    command += ["--ssl-keyfile", str(tls.key), "--superexec-auth-secret-file", str(folder / "secret")]
    command += ["--enable-supernode-auth", "--database", str(folder / "state.db")]
    command += ["--disable-runtime-dependency-installation"]
    process = ChildProcess(command, folder)
    try:
        reached = host if _is_loopback(host) else "localhost"
        yield SuperLink(f"{reached}:{port}", authority.read_bytes(), secret)
    finally:
        process.stop()


@contextmanager
def open_run(superlink: SuperLink, sites: Mapping[str, bytes], largest: int) -> Iterator[Transport]:
    """Register the sites' keys, and start a run whose ServerApp is this process."""
    version = RuntimeVersionHttpInterceptor(component_name="flwr-cli")
    control = ControlHttpClient.from_server_address(superlink.address, False, superlink.certificate, [version])
    with ExitStack() as stack:
        stack.callback(control.close)
        _await_start(control)
        _register(control, sites)
        run = _Run(superlink, control)
        stack.callback(run.close)
        yield GridTransport(run.open(), largest, run.open)


class _Run:
    """A run of the SuperLink, and another when Flower has given it up."""

    def __init__(self, superlink: SuperLink, control: ControlHttpClient) -> None:
        self._control, self._superlink = control, superlink
        self._open = ExitStack()

    def open(self) -> Grid:
        """Start a run, with this process as its ServerApp."""
        self.close()
        link = self._superlink
        runtime = Runtime(link.address, link.secret, link.certificate, "flwr-serverapp")
        run_id = self._control.StartRun(StartRunRequest(fab=Fab(content=build_app()))).run_id
        if not run_id:
            raise FlowerError("The SuperLink starts no run; see flower-superlink.log.")
        token = _acquire(runtime, run_id)
        client = runtime.client(token)
        given = client.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, given.run.run_id
        TaskIdentity.node_id = context_from_proto(given.context).node_id
        grid = HttpGrid(link.address, False, link.certificate, token=token)
        grid._retry_invoker = RETRY
        grid.set_run(run_from_proto(given.run))
        for step in (runtime.close, client.close, grid.close, lambda: _finish(client), keep_alive(client).stop):
            self._open.callback(step)
        return grid

    def close(self) -> None:
        """End the run."""
        self._open.close()


def _acquire(runtime: Runtime, run_id: int) -> str:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        task = runtime.acquire()
        if task is not None and task[0].run_id == run_id:  # others are left over from a server that was killed
            return task[1]
        if task is None:
            time.sleep(_POLL)
    raise FlowerError(f"The SuperLink gives out no task within {_PATIENCE:.0f} s; see flower-superlink.log.")


def _finish(client: RuntimeHttpClient) -> None:
    with suppress(httpx.HTTPError):  # given up by Flower, or the SuperLink is gone
        client.PushTaskOutput(PushTaskOutputRequest(sub_status=SubStatus.COMPLETED))


def _await_start(control: ControlHttpClient) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            control.ListNodes(ListNodesRequest())
            return
        except httpx.TransportError as error:
            if time.monotonic() > deadline:
                text = f"The SuperLink has not started within {_PATIENCE:.0f} s; see flower-superlink.log."
                raise FlowerError(text) from error
        time.sleep(_POLL)


def _register(control: ControlHttpClient, sites: Mapping[str, bytes]) -> None:
    """Make the registered nodes those of `sites`: a key that is no longer there is let in no more."""
    known = dict[str, bytes]()
    for node in control.ListNodes(ListNodesRequest()).nodes_info:
        if node.status == "unregistered":
            continue
        if sites.get(node.name) == node.public_key:
            known[node.name] = node.public_key
        else:
            control.UnregisterNode(UnregisterNodeRequest(node_id=node.node_id))
    for site in sites.keys() - known.keys():
        control.RegisterNode(RegisterNodeRequest(public_key=sites[site], name=site))


def split_address(text: str) -> tuple[str, int]:
    """Return host and port of an address such as 127.0.0.1:8443 or [::1]:8443.

    Raises:
        FlowerError: if it is none.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise FlowerError(f"Got the address {text!r}; expected HOST:PORT, such as 127.0.0.1:8443.")
    return host.strip("[]"), int(port)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
