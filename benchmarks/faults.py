"""Faults of a federation over Flower, done to real processes, and what is left compared with a run without any.

A server and three sites (four pairs, both stages) run as `tap-hf server` and `tap-hf site` do for users, behind nginx,
with TLS and a key for each site. A process that has died is started again a second later, as systemd would. After each
round comes the next fault. At the end the server's sets, every site's sets, all decisions and all results must be
equal, bit for bit, to those of the same recipe in one process: a site that is back within `federation.round_timeout`
answers the same request again, so that nothing is lost, and nothing counts twice.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import easy_vqa
import psutil
import yaml

import tap_hf
from benchmarks.flower_federation import Wire
from tap_hf import RunDirectory, load_recipe, read_events
from tap_hf.benchmark.tables import TextTable, markdown_table
from tap_hf.federation.engines.flower import make_keys
from tap_hf.federation.engines.flower.process import free_port
from tap_hf.models import equal
from tap_hf.records import read_record
from tests.sites import federation_of

CLIENTS = {"north": ["chapter", "section"], "south": ["digit"], "west": ["digit", "vqa"]}
VICTIM = "west"
_PATIENCE = 400.0  # seconds for a round, on a busy machine


@dataclass
class Parties:
    """A server and its sites, each a process of its own.

    Attributes:
        folder: with `keys`, and `runs` of each party.
        recipe: that all hold.
        sites: the `site.yaml` of each.
    """

    folder: Path
    recipe: Path
    sites: dict[str, Path]
    processes: "dict[str, subprocess.Popen[bytes]]" = field(default_factory=dict)
    _stopping: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        make_keys(self.folder / "keys", list(self.sites), ["localhost", "127.0.0.1"])
        self.address = f"127.0.0.1:{free_port()}"
        self.wire = Wire(self.address)

    def start(self, party: str) -> None:
        keys = self.folder / "keys"
        command = [sys.executable, "-m", "tap_hf"]
        if party == "server":
            command += ["server", str(self.recipe), "--listen", self.address, "--tls-cert", str(keys / "server.pem")]
            command += ["--tls-key", str(keys / "server.key"), "--sites", str(keys)]
        else:
            address = self.wire.address if party == VICTIM else self.address
            command += ["site", str(self.recipe), "--client", party, "--server", address]
            command += ["--data", str(self.sites[party]), "--key", str(keys / f"{party}.key")]
        command += ["--ca", str(keys / "ca.crt"), "--resume", str(self.run_of(party))]
        with (self.folder / f"{party}.log").open("ab") as log:
            self.processes[party] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)  # noqa: S603

    def run_of(self, party: str) -> Path:
        return self.folder / "runs" / party

    def rounds(self) -> int:
        """Return how many rounds the server has finished."""
        path = self.run_of("server") / "events.jsonl"
        return path.read_bytes().count(b'"event": "round_finished"') if path.exists() else 0

    def watch(self) -> None:
        """Start again what has died, until `stop`."""
        while not self._stopping.wait(1):
            for party, process in list(self.processes.items()):
                if process.poll() not in (None, 0):
                    self.start(party)

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                raise SystemExit(f"{what} takes more than {_PATIENCE:.0f} s; see {self.folder}")
            time.sleep(0.2)

    def stop(self) -> None:
        self._stopping.set()
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.wait(30)

    def kill(self, party: str, command: str | None = None) -> None:
        """Kill a party's own process, or one of those that it has started."""
        process = psutil.Process(self.processes[party].pid)
        if command is not None:
            process = next(p for p in process.children(recursive=True) if command in " ".join(p.cmdline()[:6]))
        os.kill(process.pid, signal.SIGKILL)


@dataclass(frozen=True)
class Fault:
    """What is done to one of the processes.

    Attributes:
        says: what the log of a party has of it, in the party of this name.
    """

    name: str
    strike: Callable[[Parties], None]
    says: str


def _stall(parties: Parties) -> None:
    parties.wire.stall()
    threading.Timer(20, parties.wire.heal).start()


def _cut(parties: Parties) -> None:
    parties.wire.cut()
    threading.Timer(10, parties.wire.heal).start()


def _pause(parties: Parties) -> None:
    os.kill(parties.processes[VICTIM].pid, signal.SIGSTOP)
    threading.Timer(15, os.kill, (parties.processes[VICTIM].pid, signal.SIGCONT)).start()


FAULTS = (
    Fault("SIGKILL of a site's process", lambda parties: parties.kill(VICTIM), VICTIM),
    Fault("SIGKILL of the SuperLink", lambda parties: parties.kill("server", "flower-superlink"), "server"),
    Fault("SIGKILL of the server's process", lambda parties: parties.kill("server"), "server"),
    Fault("SIGKILL of nginx", lambda parties: parties.kill("server", "nginx"), "server"),
    Fault("network stalls for 20 s", _stall, VICTIM),
    Fault("a site's process is stopped for 15 s", _pause, VICTIM),
    Fault("network is cut for 10 s", _cut, VICTIM),
    Fault("SIGKILL of a SuperNode", lambda parties: parties.kill(VICTIM, "flower-supernode"), VICTIM),
)
SHORT = (0, 1, 2)
"""Those of `FAULTS` that a test does."""


