"""Serve the page alive: python aggregate.py --serve. It reads, asks squeue where sweeps left jobs
with Slurm, and does nothing else.

Whoever can reach the port may be anybody, and so may who wrote names, logs and records:
- There is one address, "/", and GET and HEAD alone. What it names, a run or a cell, must be one
  that was found below the folder; links that lead out of it are not followed.
- All text is escaped, and a Content-Security-Policy admits the page's own script and nothing else.
- The Host header must be this machine's, or a page elsewhere on the web could read ours in the
  visitor's browser (DNS rebinding). Another host than the loopback is served with a token only.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import hmac
import ipaddress
import secrets
import socket
import sys
import threading
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from resnests.commands.live import Live
from resnests.errors import UserError
from resnests.results.output import Plan
from resnests.results.report import resource
from resnests.text import printable

PORT = 8642
LOOPBACK = ("localhost", "127.0.0.1", "::1")
COOKIE = "resnests_token"


def serve(root: str, port: int, host: str | None, plan: Plan) -> None:
    """Serve the page of the runs below `root` until Ctrl-C; raise a UserError where the port is
    taken. With a `host`, which may be the loopback too, only whoever knows the token is answered.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"--serve {port}: expected a port, from 0 (any that is free) to 65535")
    try:
        server = Server((host or "127.0.0.1", port), Handler)
    except (OSError, OverflowError) as error:
        # gaierror has numbers of its own
        if (
            isinstance(error, socket.gaierror)
            or getattr(error, "errno", None) == errno.EADDRNOTAVAIL
        ):
            expected = "expected an address or name of this machine"
            raise UserError(f"--host {host}: {expected} ({error})") from None
        mend = "expected a free one of this machine, such as --serve 0 for any"
        raise UserError(f"--serve {port}: {mend} ({error})") from None
    server.live, server.token = Live(root, plan), secrets.token_urlsafe(24) if host else None
    server.names = (
        {host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()} if host else set()
    )
    shown = "127.0.0.1" if host is None else socket.getfqdn() if host in ("0.0.0.0", "::") else host
    shown = f"[{shown}]" if ":" in shown else shown
    query = f"?token={server.token}" if server.token else ""
    address = f"http://{shown}:{server.server_address[1]}/{query}"
    try:
        print(f"{address} shows {root}; Ctrl-C ends it", flush=True)
        threading.Thread(target=server.live.warm_up, daemon=True).start()
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()


class Server(ThreadingHTTPServer):
    """Answers requests, each in a thread."""

    daemon_threads = True
    live: Live
    token: str | None
    names: set[str]  # by which this host is known, beside addresses and the loopback

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print one line, and none where a browser has left."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            print(f"aggregate.py: {type(error).__name__}: {error}", file=sys.stderr)

    def knows(self, host: str) -> bool:
        """Return whether a Host header names this machine; its port may be that of a tunnel."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        if name in LOOPBACK or name in self.names:
            return True
        try:  # an address cannot be rebound
            return self.token is not None and bool(ipaddress.ip_address(name))
        except ValueError:
            return False


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: Server
    server_version, sys_version = "resnests", ""
    timeout = 30  # seconds for a request to arrive

    def do_GET(self) -> None:
        """Answer with the page."""
        self._answer()

    def do_HEAD(self) -> None:
        """Answer with the headers of the page."""
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    def _answer(self) -> None:
        try:
            query = self._admitted()
            if query is None:
                return
            tag = self.headers.get("If-None-Match", "")
            page, now = self.server.live.page(query, tag)
        except UserError as error:
            return self._send(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        except Exception as error:  # what files hold that nobody thought of
            said = f"{type(error).__name__}: {printable(str(error))}"
            print(f"aggregate.py: the page cannot be made: {said}", file=sys.stderr)
            return self._send(HTTPStatus.INTERNAL_SERVER_ERROR, f"cannot be made: {said}")
        if page is None:
            return self._send(HTTPStatus.NOT_MODIFIED, "", {"ETag": now})
        self._send(HTTPStatus.OK, page, {"ETag": now} if now else {}, "html")

    def _admitted(self) -> dict[str, list[str]] | None:
        """Return what a request asks for; None where it was refused, or sent on."""
        try:
            address = urlsplit(self.path)
            query = parse_qs(address.query, max_num_fields=50)
        except ValueError:
            self._send(HTTPStatus.BAD_REQUEST, "expected an address of the page")
            return None
        if not self.server.knows(self.headers.get("Host", "")):
            self._send(HTTPStatus.FORBIDDEN, "expected the name of this host in the address")
        elif self.server.token is not None and not self._has_token(query):
            pass  # which has answered
        elif address.path != "/":
            self._send(HTTPStatus.NOT_FOUND, "expected /")
        else:
            return query
        return None

    def _has_token(self, query: dict[str, list[str]]) -> bool:
        """Return whether a request has the token in its cookie; answer it where it does not."""
        token = str(self.server.token)
        if "token" in query:
            if hmac.compare_digest(query["token"][0].encode(), token.encode()):
                cookie = f"{COOKIE}={token}; HttpOnly; SameSite=Strict; Path=/"
                self._send(HTTPStatus.SEE_OTHER, "", {"Location": "/", "Set-Cookie": cookie})
                return False
        else:
            try:
                known = SimpleCookie(self.headers.get("Cookie", "")).get(COOKIE)
            except CookieError:
                known = None
            if known and hmac.compare_digest(known.value.encode(), token.encode()):
                return True
        self._send(
            HTTPStatus.UNAUTHORIZED, "expected the address that --serve printed, with its token"
        )
        return False

    def _send(
        self,
        status: HTTPStatus,
        text: str,
        headers: dict[str, str] | None = None,
        kind: str = "plain",
    ) -> None:
        body = text.encode(errors="replace")
        self.send_response(status)
        for name, value in (SECURITY | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"text/{kind}; charset=utf-8")
        if status is not HTTPStatus.NOT_MODIFIED:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _hash(name: str) -> str:
    digest = hashlib.sha256(resource(name).encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


SECURITY = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hash('page.js')}",
            f"style-src {_hash('page.css')}",
            "img-src data:",
            "connect-src 'self'",
            "form-action 'self'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
        )
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
