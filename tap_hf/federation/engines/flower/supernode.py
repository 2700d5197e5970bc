"""A site's side: a SuperNode with the site's key, and this process, which answers the messages that reach it."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import httpx
from flwr.app import Context, Message
from flwr.common.constant import SubStatus
from flwr.common.serde import context_from_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullTaskInputRequest
from flwr.proto.task_pb2 import Task
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import push_message, push_task_output

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
    task = None
    try:
        while task := task or runtime.wait_for_task(_POLL, stopped):
            try:
                task = _answer(runtime, *task, handler)
            except httpx.HTTPError as error:
                logger.warning("A reply is lost, because the SuperNode has ended or has given it up: %s.", error)
                task = None
    finally:
        process.stop()
        runtime.close()


def _answer(runtime: Runtime, task: Task, token: str, handler: Handler) -> tuple[Task, str] | None:
    """Answer a task's message; return the next task, if there is one before the whole message is there.

    A SuperNode announces a task before it has the message. If the message does not come, such as because the server was
    started again, it says nothing, and announces the next one.
    """
    client = runtime.client(token)
    alive = keep_alive(client)
    try:
        given = client.PullTaskInput(PullTaskInputRequest())  # the app that comes with it is not used
        context = context_from_proto(given.context)
        incoming = _Incoming(client, context)
        while (message := incoming.message()) is None:
            if following := runtime.acquire():
                return following
            time.sleep(_POLL)
        push_message(client, _reply(message, handler), context)
        push_task_output(client, context, SubStatus.COMPLETED, "")
        return None
    finally:
        alive.stop()
        client.close()


class _Incoming:
    """A message that a SuperNode receives in parts."""

    def __init__(self, client: RuntimeHttpClient, context: Context) -> None:
        self._client, self._context, self._node = client, context, Node(node_id=context.node_id)
        self._tree: ObjectTree | None = None
        self._parts = dict[str, bytes]()

    def message(self) -> Message | None:
        """Return the message, `None` as long as there are parts that the SuperNode does not have yet."""
        if self._tree is None:
            trees = self._client.PullMessages(PullAppMessagesRequest()).message_object_trees
            self._tree = trees[0] if trees else None
        if self._tree is None or not all(map(self._has, [tree.object_id for tree in iterate_object_tree(self._tree)])):
            return None
        run, whole = self._context.run_id, self._tree.object_id
        received = ConfirmMessageReceivedRequest(node=self._node, run_id=run, message_object_id=whole)
        self._client.ConfirmMessageReceived(received)
        message = inflate_object_from_contents(whole, self._parts)
        message.metadata.__dict__["_message_id"] = whole  # it is not in itself
        return message

    def _has(self, part: str) -> bool:
        if part not in self._parts:
            asked = PullObjectRequest(node=self._node, run_id=self._context.run_id, object_id=part)
            answer = self._client.PullObject(asked)
            if answer.object_found and answer.object_available:
                self._parts[part] = answer.object_content
        return part in self._parts


def _reply(message: Message, handler: Handler) -> Message:
    try:
        return Message(to_record(handler(from_record(message.content))), reply_to=message)
    except Exception:
        logger.exception("This site's part has failed; the server gets only the code of a failure.")
        return Message(failure(), reply_to=message)
