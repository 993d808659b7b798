"""A key server to test, and a client of keyserver/PROTOCOL.md on jwcrypto, written from that page.

Server: `with Server() as s:` has one running on SQLite (or on `database`), s.admin(…) is a command of
kvfs-keyserver. Publisher and Runtime speak the two halves of the protocol; what a test wants altered it
passes as functions that get the object before it is signed, encrypted or sent.
"""
import base64
import contextlib
import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import sqlite3
import ssl
import struct
import subprocess
import time

from jwcrypto import jwe, jwk, jws

from kvfstest import ROOT, die_with_parent, kvfs, workdir

KEYSERVER = os.environ.get("KVFS_KEYSERVER",
                           os.path.join(ROOT, "build/release/keyserver/kvfs-keyserver"))
KC_TOOL = os.path.join(os.environ.get("KVFS_TOOLS", os.path.join(ROOT, "build/release/tests")),
                       "kc_tool")
DEPLOY = "/api/deploy/v1"
CHUNKED = "Transfer-Encoding"


def b64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text):
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_")


def sha(data):
    return hashlib.sha256(data if isinstance(data, bytes) else data.encode()).hexdigest()


class Refused(Exception):
    """An answer that is no success."""

    def __init__(self, status, envelope):
        super().__init__(f"{status} {envelope.get('error')}: {envelope.get('message')}")
        self.status, self.code, self.envelope = status, envelope.get("error"), envelope


class Http:
    """One connection, made again when the server closed it."""

    def __init__(self, server, host="localhost", cafile=None, port=None):
        self.server, self.host, self.port = server, host, port
        self.context = ssl.create_default_context(
            cafile=cafile or os.path.join(server.dir, "tls.crt"))
        self.connection = None
        self.seen = []  # (path, request, answer) for tests that look at the wire

    def raw(self, method, path, body=None, headers=None, timeout=120):
        """Status and bytes. `body` is bytes."""
        for attempt in (0, 1):
            if not self.connection:
                self.connection = http.client.HTTPSConnection(
                    self.host, self.port or self.server.port, context=self.context, timeout=timeout)
            try:
                self.connection.request(method, path, body=body, headers=headers or {},
                                        encode_chunked=bool(headers and CHUNKED in headers))
                answer = self.connection.getresponse()
                data = answer.read()
            except (http.client.HTTPException, ConnectionError, OSError):
                self.close()
                if attempt:
                    raise
                continue
            if answer.will_close:
                self.close()
            self.seen.append((path, body or b"", data))
            return answer.status, data
        raise AssertionError

    def call(self, method, path, body=None, token=None):
        """The data of an envelope, or Refused."""
        headers = {"Content-Type": "application/json"} if body is not None else {}
        if token:
            headers["Authorization"] = "Bearer " + token
        status, data = self.raw(method, path, None if body is None else json.dumps(body).encode(),
                                headers)
        envelope = json.loads(data)
        assert set(envelope) == {"success", "data", "message", "error", "timestamp"}, envelope
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", envelope["timestamp"])
        assert envelope["success"] == (status == 200) == (envelope["error"] is None), envelope
        if status != 200:
            raise Refused(status, envelope)
        return envelope["data"]

    def close(self):
        if self.connection:
            self.connection.close()
            self.connection = None


def columns(query):
    """Names for the columns of a query: as many as commas outside brackets before FROM, plus one."""
    depth = count = 0
    for i, char in enumerate(query):
        depth += (char == "(") - (char == ")")
        count += char == "," and depth == 0
        if depth == 0 and query[i:i + 6] == " FROM ":
            break
    return [f"c{i}" for i in range(count + 1)]


