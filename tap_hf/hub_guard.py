"""Bounds of requests to the Hub: their time, the size of answers, and which hosts get the token.

`huggingface_hub` (2.4) sets no time limit for most requests, reads answers of any size into memory, sends the token
wherever the `Link` of a page leads, and obeys any `Retry-After`. The bounds hold within `bounded` only: other requests
of the program stay as they are.
"""

import contextlib
import contextvars
import functools
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tap_hf.errors import HubError
from tap_hf.limits import HUB_SECONDS

_SLOWEST = 16 * 2**10  # bytes per second; what arrives earns time at this rate, and so does what is sent
_EARNED = 1 / 300  # of the time of a command, by each answer: one may ask for thousands of files
_MAX_ANSWER = 64 * 2**20  # bytes of an answer that is kept in memory, or that does not say how long it is
_MAX_PAGES = 1000  # of lists in a command; the Hub sends 1000 entries a page
# `huggingface_hub` also asks for a list of programs, keeps whatever comes for a day, fails on it each time if it is not
# what it expects, and tells the server which of the environment variables that the list names are set.
_API = re.compile(r"/api/(?:models|datasets|spaces|repos|resolve-cache|validate-yaml|whoami-v2)(?:/|$)")
_ETAG = re.compile(r'(W/)?"?(?!\.\.)[\w.+=:-]{0,128}"?', re.ASCII)
_OFFICIAL = ("huggingface.co", "hf.co", "hub-ci.huggingface.co")
_SEEN_FROM_OUTSIDE = ("ETag", "X-Linked-ETag")

_expected_size: contextvars.ContextVar[int | None] = contextvars.ContextVar("_expected_size", default=None)
_lock = threading.RLock()


@dataclass
class _Usage:
    """What a command has had of the Hub; `lock` is for the threads in which `huggingface_hub` transfers files."""

    seconds: float = 0.0
    received: int = 0
    answers: int = 0
    pages: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def left(self) -> float:
        """Seconds that the command still waits; each answer and what arrives earn more."""
        earned = HUB_SECONDS.value * self.answers * _EARNED + self.received / _SLOWEST
        return HUB_SECONDS.value + earned - self.seconds

    def add(self, seconds: float = 0.0, received: int = 0, answers: int = 0, pages: int = 0) -> None:
        with self.lock:
            self.seconds += seconds
            self.received += received
            self.answers += answers
            self.pages += pages

    def __str__(self) -> str:
        return f"{self.answers} answers with {self.received:,} bytes came in {self.seconds:.0f} s of waiting"


_usage: _Usage | None = None
_commands = 0  # how many `whole_command` are open
_bounds = 0  # how many `bounded` are open


@contextlib.contextmanager
def whole_command() -> Iterator[None]:
    """Let all that is `bounded` in this block share one time limit."""
    global _usage, _commands
    with _lock:
        _commands += 1
        _usage = _usage or _Usage()
    try:
        yield
    finally:
        with _lock:
            _commands -= 1
            _usage = _usage if _commands else None


@contextlib.contextmanager
def bounded(expected_size: int | None = None) -> Iterator[None]:
    """Bound the requests of `huggingface_hub` in this block, also those of transformers and datasets.

    Args:
        expected_size: of a file that is downloaded; a larger one is refused before it is downloaded.

    Raises:
        HubError: from within, if the Hub is too slow, sends too much, or sends what would harm this machine.
    """
    global _bounds
    _install()
    token = _expected_size.set(expected_size)
    with _lock:
        _bounds += 1
    try:
        with whole_command():
            yield
    except Exception as error:
        if (refusal := _refusal_in(error)) is None:
            raise
        raise HubError(refusal.args[0]) from error
    finally:
        with _lock:
            _bounds -= 1
        _expected_size.reset(token)


def _refusal_in(error: BaseException) -> HubError | None:
    """Return the error of this module that a library has wrapped in one of its own."""
    seen: set[int] = set()
    inner = error.__cause__ or error.__context__
    while inner is not None and id(inner) not in seen:
        if isinstance(inner, HubError):
            return None if isinstance(error, HubError) else inner
        seen.add(id(inner))
        inner = inner.__cause__ or inner.__context__
    return None


def usage_so_far() -> str:
    """Return what came within this command, for messages."""
    return str(_usage or _Usage())


