"""Reads a JSON list of SAM templates (text) from stdin; writes a list of {"raw", "result"} or {"error"}, in JSON."""
import json
import os
import sys

os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")

from samtranslator.model.exceptions import InvalidDocumentException
from samtranslator.translator.transform import transform
from samtranslator.yaml_helper import yaml_parse


class Policies:
    """The policies that SAM may refer to by name: none."""

    def load(self):
        return {}


def one(text):
    try:
        template = yaml_parse(text)
        raw = json.loads(json.dumps(template))
        template["Globals"]["Function"]["CodeUri"] = "s3://bucket/key"  # as after the upload
        return {"raw": raw, "result": transform(template, {}, Policies())}
    except (InvalidDocumentException, ValueError) as e:
        return {"error": str(e) + " " + " ".join(c.message for c in getattr(e, "causes", []))}


json.dump([one(text) for text in json.load(sys.stdin)], sys.stdout)