class Server:
    count = 0

    def __init__(self, *options, postgres=None, directory=None, database=None):
        Server.count += 1
        self.dir = directory or os.path.join(workdir(), f"keyserver{Server.count}")
        self.options = list(options)
        self.postgres = postgres
        self.database = database or (postgres and postgres.url)
        self.logfile = os.path.join(workdir(), f"keyserver{Server.count}.log")
        self.process = None
        self.port = 0
        self.thumbprint = ""

    def run(self, *arguments, check=True, **more):
        command = [KEYSERVER, *map(str, arguments), f"--dir={self.dir}"]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                timeout=300, check=False, **more)
        if check and result.returncode:
            raise AssertionError(f"{' '.join(command[1:])}: {result.stderr.strip()}")
        return result

    def admin(self, *arguments):
        out = self.run(*arguments, "--json").stdout
        return json.loads(out) if out.strip() else None

    def init(self):
        more = [f"--database={self.database}"] if self.database else []
        self.thumbprint = self.admin("init", *more)["thumbprint"]
        return self

    def start(self):
        options = [f"--listen=127.0.0.1:{self.port}", "--rate-login=0", "--rate-attest=0", "--settle=1",
                   *self.options]
        with open(self.logfile, "ab") as log:
            self.process = subprocess.Popen(
                [KEYSERVER, "serve", f"--dir={self.dir}", *options], stdout=subprocess.PIPE,
                stderr=log, preexec_fn=die_with_parent)
        line = self.process.stdout.readline().decode()
        found = re.fullmatch(r"kvfs-keyserver \S+ on port (\d+), thumbprint (\S+)\n", line)
        assert found, f"the server did not start: {line!r} {self.log()}"
        assert found[2] == self.thumbprint
        self.port = int(found[1])
        return self

    def replica(self):
        """Another server of the same database, keys and certificate; to be started."""
        other = Server(*self.options, postgres=self.postgres, database=self.database)
        shutil.copytree(self.dir, other.dir)
        other.thumbprint = self.thumbprint
        return other

    def log(self):
        with open(self.logfile, encoding="utf-8", errors="replace") as file:
            return file.read()

    def stop(self, how=signal.SIGTERM):
        if self.process:
            self.process.send_signal(how)
            code = self.process.wait(60)
            self.process.stdout.close()
            self.process = None
            return code
        return 0

    def http(self, **more):
        return Http(self, **more)

    def audit(self, event=None, last=10000):
        return [row for row in self.admin("audit", "list", f"--last={last}")
                if event is None or row["event"] == event]

    def sql(self, text):
        """What nobody can do through the server."""
        if self.postgres:
            self.postgres.sql(text, "keyserver")
            return
        with contextlib.closing(sqlite3.connect(os.path.join(self.dir, "keyserver.db"),
                                                timeout=30)) as database:
            database.execute(text)
            database.commit()

    def select(self, text):
        """The rows of a query, as JSON."""
        if self.postgres:
            return self.postgres.sql(f"SELECT COALESCE(json_agg(a), '[]') FROM (SELECT"
                                     f" json_build_array({','.join(columns(text))}) a FROM"
                                     f" ({text}) AS q({','.join(columns(text))})) r", "keyserver")
        with contextlib.closing(sqlite3.connect(os.path.join(self.dir, "keyserver.db"),
                                                timeout=30)) as database:
            return json.dumps(database.execute(text).fetchall())

    def database_bytes(self):
        """All that lies on the disk."""
        if self.postgres:
            self.postgres.sql("CHECKPOINT")
            where = self.postgres.data
        else:
            where = self.dir
        for directory, _, names in os.walk(where):
            for name in names:
                if self.postgres or name.startswith("keyserver.db"):
                    with open(os.path.join(directory, name), "rb") as file:
                        yield file.read()

    def user(self, name, *scopes):
        """Adds a user; his API keys in the order of the scopes."""
        self.admin("user", "add", name)
        return [self.admin("apikey", "add", name, f"--scope={scope}")["api_key"]
                for scope in scopes]

    def __enter__(self):
        return self.init().start()

    def __exit__(self, kind, value, trace):
        code = self.stop()
        found = re.search(r"(ERROR|WARNING): \w+Sanitizer|runtime error:", self.log())
        assert not found, self.log()[-3000:]
        if kind is None:
            assert code == 0, f"the server ended with {code}: {self.log()[-2000:]}"


# ---- models ----

def write_plain(path, tensors):
    """A plain safetensors file of {name: bytes}."""
    header, at = {}, 0
    for name, data in tensors.items():
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(tensors.values()))


def header_of(path):
    with open(path, "rb") as file:
        prefix = file.read(8)
        return prefix + file.read(struct.unpack("<Q", prefix)[0])


def encrypt(plain, out, keys, *options):
    """kvfs encrypt with the producer's two JWKs."""
    keyfile = out + ".jwks"
    with open(keyfile, "w", encoding="utf-8") as file:
        json.dump({"keys": keys}, file)
    kvfs("encrypt", plain, "-o", out, "--key", keyfile, *options)
    return out


