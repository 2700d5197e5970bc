"""A federation over Flower on this machine, of real processes: nginx, a SuperLink, and a process a site."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from flwr.supercore.control import ControlHttpClient

from tap_hf.federation.engines.flower import make_keys, open_server
from tap_hf.federation.engines.flower.keys import Tls
from tap_hf.federation.engines.flower.process import free_port
from tap_hf.federation.engines.transport import Transport

SITE = Path(__file__).with_name("flower_site.py")
_PATIENCE = 120.0  # seconds, on a busy machine


@dataclass
class Federation:
    """A server, and sites that echo.

    Attributes:
        folder: with `keys`, the server's `flower`, and a folder a site.
        address: that sites reach.
    """

    folder: Path
    address: str
    transport: Transport
    sites: "dict[str, subprocess.Popen[bytes]]" = field(default_factory=dict)

    @property
    def ca(self) -> Path:
        return self.folder / "keys/ca.crt"

    def start(self, site: str, key: Path | None = None, address: str | None = None) -> None:
        arguments = [address or self.address, self.ca, key or self.folder / f"keys/{site}.key", self.folder / site]
        (self.folder / site).mkdir(exist_ok=True)
        with (self.folder / site / "site.log").open("ab") as log:
            self.sites[site] = subprocess.Popen(  # noqa: S603
                [sys.executable, str(SITE), *map(str, arguments)], stdout=log, stderr=subprocess.STDOUT
            )

    def wait_for(self, sites: set[str], patience: float = _PATIENCE) -> None:
        deadline = time.monotonic() + patience
        while self.transport.sites() != sites:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.transport.sites()} are connected; see {self.folder}")
            time.sleep(0.2)

    def stop(self, site: str) -> None:
        process = self.sites.pop(site)
        process.terminate()
        process.wait(30)
        self.wait_for(self.transport.sites() - {site}, patience=20)  # it signs off

    @contextmanager
    def control(self) -> Iterator[ControlHttpClient]:
        """Open the SuperLink's Control API, which only this machine can reach."""
        config = (self.folder / "flower/nginx.conf").read_text()
        address = config.split("upstream superlink {")[1].split("server ")[1].split(";")[0]
        ca = (self.folder / "flower/ca.crt").read_bytes()
        client = ControlHttpClient.from_server_address(address, False, ca, [])
        try:
            yield client
        finally:
            client.close()

    def asked(self, site: str) -> int:
        """Return how many requests have reached a site."""
        return (self.folder / site / "site.log").read_bytes().count(b"asked\n")


@contextmanager
def open_federation(folder: Path, sites: Sequence[str], largest: int = 100_000_000) -> Iterator[Federation]:
    """Open a federation in which the named sites take part."""
    make_keys(folder / "keys", sites, ["localhost", "127.0.0.1"])
    keys = folder / "keys"
    tls, address = Tls(keys / "server.pem", keys / "server.key", keys / "ca.crt"), f"127.0.0.1:{free_port()}"
    with ExitStack() as stack:
        transport = stack.enter_context(
            open_server(address, tls, keys, folder / "flower", anywhere=False, largest=largest)
        )
        federation = Federation(folder, address, transport)
        try:
            for site in sites:
                federation.start(site)
            federation.wait_for(set(sites))
            yield federation
        finally:
            for site in list(federation.sites):
                federation.stop(site)


class Wire:
    """A connection between sites and a server that stalls, is cut and heals.

    Attributes:
        address: where sites reach the server through it.
    """

    def __init__(self, server: str) -> None:
        host, port = server.split(":")
        self._server = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._open, self._flows, self._is_cut = set[socket.socket](), threading.Event(), False
        self._flows.set()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *failure: object) -> None:
        self.cut()
        self._listener.close()

    def stall(self) -> None:
        """Keep all connections open, and carry nothing."""
        self._flows.clear()

    def cut(self) -> None:
        """End all connections, and refuse new ones."""
        self._is_cut = True
        for end in list(self._open):
            end.close()
        self._flows.set()

    def heal(self) -> None:
        """Carry everything again."""
        self._is_cut = False
        self._flows.set()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                if self._is_cut:
                    near.close()
                    continue
                far = socket.create_connection(self._server)
            except OSError:
                return
            self._open |= {near, far}
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                self._flows.wait()
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
            self._open.discard(end)