def retry_after(response: Any) -> float | None:
    """Return how many seconds the server asks to wait; `None` if it does not."""
    header = response.headers.get("Retry-After", "").strip()
    # `huggingface_hub` obeys this one too.
    limit = re.search(r'"\w+"\s*;\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)', response.headers.get("ratelimit", ""))
    asked = [text for text in (header, limit[1] if limit else "") if text.isdigit()]
    return max(float(text) if text.isascii() else float("inf") for text in asked) if asked else None


def _install() -> None:
    """Make every client of `huggingface_hub` a bounded one; it opens a new one after a lost connection."""
    from huggingface_hub.utils import _http

    factory = _http._GLOBAL_CLIENT_FACTORY
    if getattr(factory, "func", None) is not _bounded_client:
        _http.set_client_factory(functools.partial(_bounded_client, factory))


def _bounded_client(factory: Callable[[], Any]) -> Any:
    client = factory()
    hooks = client.event_hooks
    client.event_hooks = {
        "request": [*hooks.get("request", ()), _check_request],
        "response": [*hooks.get("response", ()), _check_response],
    }
    client.send = functools.partial(_send, client.send)
    return client


def _send(send: Callable[..., Any], request: Any, **options: Any) -> Any:
    """Send a request, and wait for its answer no longer than the limit.

    It is sent in a thread: a server may take for ever to answer with a byte now and then, which no timeout notices.
    """
    usage = _usage
    if not _bounds or usage is None:
        return send(request, **options)
    sent = int(request.headers.get("Content-Length") or 0)
    limit = min(HUB_SECONDS.value / 5, usage.left) + sent / _SLOWEST
    request.extensions = {**request.extensions, "timeout": _timeouts(request, limit)}
    request.extensions["tap_hf"] = {"streams": bool(options.get("stream")), "received": 0}
    if limit <= 0:
        raise _too_slow(request, usage)
    result: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
    abandoned = threading.Event()
    context = contextvars.copy_context()

    def work() -> None:
        try:
            response = context.run(send, request, **options)
        except BaseException as error:
            result.put((None, error))
        else:
            result.put((response, None))
            if abandoned.is_set():
                response.close()

    started = time.monotonic()
    threading.Thread(target=work, daemon=True, name="tap_hf-request").start()
    try:
        response, error = result.get(timeout=limit)
    except queue.Empty:
        abandoned.set()
        raise _too_slow(request, usage, limit) from None
    finally:
        usage.add(seconds=time.monotonic() - started)
    if error is not None:
        raise error
    usage.add(answers=1)
    return response


def _timeouts(request: Any, limit: float) -> dict[str, float]:
    """Return the times for each step of a request, so that an abandoned thread ends."""
    given = request.extensions.get("timeout") or {}
    return {step: min(given.get(step) or limit + 1, limit + 1) for step in ("connect", "read", "write", "pool")}


def _check_request(request: Any) -> None:
    """Keep the token to the Hub, also after a redirect and on the next page; bound the pages."""
    if not _bounds or (usage := _usage) is None:
        return
    if not _may_have_token(str(request.url)):
        request.headers.pop("Authorization", None)
    elif request.url.path.startswith("/api/") and not _API.match(request.url.path):
        raise HubError(f"{request.url.path} of the Hub is not needed, and was not asked for.")
    request.headers["Accept-Encoding"] = "identity"  # so that a small answer cannot unpack to a huge one
    if request.method == "GET" and "/tree/" in request.url.path:
        usage.add(pages=1)
        if usage.pages > _MAX_PAGES:
            raise HubError(
                f"{request.url.host} sends a list in more than {_MAX_PAGES:,} pages, expected fewer. "
                "Do not trust this server."
            )