def with_header(source, header, to):
    """A copy of an encrypted file with another header."""
    with open(source, "rb") as file:
        data = file.read()
    body = data[8 + struct.unpack("<Q", data[:8])[0]:]
    with open(to, "wb") as file:
        file.write(header + body)


class Publisher:
    """KoalaVault's client, as far as it is known, and our generations."""

    def __init__(self, server, api_key):
        self.http = server.http()
        self.session = self.http.call("POST", "/api/auth/inference-login", {"api_key": api_key})
        self.user = self.session["username"]
        assert self.session["token_type"] == "Bearer"

    def call(self, method, path, body=None):
        return self.http.call(method, path, body, self.session["access_token"])

    def model(self, name, rest=""):
        return f"/api/resources/{self.user}/models/{name}{rest}"

    def create(self, name, **more):
        return self.call("POST", f"/api/resources/{self.user}/models", {"name": name, **more})

    def detail(self, name):
        return self.call("GET", self.model(name))

    def keys(self, name):
        return [self.call("GET", self.model(name, "/master-key"))["master_key_jwk"],
                self.call("GET", "/api/users/sign-key")["private_key_jwk"]]

    def upload(self, name, headers, stage=None):
        body = {"files": [{"filename": path, "file_header": base64.b64encode(data).decode()}
                          for path, data in headers.items()]}
        if stage is not None:
            body["stage"] = stage
        return self.call("POST", self.model(name, "/files"), body)

    def publish(self, name, headers, manifest=None, stage="stage"):
        self.upload(name, headers, stage)
        return self.call("POST", self.model(name, "/generations"), {
            "stage": stage, "generation": self.detail(name)["next_generation"],
            "manifest": manifest})


# ---- the runtime ----

def new_key():
    return jwk.JWK.generate(kty="EC", crv="P-256")


def public(key):
    full = json.loads(key.export_public())
    return {name: full[name] for name in ("kty", "crv", "x", "y")}


def sign(key, typ, payload, header=None):
    protected = header or {"alg": "ES256", "kid": key.thumbprint(), "typ": typ}
    token = jws.JWS(json.dumps(payload).encode())
    token.add_signature(key, None, json.dumps(protected))
    return json.loads(token.serialize())


def verify(key, typ, token):
    assert set(token) == {"protected", "payload", "signature"}, set(token)
    header = json.loads(unb64(token["protected"]))
    assert header == {"alg": "ES256", "kid": key.thumbprint(), "typ": typ}, header
    checked = jws.JWS()
    checked.deserialize(json.dumps(token), key)
    return json.loads(checked.payload)


def encrypt_for(key, typ, payload, header=None):
    protected = header or {"alg": "ECDH-ES+A256KW", "enc": "A256GCM", "kid": key.thumbprint(),
                           "typ": typ}
    token = jwe.JWE(json.dumps(payload).encode(), json.dumps(protected))
    token.add_recipient(key)
    return json.loads(token.serialize())


def decrypt_with(key, typ, token):
    assert set(token) == {"protected", "header", "encrypted_key", "iv", "ciphertext", "tag"}
    assert set(token["header"]) == {"epk"}
    header = json.loads(unb64(token["protected"]))
    assert header == {"alg": "ECDH-ES+A256KW", "enc": "A256GCM", "kid": key.thumbprint(),
                      "typ": typ}, header
    opened = jwe.JWE()
    opened.deserialize(json.dumps(token), key)
    return json.loads(opened.payload)


MEASUREMENTS = {"profile": "none", "items": [
    {"kind": "library", "name": "libc.so.6", "sha256": sha("libc")},
    {"kind": "executable", "name": "kvfs", "sha256": sha("kvfs")}]}


def measurement(measurements):
    lines = sorted((i["kind"].encode(), i["name"].encode(), i["sha256"].encode())
                   for i in measurements["items"])
    return sha(b"kvfs-measurement-v1\nprofile " + measurements["profile"].encode() + b"\n"
               + b"".join(b"%s %s %s\n" % (kind, digest, name) for kind, name, digest in lines))


def headers_digest(headers):
    return sha(b"kvfs-headers-v1\n" + b"".join(
        b"%s %s\n" % (digest, path) for path, digest in
        sorted((h["path"].encode(), h["sha256"].encode()) for h in headers)))


def same(value):
    return value