@dataclass(frozen=True)
class Outcome:
    """A fault, and the seconds from it until the round that it struck was finished."""

    fault: str
    seconds: float
    said: str


def share_everything(recipe: Path, sites: Mapping[str, Path]) -> None:
    """Let the sites share all that they may, and find the pictures that their rows name."""
    values = yaml.safe_load(recipe.read_text())
    pictures = {"image_folder": str(Path(easy_vqa.__file__).parent)}
    for client, site in sites.items():
        own = values["clients"][client]["datasets"]
        own |= {name: dataset | pictures for name, dataset in own.items() if name == "easy_vqa"}
        shared = {"privacy": {"share": ["decisions", "losses", "metrics", "costs"]}}
        site.write_text(yaml.safe_dump(yaml.safe_load(site.read_text()) | {"datasets": own} | shared))
    recipe.write_text(yaml.safe_dump(values, sort_keys=False))


def run(folder: Path, faults: Sequence[Fault]) -> tuple[list[Outcome], list[str]]:
    """Run a federation in which the faults come one after the other; return them, and what differs at the end."""
    rounds = len(faults) + 2
    recipe, sites = federation_of(folder, CLIENTS, rows=96, federation={"rounds": rounds, "round_timeout": _PATIENCE})
    share_everything(recipe, sites)
    tap_hf.run(load_recipe(recipe), folder / "reference")
    parties, outcomes = Parties(folder, recipe, sites), list[Outcome]()
    with parties.wire:
        try:
            for party in ("server", *CLIENTS):
                parties.start(party)
            threading.Thread(target=parties.watch, daemon=True).start()
            for number, fault in enumerate(faults, start=1):
                parties.wait_for(lambda number=number: parties.rounds() >= number, f"round {number}")  # type: ignore[misc]
                time.sleep(2)  # the next round is on its way
                log, start = folder / f"{fault.says}.log", time.monotonic()
                before = len(log.read_bytes())
                fault.strike(parties)
                parties.wait_for(lambda number=number: parties.rounds() > number, f"the round of {fault.name}")  # type: ignore[misc]
                said = log.read_bytes()[before:].decode(errors="replace").strip().splitlines()
                outcomes.append(Outcome(fault.name, time.monotonic() - start, said[0][:100] if said else ""))
                print(f"{outcomes[-1]}", file=sys.stderr)
            parties.wait_for(lambda: parties.processes["server"].poll() == 0, "the end")
        finally:
            parties.stop()
    return outcomes, differences(parties, folder / "reference", rounds)


def differences(parties: Parties, reference: Path, rounds: int) -> list[str]:
    """Return what of a federation is not equal to the run in one process."""
    whole, found = RunDirectory(reference), list[str]()
    if not equal(
        RunDirectory(parties.run_of("server")).server(rounds - 1).components, whole.server(rounds - 1).components
    ):
        found.append("the server's set")
    for client in CLIENTS:
        own, expected = RunDirectory(parties.run_of(client)).sets(client), whole.sets(client)
        found += [f"{client}: {name}" for name in expected if name not in own or not equal(own[name], expected[name])]
    records = [read_record(path) for path in (reference, parties.run_of("server"))]
    if [row.values for row in records[0].results or ()] != [row.values for row in records[1].results or ()]:
        found.append("results")
    decided = [
        [
            (e.round, e.client, e.task, e.regular_loss, e.personal_loss, e.replaced)
            for e in read_events(path)
            if e.event == "decision"
        ]
        for path in (reference, parties.run_of("server"))
    ]
    if decided[0] != decided[1]:
        found.append("decisions")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="three faults only")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    faults = [FAULTS[number] for number in SHORT] if arguments.short else list(FAULTS)
    with tempfile.TemporaryDirectory() as folder:
        outcomes, differs = run(Path(folder), faults)
    if arguments.json:
        print(json.dumps({"faults": [outcome.__dict__ for outcome in outcomes], "differences": differs}))
    else:
        rows = [[outcome.fault, f"{outcome.seconds:.0f}", outcome.said] for outcome in outcomes]
        print(
            "\n".join(
                markdown_table(TextTable("Faults", ["fault", "s until the round ended", "the party's terminal"], rows))
            )
        )
        print(f"\nNot equal to the run in one process: {', '.join(differs) or 'nothing'}")
    sys.exit(bool(differs))


if __name__ == "__main__":
    main()
