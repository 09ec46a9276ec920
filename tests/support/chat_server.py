"""A chat server on loopback that speaks OpenAI's protocol, and misbehaves when it is told to."""

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
    """Plays a script: one act a request, the last one for ever. Acts: a status code, a body, a string that is no JSON, a pair of status and body, "hang", "drip", "drop"."""

    def __init__(self, *script):
        self.script, self.asked, self.stop = list(script), [], threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                server.asked.append(
                    (
                        time.monotonic(),
                        json.loads(self.rfile.read(int(self.headers["Content-Length"]))),
                    )
                )
                act = server.script.pop(0) if len(server.script) > 1 else server.script[0]
                if act == "hang":
                    server.stop.wait(20)
                elif act == "drop":
                    self.connection.close()
                elif act == "drip":
                    self.send_response(200)
                    self.send_header("Content-Type", "application/json")
                    self.end_headers()
                    while not server.stop.wait(0.05):
                        try:
                            self.wfile.write(b" ")
                        except OSError:
                            return
                elif isinstance(act, tuple):
                    self.reply(*act)
                elif isinstance(act, int):
                    self.reply(
                        act,
                        {"error": {"message": f"no luck: {act}"}},
                        {"Retry-After": "0.3"} if act == 429 else {},
                    )
                else:
                    self.reply(200, act)

            def reply(self, status, body, headers=()):
                data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in {
                    "Content-Type": "application/json",
                    "Content-Length": str(len(data)),
                    **dict(headers),
                }.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def chat(self, **changes) -> Chat:
        options = dict(timeout=1.0, retries=1, per_minute=1e6) | changes
        return Chat(
            ChatConfig(
                base_url=f"http://127.0.0.1:{self.http.server_port}/v1",
                model="asked-model",
                **options,
            )
        )
