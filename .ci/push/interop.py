"""Checks what we send against PyPI's `http-ece`, which decrypts the body, and `py-vapid`, which verifies the signature.

Usage: KEYS='{"publicKey":…,"privateKey":…}' python interop.py COMMAND [ARGUMENT…], where the command is our side
(shared/push/examples/send.rs).
"""

import base64
import datetime
import http.server
import json
import os
import subprocess
import sys
import threading

import http_ece
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from py_vapid import Vapid02

SUBJECT = "mailto:operator@twitch-polls.net"
PAYLOADS = ['{"type":"token:refresh_failed"}', "é ß 漢字 עברית 😀", "x", "y" * 3052]


def encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def same(what: str, found: object, expected: object) -> None:
    if found != expected:
        sys.exit(f"{what}: found {found!r}, expected {expected!r}")


received: list[tuple[dict[str, str], bytes]] = []


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        received.append(({name.lower(): value for name, value in self.headers.items()}, body))
        self.send_response(201)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


keys = json.loads(os.environ["KEYS"])
device = ec.generate_private_key(ec.SECP256R1())
secret = os.urandom(16)
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
origin = f"http://127.0.0.1:{server.server_port}"
now = datetime.datetime.now(datetime.timezone.utc)
request = {
    **keys,
    "subject": SUBJECT,
    "now": now.isoformat(),
    "endpoint": f"{origin}/push/device",
    "p256dh": encode(device.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)),
    "auth": encode(secret),
    "topic": "topic",
}
lines = "".join(json.dumps({**request, "payload": payload}) + "\n" for payload in PAYLOADS)
ours = subprocess.run(sys.argv[1:], input=lines, stdout=subprocess.PIPE, encoding="utf-8", check=True)
same("our side's answers", ours.stdout.splitlines(), ["Accepted"] * len(PAYLOADS))
same("the requests", len(received), len(PAYLOADS))

for (headers, body), payload in zip(received, PAYLOADS):
    for name, expected in [
        ("ttl", "86400"),
        ("urgency", "high"),
        ("topic", "topic"),
        ("content-encoding", "aes128gcm"),
        ("content-type", "application/octet-stream"),
    ]:
        same(name, headers.get(name), expected)
    plain = http_ece.decrypt(body, private_key=device, auth_secret=secret, version="aes128gcm")
    same("the text", plain.decode(), payload)

    # It takes RFC 8292's own form, with a space behind the comma, only without that space.
    authorization = headers["authorization"].replace(", ", ",")
    same("whether py-vapid believes the signature", Vapid02.verify(authorization), True)
    token, key = authorization.removeprefix("vapid t=").split(",k=")
    same("the key", key, keys["publicKey"])
    head, claims = (json.loads(decode(part)) for part in token.split(".")[:2])
    same("the token's head", head, {"typ": "JWT", "alg": "ES256"})
    same("the audience", claims["aud"], origin)
    same("the subject", claims["sub"], SUBJECT)
    same("whether it expires within a day", 0 < claims["exp"] - now.timestamp() <= 86400, True)

    # The checks can fail.
    head, claims, signature = token.split(".")
    changed = encode(decode(claims).replace(b"mailto", b"mailtp"))
    same("a changed token", Vapid02.verify(f"vapid t={head}.{changed}.{signature},k={key}"), False)
    try:
        http_ece.decrypt(body[:-1] + bytes([body[-1] ^ 1]), private_key=device, auth_secret=secret, version="aes128gcm")
        sys.exit("http-ece decrypts a damaged body")
    except (InvalidTag, http_ece.ECEException):
        pass

print(f"http-ece decrypts and py-vapid believes {len(PAYLOADS)} messages.")