def _check_response(response: Any) -> None:
    request = response.request
    if request.method == "HEAD":
        _check_etag(response)
    if not _bounds or (usage := _usage) is None:
        return
    host = response.url.host
    if response.headers.get("Content-Encoding", "identity").strip().lower() not in ("identity", ""):
        raise HubError(f"{host} sends compressed answers, which were not asked for. Do not trust this server.")
    if (pause := retry_after(response)) is not None and response.status_code in (408, 429, 500, 502, 503, 504):
        if pause > (left := usage.left):
            raise HubError(
                f"{host} answered {response.status_code} and asks to wait {pause:,.0f} s, longer than the "
                f"{left:,.0f} s that are left of this command's time. Run it again later. {HUB_SECONDS.hint}"
            )
        usage.add(seconds=pause)  # `huggingface_hub` sleeps
    if not _is_official(str(request.url)):
        # Its transfers outside of Python have no limits, and they send the token wherever the server says.
        response.headers.pop("X-Xet-Hash", None)
    expected = _expected_size.get()
    size = response.headers.get("X-Linked-Size") or response.headers.get("Content-Length") or ""
    if request.method == "HEAD" and expected is not None and size.isdigit() and float(size) > expected:
        raise HubError(
            f"{host} offers {int(float(size)):,} bytes for {request.url.path}, expected at most {expected:,}. "
            "Nothing was downloaded."
        )
    response.iter_raw = functools.partial(_counted, response, response.iter_raw, usage)


def _counted(response: Any, iter_raw: Callable[..., Iterator[bytes]], usage: _Usage, *args: Any) -> Iterator[bytes]:
    """Yield the body of an answer as it arrives, within its size and time."""
    request, received, limit = response.request, 0, _size_limit(response)
    # The thread of `_send` has its own limit of time.
    patience = min(HUB_SECONDS.value / 5, usage.left) if _streams(request) else float("inf")
    started = last = time.monotonic()
    chunks = iter_raw(*args)
    while True:
        try:
            chunk = next(chunks, None)
        finally:  # of a connection that stalls too: `huggingface_hub` opens another one and resumes
            now = time.monotonic()
            usage.add(seconds=now - last if _streams(request) else 0)
        if chunk is None:
            return
        received += len(chunk)
        usage.add(received=len(chunk))
        request.extensions.get("tap_hf", {})["received"] = received
        if received > limit:
            raise HubError(
                f"{response.url.host} sends more than {limit:,} bytes for {request.url.path}, which are the most that "
                "are expected. Do not trust this server."
            )
        if now - started > patience + received / _SLOWEST:
            raise _too_slow(request, usage, now - started)
        yield chunk
        last = time.monotonic()


def _size_limit(response: Any) -> int:
    """Return the most bytes that the body of an answer may have."""
    expected, declared = _expected_size.get(), response.headers.get("Content-Length", "")
    ranges = re.fullmatch(r"bytes=(\d{1,18})-(\d{1,18})", response.request.headers.get("Range", ""))
    if ranges and response.status_code == 206:
        return max(int(ranges[2]) - int(ranges[1]) + 1, _MAX_ANSWER)
    if not _streams(response.request) or response.status_code >= 400:
        return _MAX_ANSWER
    if expected is not None:
        return expected
    return int(declared[:18]) if declared.isdigit() else _MAX_ANSWER


def _streams(request: Any) -> bool:
    return bool(request.extensions.get("tap_hf", {}).get("streams"))


def _too_slow(request: Any, usage: _Usage, waited: float | None = None) -> HubError:
    received = request.extensions["tap_hf"]["received"]
    this = f" in {waited:.0f} s, of which {received:,} bytes came" if waited is not None else ""
    return HubError(
        f"{request.url.host} is too slow: {request.method} {request.url.path} had no complete answer{this}. In this "
        f"command, {usage}. Try again later. {HUB_SECONDS.hint}"
    )


def _check_etag(response: Any) -> None:
    """Raise for a path in an `ETag`: `huggingface_hub` names a cached file by it without a check (2.4.0)."""
    for name in _SEEN_FROM_OUTSIDE:
        if not _ETAG.fullmatch(given := response.headers.get(name, "")):
            raise HubError(
                f"{response.url.host} answered with the {name} {given[:100]!r}, which is not the name of a file in the "
                "cache. Nothing was written; do not trust this server."
            )


def _may_have_token(url: str) -> bool:
    from huggingface_hub import constants

    (scheme, host, port), own = _origin(url), _origin(constants.ENDPOINT)
    is_upgrade = own[0] == "http" and own[2] == 80 and (scheme, host, port) == ("https", own[1], 443)
    return (scheme, host, port) == own or is_upgrade or (_is_official(url) and _is_official(constants.ENDPOINT))


def _is_official(url: str) -> bool:
    scheme, host, port = _origin(url)
    return scheme == "https" and host in _OFFICIAL and port == 443


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
