"""A federation over Flower on this machine, of real processes: nginx, a SuperLink, and a process a site."""

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tap_hf.federation import Transport
from tap_hf.federation.engines.flower import Tls, make_keys, open_server
from tap_hf.federation.engines.flower.process import free_port

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
            assert time.monotonic() < deadline, f"{self.transport.sites()} are connected; see {self.folder}"
            time.sleep(0.2)

    def stop(self, site: str) -> None:
        process = self.sites.pop(site)
        process.terminate()
        process.wait(30)


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
