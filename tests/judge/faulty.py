"""An OpenAI-compatible server on loopback that fails as it is told to. What it judges, it judges by length: the longer reply is better."""

import json
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SHOWN = re.compile(r"---- reply A (\w+) ----\n(.*)\n---- reply B \1 ----\n(.*)\n---- end \1 ----", re.DOTALL)


def verdict_on(content: str) -> str:
    _, first, second = SHOWN.search(content).groups()
    return "A" if len(first) > len(second) else "B" if len(second) > len(first) else "tie"


class Faulty:
    """Use as a context. `faults` are taken from the front, one a request, before it answers rightly; `always` is done to every request.

    A fault is a function of handler and request that answers, or returns False for a right answer. `questions` counts what was rightly answered,
    `bodies` holds everything that came in. After `dies_after` right answers it only cuts connections; `key` is the one that it takes.
    """

    def __init__(self, faults=(), *, always=None, dies_after=None, key=None, port=0):
        self.faults, self.always, self.dies_after, self.key = list(faults), always, dies_after, key
        self.questions: Counter[str] = Counter()
        self.bodies: list[dict] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 1 << 16  # head and body in one packet: the second would wait for the first to be acknowledged

            def log_message(self, *arguments): ...

            def do_GET(self):
                outer.refuse_key(self) or send(self, 200, {"object": "list", "data": []})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.bodies.append(body)
                    outer.at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer.at_once)
                    fault = outer.always or (outer.faults.pop(0) if outer.faults else None)
                    dead = outer.dies_after is not None and outer.questions.total() >= outer.dies_after
                try:
                    if dead:
                        cut(self)
                    elif not outer.refuse_key(self) and not (fault and fault(self, body)):
                        outer.answer(self, body)
                finally:
                    with outer.lock:
                        outer.at_once -= 1

        self.http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.http.daemon_threads = True
        self.port = self.http.server_port
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self):
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        return self

    def __exit__(self, *problem):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    def refuse_key(self, handler) -> bool:
        if self.key is None or handler.headers["Authorization"] == f"Bearer {self.key}":
            return False
        send(handler, 401, {"error": {"message": f"Incorrect API key provided: {handler.headers['Authorization']}"}})
        return True

    def answer(self, handler, body) -> None:
        content = body["messages"][0]["content"]
        with self.lock:
            self.questions[content] += 1
        said(json.dumps({"reason": "it says more", "verdict": verdict_on(content)}))(handler, body)


def send(handler, status, value, **headers) -> bool:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    handler.send_response(status)
    for name, text in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
        handler.send_header(name.replace("_", "-"), text)
    handler.end_headers()
    handler.wfile.write(data)
    return True


def said(text, *, finish="stop", tokens=(100, 10)):
    """Answer with this text, whatever was asked."""
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)}
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
    return body({"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage})


def body(value):
    return lambda handler, request: send(handler, 200, value)


def status(code, message="no", **headers):
    return lambda handler, request: send(handler, code, {"error": {"message": message}}, **headers)


def busy(handler, request) -> bool:
    return send(handler, 429, {"error": {"message": "slow down"}}, Retry_After="0.05")


def slow(seconds):
    def wait(handler, request) -> bool:
        time.sleep(seconds)
        handler.close_connection = True
        return True

    return wait


def cut(handler, request=None) -> bool:
    """Half an answer, and the connection ends."""
    handler.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{"choices": [')
    handler.close_connection = True
    return True


def without(*fields, naming=True):
    """A server that refuses requests with one of these settings, and says by its name which."""

    def refuse(handler, request) -> bool:
        known = next((field for field in fields if field in request), None)
        return bool(known) and send(handler, 400, {"error": {"message": f"Unrecognized request argument: {known}" if naming else "bad request"}})

    return refuse