class Runtime:
    """A runtime with its three keys. Raises AssertionError where a client must not go on."""

    def __init__(self, server, api_key, measurements=None, pin=None):
        self.http = server.http()
        self.pin = pin or server.thumbprint
        self.api_key = api_key
        self.measurements = measurements or MEASUREMENTS
        self.keys = {name: new_key() for name in ("sign", "decrypt", "audit")}
        self.thumbs = {name: key.thumbprint() for name, key in self.keys.items()}
        self.guard = {"state": "off", "findings": []}
        self.identity = None
        self.last_challenge = None  # of the last evidence that was taken
        self.calls = {}

    def call(self, method, path, body=None):
        return self.http.call(method, DEPLOY + path, body)

    def challenge(self, versions=(1,)):
        data = self.call("POST", "/challenge", {"versions": list(versions)})
        identity = jwk.JWK(**data["identity"])
        assert identity.thumbprint() == self.pin, "another server's identity"
        self.identity = identity
        return verify(identity, "kvfs-challenge+jws", data["signed"])

    def evidence_digest(self, challenge, measurements=None):
        lines = ["kvfs-evidence-v1", challenge, self.thumbs["sign"], self.thumbs["decrypt"],
                 self.thumbs["audit"], measurement(measurements or self.measurements)]
        return sha("".join(line + "\n" for line in lines))

    def binding(self, challenge, lease=None, key=None):
        return sign(key or self.keys["sign"], "kvfs-binding+jws", {
            "version": 1, "challenge": challenge, "lease": lease,
            "evidence": self.evidence_digest(challenge)})

    def common(self, challenge, lease):
        return {"version": 1, "versions": [1], "challenge": challenge, "api_key": self.api_key,
                "measurements": self.measurements, "guard": self.guard, "hardware": None,
                "binding": self.binding(challenge, lease)}

    def seal(self, given, typ, plain, header=None):
        return encrypt_for(jwk.JWK(**given["server_key"]), typ, plain, header)

    def evidence(self, given, models, change=same):
        plain = {**self.common(given["challenge"], None), "models": list(models),
                 "keys": {name: public(key) for name, key in self.keys.items()}, "host": "test"}
        return self.seal(given, "kvfs-evidence+jwe", change(plain))

    def attest(self, *models, change=same, given=None):
        """{model: result}"""
        given = given or self.challenge()
        data = self.call("POST", "/attest", self.evidence(given, models, change))
        answer = verify(self.identity, "kvfs-ticket+jws", data["signed"])
        assert answer["challenge"] == given["challenge"]
        assert answer["evidence"] == self.evidence_digest(given["challenge"])
        assert [r["model"] for r in answer["results"]] == list(models)
        self.last_challenge = given["challenge"]
        return {r["model"]: r for r in answer["results"]}

    def ticket(self, model, **more):
        result = self.attest(model, **more)[model]
        if "ticket" not in result:
            raise Refused(200, {"error": result["error"], "message": result["message"]})
        return result["ticket"]

    def proof(self, ticket, headers, call=None, change=same, key=None):
        call = call or self.calls.get(ticket, 0) + 1
        pairs = [{"path": path, "sha256": sha(data)} for path, data in headers.items()]
        return sign(key or self.keys["sign"], "kvfs-proof+jws", change({
            "version": 1, "ticket_sha256": sha(ticket), "call": call, "headers": pairs,
            "headers_sha256": headers_digest(pairs)}))

    def ask(self, ticket, headers, **more):
        """One call of /keys: ("sync", payload, {path: header}) or ("release", payload, keys)."""
        pairs = [{"path": path, "sha256": sha(data)} for path, data in headers.items()]
        data = self.call("POST", "/keys",
                         {"ticket": ticket, "proof": self.proof(ticket, headers, **more)})
        call = self.calls[ticket] = self.calls.get(ticket, 0) + 1
        kind = json.loads(unb64(json.loads(json.dumps(data["signed"]))["payload"]))["decision"]
        answer = verify(self.identity, f"kvfs-{kind}+jws", data["signed"])
        assert answer["version"] == 1
        assert answer["ticket_sha256"] == sha(ticket) and answer["call"] == call
        if kind == "sync":
            return kind, answer, self.take_sync(answer, data["headers"], headers)
        assert set(data) == {"signed"}
        assert answer["headers_sha256"] == headers_digest(pairs)
        assert answer["challenge"] == self.last_challenge
        assert answer["keys"] == self.thumbs and answer["assurance"] == "self-reported"
        keys = decrypt_with(self.keys["decrypt"], "kvfs-keys+jwe", answer["release"])
        for name in ("ticket_sha256", "model", "generation"):
            assert keys[name] == answer[name]
        return kind, answer, keys

    @staticmethod
    def take_sync(answer, sent, have):
        got = {h["path"]: base64.b64decode(h["header"]) for h in sent}
        assert headers_digest(answer["headers"]) == answer["headers_sha256"]
        result = {}
        for entry in answer["headers"]:
            data = got.pop(entry["path"], have.get(entry["path"]))
            assert data is not None and sha(data) == entry["sha256"], entry["path"]
            result[entry["path"]] = data
        assert not got
        return result

    def get(self, model, headers):
        """The whole exchange: (release payload, keys, the headers to use)."""
        ticket = self.ticket(model)
        for _ in range(3):
            kind, answer, more = self.ask(ticket, headers)
            if kind == "release":
                return answer, more, headers
            headers = more
        raise AssertionError("no release")

    def renewal(self, given, lease, change=same):
        return self.seal(given, "kvfs-renewal+jwe",
                         change({**self.common(given["challenge"], lease), "lease": lease}))

    def renew(self, lease, change=same, given=None):
        given = given or self.challenge()
        data = self.call("POST", "/renew", self.renewal(given, lease, change))
        answer = verify(self.identity, "kvfs-lease+jws", data["signed"])
        assert answer["challenge"] == given["challenge"] and answer["lease"]["id"] == lease
        assert answer["evidence"] == self.evidence_digest(given["challenge"])
        return answer

    def wait(self, lease, generation, timeout=30, http=None):
        nonce = b64url(os.urandom(18))
        data = (http or self.http).call(
            "GET", f"{DEPLOY}/leases/{lease}/wait?nonce={nonce}&generation={generation}"
                   f"&timeout={timeout}")
        answer = verify(self.identity, "kvfs-state+jws", data["signed"])
        assert answer["nonce"] == nonce and answer["lease"] == lease
        return answer

    def end(self, lease):
        return self.call("POST", f"/leases/{lease}/end", {
            "proof": sign(self.keys["sign"], "kvfs-end+jws", {"version": 1, "lease": lease})})

    def audit(self, lease, first, previous, records, head=None, key=None):
        if head is None:
            head = previous
            for number, record in enumerate(records, first):
                head = sha(f"{head}\n{number}\n{record}")
        data = self.call("POST", "/audit", {"lease": lease, "records": sign(
            key or self.keys["audit"], "kvfs-audit+jws", {
                "version": 1, "lease": lease, "first": first, "previous": previous,
                "records": records, "head": head})})
        answer = verify(self.identity, "kvfs-head+jws", data["signed"])
        assert answer["lease"] == lease
        return answer


