"""A chat server on loopback that speaks OpenAI's protocol and fails on demand."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from ivid2vid_jax.synthesis.chat import Chat, ChatConfig

CAPTION = "a red car drives along a street"
EDITS = [
    dict(
        edit_type="object",
        instruction="turn the car into a bus",
        edited_caption="a red bus drives along a street",
    ),
    dict(
        edit_type="weather",
        instruction="make it snow",
        edited_caption="a red car drives along a snowy street",
    ),
]


def completion(content, **message):
    """A ChatCompletion with one choice."""
    message = {"role": "assistant", "content": content, **message}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "served-model",
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
    }


class Server:
    """Answers request number n with script[n]; the last entry is repeated.

    An entry is a status code, a JSON body, a body that is no JSON (str), a pair (status, body), or
    one of "hang" (no answer), "drip" (a byte every 50 ms) and "drop" (closes the connection).
    """

    def __init__(self, *script):
        self.script, self.stop = list(script), threading.Event()
        self.requests: list[tuple[float, dict]] = []  # time, body
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/v1"

    def close(self):
        self.stop.set()
        self.http.shutdown()

    def chat(self, **changes) -> Chat:
        """A client of this server."""
        options = dict(timeout=1.0, retries=1, per_minute=1e6) | changes
        return Chat(ChatConfig(base_url=self.url, model="asked-model", **options))

    def next_entry(self):
        return self.script.pop(0) if len(self.script) > 1 else self.script[0]

    def handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server.requests.append((time.monotonic(), json.loads(body)))
                entry = server.next_entry()
                if entry == "hang":
                    server.stop.wait(20)
                elif entry == "drop":
                    self.connection.close()
                elif entry == "drip":
                    self.drip()
                elif isinstance(entry, tuple):
                    self.reply(*entry)
                elif isinstance(entry, int):
                    headers = {"Retry-After": "0.3"} if entry == 429 else {}
                    self.reply(entry, {"error": {"message": f"no luck: {entry}"}}, headers)
                else:
                    self.reply(200, entry)

            def drip(self):
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                while not server.stop.wait(0.05):
                    try:
                        self.wfile.write(b" ")
                    except OSError:
                        return

            def reply(self, status, body, headers=()):
                data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                for name, value in dict(headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        return Handler
