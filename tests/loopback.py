"""A web server on the loopback, whose misbehaviour is scripted for each path."""

import functools
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Loopback:
    """Serve files on the loopback, with faults where a test asks for them.

    with Loopback({"a.zip": data}) as server:
        server.script("a.zip", cut_after(100), answer(503))

    Each request takes the next behaviour of its path's script; afterwards, and without one, the
    file is served as a good server does. `seen` lists the requests: (name, headers).
    """

    def __init__(self, files: dict[str, bytes]):
        self.files, self.scripts, self.seen = dict(files), {}, []
        self.lock, self.closing = threading.Lock(), threading.Event()
        self.active = self.most_active = 0
        self.httpd = Server(("127.0.0.1", 0), functools.partial(Handler, self))
        self.url = f"http://127.0.0.1:{self.httpd.server_port}/"

    def __enter__(self):
        threading.Thread(target=self.httpd.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.httpd.shutdown()
        self.httpd.server_close()

    def script(self, name: str, *behaviours, always=None) -> None:
        """What the next requests for `name` meet, one each, and what every later one does."""
        self.scripts[name] = (list(behaviours), always or serve)

    def asked(self, name: str) -> list[dict]:
        """Headers of the requests for `name`, in order."""
        return [headers for seen, headers in self.seen if seen == name]


class Server(ThreadingHTTPServer):
    request_queue_size = 64  # with the usual 5, some of 16 connections at once come a second late


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 20

    def __init__(self, loopback, *args):
        self.loopback = loopback
        super().__init__(*args)

    def log_message(self, *_):
        pass

    def handle(self):
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True

    def do_GET(self):
        server, name = self.loopback, self.path[1:]
        with server.lock:
            server.seen.append((name, dict(self.headers)))
            server.active += 1
            server.most_active = max(server.active, server.most_active)
            behaviours, later = server.scripts.get(name, ([], serve))
            behave = behaviours.pop(0) if behaviours else later
        try:
            behave(self, server.files.get(name))
        finally:
            with server.lock:
                server.active -= 1

    def send(self, status: int, data: bytes = b"", length: int | None = None, **headers) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        self.wfile.write(data)


def serve(handler, data) -> None:
    if data is None:
        return handler.send(404, b"<html>not here</html>")
    handler.send(200, data)


def answer(status: int, body: bytes = b"<html>no</html>", **headers):
    return lambda handler, data: handler.send(status, body, **headers)


def cut_after(count: int):
    """Announces all bytes, sends `count` of them and hangs up."""

    def behave(handler, data):
        handler.send(200, data[:count], len(data))
        handler.close_connection = True

    return behave


def stall_after(count: int):
    def behave(handler, data):
        cut_after(count)(handler, data)
        handler.wfile.flush()
        handler.loopback.closing.wait(10)

    return behave


def trickle(chunk: int, seconds: float):
    """Serves in small pieces, with a pause after each."""

    def behave(handler, data):
        handler.send(200, b"", len(data))
        for begin in range(0, len(data), chunk):
            handler.wfile.write(data[begin : begin + chunk])
            if handler.loopback.closing.wait(seconds):
                break

    return behave


def hang_up(handler, data) -> None:
    handler.close_connection = True


def send_other(other: bytes):
    """Serves other bytes, whole."""
    return lambda handler, data: handler.send(200, other)


def misstate_length(difference: int):
    def behave(handler, data):
        handler.send(200, data, len(data) + difference)
        handler.close_connection = True

    return behave


def send_chunked(handler, data) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data))
