"""A local HTTP server that speaks the chat protocol, with faults, for tests."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What the server sends; ``hang`` seconds later."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    hang: float = 0.0


def says(content: str | None, finish_reason: str = "stop", refusal: str | None = None, usage: bool = True) -> Reply:
    """An answer of a model: 100 tokens in, 10 out."""
    message = {"role": "assistant", "content": content, "refusal": refusal}
    counted = {"usage": {"prompt_tokens": 100, "completion_tokens": 10}} if usage else {}
    return Reply({"choices": [{"message": message, "finish_reason": finish_reason}], **counted})


def letter(**logprobs: float) -> Reply:
    """One token, with log-probabilities of the likeliest; a leading underscore stands for a blank."""
    likeliest = [{"token": token.replace("_", " "), "logprob": x} for token, x in logprobs.items()]
    content = likeliest[0]["token"] if likeliest else "A"
    reply = says(content, finish_reason="length")
    reply.body["choices"][0]["logprobs"] = {"content": [{"token": content, "top_logprobs": likeliest}]}
    return reply


def verdict(name: str) -> Reply:
    return says(json.dumps({"reason": "because", "verdict": name}))


@dataclass
class Server:
    """A running server: its address, and every request with its headers and body."""

    url: str
    requests: list[tuple[dict[str, str], dict[str, Any]]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def questions(self) -> list[dict[str, str]]:
        """What was asked, in the order of arrival."""
        return [json.loads(body["messages"][1]["content"]) for _, body in self.requests]


@contextmanager
def serving(plan: Callable[[int, dict[str, Any]], Reply]) -> Iterator[Server]:
    """Serve: ``plan`` gets the number of a request (from 0) and its body."""
    running = Server("")
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # an answer in two writes waits 40 ms otherwise

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with running.lock:
                number = len(running.requests)
                running.requests.append((dict(self.headers), body))
            reply = plan(number, body) if self.path == "/v1/chat/completions" else Reply("no such path", 404)
            ended.wait(reply.hang)
            content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            try:
                self.send_response(reply.status)
                for name, value in {"Content-Length": str(len(content)), **reply.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)
            except OSError:  # the client has gone
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        running.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield running
        finally:
            ended.set()
            server.shutdown()
            thread.join()
