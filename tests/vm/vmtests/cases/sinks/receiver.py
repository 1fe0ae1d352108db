"""receiver.py DIRECTORY PORT [CERTIFICATE]: an HTTP(S) server that takes POSTs.

DIRECTORY/mode holds the status to answer with and the seconds to wait before, DIRECTORY/answer the body of a 200. Each request becomes a line of
DIRECTORY/requests, as JSON.
"""

import json
import ssl
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

directory, port = Path(sys.argv[1]), int(sys.argv[2])
lock = threading.Lock()


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status, seconds = (directory / "mode").read_text().split()
        line = {"status": int(status), "slow": seconds != "0", "headers": {name.lower(): value for name, value in self.headers.items()}, "body": body.decode()}
        with lock, (directory / "requests").open("a") as file:
            file.write(json.dumps(line) + "\n")
        time.sleep(float(seconds))
        answer = b"the receiver says no"
        if status == "200":
            answer = (directory / "answer").read_bytes() if (directory / "answer").exists() else b"{}"
        self.send_response(int(status))
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    def handle_error(self, *_):
        """Clients that do not believe the certificate, or speak no TLS, are what is tested."""


server = Server(("127.0.0.1", port), Receiver)
if len(sys.argv) > 3:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[3])
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
server.serve_forever()
