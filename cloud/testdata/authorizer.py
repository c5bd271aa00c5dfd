"""Decides as an authorizer of the reference deployment does, by the public key alone.

Standard input: lines of JSON with "item" (as DynamoDB puts it on the wire), "header" (the value of device-csr) and "form" (of the
item's pubkey: "base64-pem" or "pem"). Standard output: a line for each: "allow", "deny", or "unreadable" and why.
"""

import base64
import json
import sys

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key


def spki(key):
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def decide(asked):
    stored = asked["item"]["pubkey"]["S"].encode("ascii")
    if asked["form"] == "base64-pem":
        stored = base64.b64decode(stored, validate=True)
    request = x509.load_pem_x509_csr(base64.b64decode(asked["header"], validate=True))
    return "allow" if spki(load_pem_public_key(stored)) == spki(request.public_key()) else "deny"


for line in sys.stdin:
    try:
        print(decide(json.loads(line)), flush=True)
    except ValueError as unreadable:
        print("unreadable", " ".join(str(unreadable).split()), flush=True)
