"""What test_publish.py needs besides ksclient.py: a proxy between kvfs and the key server that sees
all and may do anything at a request, a forward proxy, certificates, and a producer's kvfs."""
import datetime
import http.server
import json
import os
import pty
import select
import socket
import socketserver
import ssl
import subprocess
import threading

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from kvfstest import KVFS, workdir


class Drop(Exception):
    """Raised by a hook: the connection is closed without an answer."""


class Answer(Exception):
    """Raised by a hook: this is answered instead."""

    def __init__(self, status, body=b"", headers=()):
        super().__init__(status)
        self.status, self.body, self.headers = status, body, headers


class Between:
    """Terminates TLS with the server's own certificate and passes requests on. before(request) and
    after(request) are hooks; a request is (number, "METHOD /path"), numbers from 1 on after reset()."""

    def __init__(self, server, cert=None, key=None):
        self.server = server
        self.before = self.after = lambda number, what: None
        self.seen = []       # "METHOD /path"
        self.recorded = []   # bytes of bodies and answers, and Authorization
        between = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                between.seen.append(f"{self.command} {self.path}")
                number = len(between.seen)
                try:
                    between.recorded.append(body + str(self.headers.get("Authorization")).encode())
                    between.before(number, between.seen[-1])
                    status, data = self.forward(body)
                    between.recorded.append(data)
                    between.after(number, between.seen[-1])
                    headers = ()
                except Answer as answer:
                    status, data, headers = answer.status, answer.body, answer.headers
                except Drop:
                    self.close_connection = True
                    return
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def forward(self, body):
                headers = {name: value for name, value in self.headers.items()
                           if name in ("Authorization", "Content-Type")}
                link = between.server.http()
                try:
                    return link.raw(self.command, self.path, body or None, headers)
                except OSError as error:
                    raise Drop from error
                finally:
                    link.close()

            do_GET = do_POST = do_DELETE = do

        class Listener(socketserver.ThreadingMixIn, http.server.HTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                pass

            def shutdown_request(self, request):
                try:
                    request.close()
                except OSError:
                    pass

        self.listener = Listener(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert or os.path.join(server.dir, "tls.crt"),
                                key or os.path.join(server.dir, "tls.key"))
        self.listener.socket = context.wrap_socket(self.listener.socket, server_side=True,
                                                   do_handshake_on_connect=False)
        threading.Thread(target=self.listener.serve_forever, daemon=True).start()
        self.url = f"https://localhost:{self.listener.server_port}"

    def reset(self, before=None, after=None):
        self.seen.clear()
        self.before = before or (lambda number, what: None)
        self.after = after or (lambda number, what: None)

    def close(self):
        self.listener.shutdown()
        self.listener.server_close()


class ForwardProxy:
    """An HTTP proxy that knows CONNECT only, and records."""

    def __init__(self):
        self.asked, self.bytes = [], []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            client, _ = self.socket.accept()
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client):
        head = b""
        while b"\r\n\r\n" not in head:
            part = client.recv(4096)
            if not part:
                return
            head += part
        self.asked.append(head)
        host, port = head.split()[1].decode().rsplit(":", 1)
        with client, socket.create_connection((host, int(port))) as server:
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            ends = {client: server, server: client}
            while True:
                for end in select.select(list(ends), [], [])[0]:
                    data = end.recv(65536)
                    if not data:
                        return
                    self.bytes.append(data)
                    ends[end].sendall(data)


def certificate(name, days_from, days_to, host="localhost"):
    """A self-signed one, valid between two days from now: paths of certificate and key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.datetime.utcnow()
    made = (x509.CertificateBuilder().subject_name(subject).issuer_name(subject)
            .public_key(key.public_key()).serial_number(x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(days=days_from))
            .not_valid_after(now + datetime.timedelta(days=days_to))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), False)
            .sign(key, hashes.SHA256()))
    paths = [os.path.join(workdir(), name + end) for end in (".crt", ".key")]
    with open(paths[0], "wb") as file:
        file.write(made.public_bytes(serialization.Encoding.PEM))
    with open(paths[1], "wb") as file:
        file.write(key.private_bytes(serialization.Encoding.PEM,
                                     serialization.PrivateFormat.PKCS8,
                                     serialization.NoEncryption()))
    return paths


class Producer:
    """kvfs with a home of its own. Everything that it says is kept."""
    count = 0

    def __init__(self, url, ca, key):
        Producer.count += 1
        self.url, self.ca, self.key = url, ca, key
        self.home = os.path.join(workdir(), f"home{Producer.count}")
        os.makedirs(self.home)
        self.said = []
        self.running = None
        self.seen = []  # (cmdline, environ) of processes, as look() found them

    @property
    def file(self):
        return os.path.join(self.home, ".config/kvfs/logins.json")

    def token(self):
        with open(self.file, encoding="utf-8") as file:
            return json.load(file)[0]["refresh_token"]

    def age(self):
        """The access token is not used any more."""
        with open(self.file, encoding="utf-8") as file:
            entries = json.load(file)
        entries[0]["access_expires"] = "2026-01-01T00:00:00Z"
        with open(self.file, "w", encoding="utf-8") as file:
            json.dump(entries, file)

    def run(self, *arguments, code=0, env=None, stdin="", **more):
        """Any exit code is right where code is None."""
        environ = {k: v for k, v in os.environ.items()
                   if not k.lower().endswith("_proxy") and k != "XDG_CONFIG_HOME"}
        with subprocess.Popen([KVFS, *map(str, arguments)], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              env={**environ, "HOME": self.home, **(env or {})}, **more) as process:
            self.running = process
            out, err = process.communicate(stdin, timeout=300)
        self.said.append(out + err)
        result = subprocess.CompletedProcess(arguments, process.returncode, out, err)
        assert "Sanitizer" not in err and "runtime error" not in err, err
        assert code is None or result.returncode == code, result
        return result

    def look(self):
        """For a hook: what the machine's users can see of the running process."""
        found = []
        for name in ("cmdline", "environ"):
            with open(f"/proc/{self.running.pid}/{name}", "rb") as file:
                found.append(file.read())
        self.seen.append(found)

    def login(self, *more, code=0, **extra):
        return self.run("login", self.url, "--ca", self.ca, *more, code=code, stdin=self.key + "\n",
                        **extra)

    def publish(self, source, out, *more, **extra):
        return self.run("publish", source, "-o", out, "--server", self.url, *more, **extra)

    def published(self, source, out, *more, **extra):
        """What --json says."""
        return json.loads(self.publish(source, out, "--json", *more, **extra).stdout)


def typed(producer, *arguments, text):
    """kvfs at a terminal, where somebody types: exit code, and all that the terminal showed."""
    main, side = pty.openpty()
    with subprocess.Popen([KVFS, *arguments], stdin=side, stdout=side, stderr=side,
                          env={**os.environ, "HOME": producer.home}, start_new_session=True) as run:
        os.close(side)
        shown = b""
        while True:
            try:
                part = os.read(main, 65536) if select.select([main], [], [], 30)[0] else b""
            except OSError:
                break
            if not part:
                break
            if b"API key: " in part:
                os.write(main, text.encode())
            shown += part
    os.close(main)
    return run.returncode, shown.decode()
