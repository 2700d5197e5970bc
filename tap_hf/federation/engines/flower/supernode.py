"""A site's side: a SuperNode with the site's key, and this process, which answers the messages that reach it."""

import logging
from collections.abc import Callable
from pathlib import Path

import httpx
from flwr.app import Message
from flwr.common.constant import SubStatus
from flwr.proto.task_pb2 import Task
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from tap_hf.atomic_files import private_files
from tap_hf.federation.engines.flower.exchange import failure, from_record, to_record
from tap_hf.federation.engines.flower.process import ChildProcess, free_port
from tap_hf.federation.engines.flower.runtime import Runtime, keep_alive, make_secret
from tap_hf.federation.engines.transport import Handler

logger = logging.getLogger(__name__)

_POLL = 0.1  # seconds between two looks for a message


def serve(
    handler: Handler, server: str, ca: Path, key: Path, folder: Path, stopped: Callable[[], bool] = lambda: False
) -> None:
    """Answer the server's messages with `handler`, one at a time, until this process is interrupted.

    A SuperNode is run for the messages, and started again if it ends. What the handler raises is logged here; the
    server gets a code.

    Args:
        handler: returns the reply to a request.
        server: host and port.
        ca: certificate of the authority that signed the server's.
        key: this site's private key, whose public key the server has.
        folder: for the SuperNode's log and secret; nothing there must last.
        stopped: says whether to end.
    """
    with private_files():
        folder.mkdir(parents=True, exist_ok=True)
    secret, port = make_secret(folder / "secret"), free_port()
    command = ["flower-supernode", "--superlink", server, "--root-certificates", str(ca)]
    command += ["--auth-supernode-private-key", str(key), "--isolation", "process", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--superexec-auth-secret-file", str(folder / "secret")]
    process = ChildProcess(command, folder)
    runtime = Runtime(f"127.0.0.1:{port}", secret, None, "flwr-clientapp")
    try:
        while task := runtime.wait_for_task(_POLL, stopped):
            try:
                _answer(runtime, *task, handler)
            except httpx.HTTPError as error:
                logger.warning("A reply is lost, because the SuperNode has ended or has given it up: %s.", error)
    finally:
        process.stop()
        runtime.close()


def _answer(runtime: Runtime, task: Task, token: str, handler: Handler) -> None:
    client = runtime.client(token)
    alive = keep_alive(client)
    try:
        message, context, _, _ = pull_task_input(client)  # and not the app that comes with it
        reply = _reply(message, handler)
        push_message(client, reply, context)
        push_task_output(client, context, SubStatus.COMPLETED, "")
    finally:
        alive.stop()
        client.close()


def _reply(message: Message, handler: Handler) -> Message:
    try:
        return Message(to_record(handler(from_record(message.content))), reply_to=message)
    except Exception:
        logger.exception("This site's part has failed; the server gets only the code of a failure.")
        return Message(failure(), reply_to=message)
