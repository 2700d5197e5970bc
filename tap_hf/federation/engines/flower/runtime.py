"""This process as one that runs tasks for a SuperLink or a SuperNode, as Flower's `flower-superexec` would start one.

Flower starts a new process for each message, and installs the app's code in it. One that asks for its tasks itself
keeps what it has loaded, and runs no code but its own.
"""

import logging
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import httpx
from flwr.proto.runtime_pb2 import AcquireTaskRequest, SendTaskHeartbeatRequest
from flwr.proto.task_pb2 import Task
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry import RetryInvoker, exponential
from flwr.supercore.runtime import RuntimeHttpClient

from tap_hf.atomic_files import private_files, write_atomically

# Flower's own way to try again interrupts this process where a task is no longer valid, and tries for ever.
RETRY = RetryInvoker(lambda: exponential(max_delay=2), httpx.TransportError, max_tries=None, max_time=20)

logging.getLogger("flwr").setLevel(logging.ERROR)  # it reports each connection, to any logger above its own

_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"


def make_secret(path: Path) -> bytes:
    """Write a new secret, which lets a process ask for tasks, to a file that only this user can read."""
    secret = secrets.token_hex(32).encode()
    with private_files():
        write_atomically(path, secret)
    return secret


class Runtime:
    """The Runtime API of a SuperLink or SuperNode on this machine.

    Args:
        address: host and port.
        secret: that of `--superexec-auth-secret-file`.
        certificate: of the authority that signed the API's certificate; without, there is no TLS.
        kind: of the tasks, `flwr-serverapp` or `flwr-clientapp`.
    """

    def __init__(self, address: str, secret: bytes, certificate: bytes | None, kind: str) -> None:
        self.address, self.certificate, self._kind = address, certificate, kind
        auth = SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=[_ACQUIRE])
        version = RuntimeVersionHttpInterceptor(component_name="SuperExec")
        self._client = RuntimeHttpClient.from_server_address(address, certificate is None, certificate, [version, auth])

    def acquire(self) -> tuple[Task, str] | None:
        """Return the next task and its token, `None` if there is none or the API cannot be reached."""
        try:
            answer = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[self._kind]))
        except httpx.TransportError:
            return None
        return (answer.task, answer.token) if answer.HasField("task") and answer.token else None

    def wait_for_task(self, poll: float, stopped: Callable[[], bool]) -> tuple[Task, str] | None:
        """Return the next task when there is one, `None` if stopped."""
        while not stopped():
            if task := self.acquire():
                return task
            time.sleep(poll)
        return None

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def client(self, token: str) -> RuntimeHttpClient:
        """Return a client for the task with this token."""
        return RuntimeHttpClient.from_server_address(
            self.address,
            self.certificate is None,
            self.certificate,
            [RuntimeVersionHttpInterceptor(component_name=self._kind), RuntimeTokenHttpInterceptor(token=token)],
            retry_invoker=RETRY,
        )


def keep_alive(client: RuntimeHttpClient) -> HeartbeatSender:
    """Report in the background that a task is being done, until the returned sender is stopped.

    A task that Flower has given up stays given up, which shows when its result is sent.
    """

    def beat() -> bool:
        try:
            client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
        except httpx.TransportError:
            return False
        except httpx.HTTPError:
            pass  # the task is given up, or the SuperLink is about to end
        return True

    sender = HeartbeatSender(beat)
    sender.start()
    return sender
