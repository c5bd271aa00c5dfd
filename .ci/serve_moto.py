"""Serves moto on a free port of the loopback interface, which it writes to the file that is named."""

import os
import sys

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from moto.core.config import default_user_config
from moto.kms.utils import ECDSAPrivateKey
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

# The id of a certificate is then the hash of its DER, as that of AWS is.
default_user_config["iot"] = {"use_valid_cert": True}

# moto hashes a digest once more, whatever MessageType says.
sign_raw = ECDSAPrivateKey.sign


def sign(self, message, signing_algorithm):
    if signing_algorithm == "ECDSA_SHA_256" and len(message) == 32:
        return self.private_key.sign(message, ec.ECDSA(Prehashed(hashes.SHA256())))
    return sign_raw(self, message, signing_algorithm)


ECDSAPrivateKey.sign = sign

server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=True)
with open(sys.argv[1] + ".new", "w") as f:
    f.write(str(server.port))
os.rename(sys.argv[1] + ".new", sys.argv[1])
server.serve_forever()