# ---- keyclient ----

def kc_exchange(server, key, source, pin=None, model="alice/m", seen=0, alter=None, shards=None):
    """The lines that kc_tool ended with. alter(path, body) may replace an answer's body. `shards`:
    all of the directory."""
    http = server.http()
    if shards is None:
        shards = sorted(name for name in os.listdir(source) if name.endswith(".safetensors"))
    with subprocess.Popen([KC_TOOL, "exchange", pin or server.thumbprint, model, source, str(seen),
                           *shards], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                          env={**os.environ, "KEY": key}) as tool:
        said = []
        for line in tool.stdout:
            if not line.startswith(("GET ", "POST ")):
                said.append(line.rstrip("\n"))
                continue
            method, path, body = line.rstrip("\n").split(" ", 2)
            status, answer = http.raw(method, path, body.encode())
            text = answer.decode()
            if alter:
                text = alter(path.rsplit("/", 1)[1], text)
            tool.stdin.write(f"{status} {text}\n".replace("\n", "") + "\n")
            tool.stdin.flush()
    return said


@contextlib.contextmanager
def refused(code, status=None):
    """What is inside must be refused with this code."""
    try:
        yield
    except Refused as error:
        assert error.code == code, f"refused with {error}, not {code}"
        assert status is None or error.status == status, f"{error.status}, not {status}"
    else:
        raise AssertionError(f"not refused ({code})")


def timed(function, *arguments, **more):
    start = time.monotonic()
    result = function(*arguments, **more)
    return time.monotonic() - start, result
