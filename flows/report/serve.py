"""A report served to browsers of this machine, for a root on a machine without a desktop or in an object store."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tagcos_stream.types import UserError


def serve(page: bytes, port: int, on_start: Callable[[str], None]) -> None:
    """Serve one page on the loopback interface until interrupted.

    Parameters
    ----------
    page
        HTML, UTF-8.
    port
        TCP port; 0 for a free one.
    on_start
        Called with the address.

    Raises
    ------
    UserError
        The port is taken or not permitted.
    """

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path.partition("?")[0] == "/"
            body = page if found else b"there is one page, at /\n"
            with suppress(ConnectionError):  # the browser went to another page while this one came
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", f"text/{'html' if found else 'plain'}; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Page)
    except OSError as error:
        raise UserError(f"cannot serve on port {port}: {error.strerror}; choose another --port, or 0 for a free one") from error
    with server:
        on_start(f"http://127.0.0.1:{server.server_port}/")
        with suppress(KeyboardInterrupt):
            server.serve_forever()
