"""What the JSON interface takes and answers, as an OpenAPI 3.1 description."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import xraylab
from xraylab.serving.uploads import Limits

_NUMBER, _TEXT, _BOOLEAN = {"type": "number"}, {"type": "string"}, {"type": "boolean"}
_METRIC = {
    "type": "object",
    "description": "A rate, its 95% interval over patients, and how many studies; value null with a reason where undefined.",
    "properties": {
        "value": {"type": ["number", "null"]}, "low": {"type": ["number", "null"]}, "high": {"type": ["number", "null"]},
        "n": {"type": "integer"}, "reason": {"type": ["string", "null"]},
    },
    "required": ["value", "n"],
}  # fmt: skip
_POINT = {
    "type": "object",
    "properties": {
        "rule": _TEXT, "threshold": {"type": ["number", "null"]}, "call": {"type": ["boolean", "null"]},
        "reason": {"type": ["string", "null"]},
        "split": {"type": ["string", "null"], "description": "Where the rates were measured; null: not known."},
        "selected_on": {"type": ["boolean", "null"]},
        "sensitivity": _METRIC, "specificity": _METRIC, "ppv": _METRIC, "npv": _METRIC,
    },
    "required": ["rule", "threshold", "call"],
}  # fmt: skip
_FINDING = {
    "type": "object",
    "properties": {
        "probability": {"type": "number", "minimum": 0, "maximum": 1, "description": "Calibrated where calibrated is true."},
        "calibrated": _BOOLEAN, "uncalibrated": {"type": "number", "minimum": 0, "maximum": 1},
        "logit": {"type": "number", "description": "Natural log-odds before calibration."},
        "call": _BOOLEAN, "operating_point": _TEXT,
        "threshold": {"type": "number", "description": "Of the operating point, on the scale of probability."},
        "points": {"type": "object", "additionalProperties": {"$ref": "#/components/schemas/Point"}},
    },
    "required": ["probability", "calibrated", "uncalibrated", "logit", "call", "operating_point", "threshold", "points"],
}  # fmt: skip
_IMAGE = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "description": "As it was sent."},
        "slice": {"type": ["integer", "null"], "description": "From 1 on, of a file of several."},
        "width": {"type": "integer"}, "height": {"type": "integer"},
        "shares": {"type": "object", "additionalProperties": _NUMBER, "description": "By finding, what the image adds."},
        "peaks": {"type": "object", "description": "By finding, x and y of the map's peak in the image's own pixels."},
        "picture": {"type": "string", "description": "PNG as a data URL, where pictures=true."},
        "maps": {"type": "object", "additionalProperties": _TEXT, "description": "By finding, a grey PNG as a data URL."},
    },
    "required": ["name", "slice", "width", "height", "shares", "peaks"],
}  # fmt: skip
_ANSWER = {
    "type": "object",
    "properties": {
        "id": _TEXT,
        "findings": {"type": "object", "additionalProperties": {"$ref": "#/components/schemas/Finding"}},
        "images": {"type": "array", "items": {"$ref": "#/components/schemas/Image"}},
        "maps": {
            "type": "object",
            "description": "By finding, the method, and what shares and rest add up to: its logit, its probability, or members.",
        },
        "distribution": {
            "type": ["object", "null"],
            "description": "How far the study is from those of training; unlike them above threshold; null: not known.",
            "properties": {"distance": _NUMBER, "threshold": _NUMBER},
        },
        "skipped": {"type": "array", "items": {"type": "object", "properties": {"file": _TEXT, "reason": _TEXT}}},
        "warnings": {"type": "array", "items": _TEXT},
        "model": {"type": "object"}, "synthetic": _BOOLEAN, "notice": _TEXT,
    },
    "required": ["id", "findings", "images", "maps", "skipped", "warnings", "model", "synthetic", "notice"],
}  # fmt: skip
_ERROR = {
    "type": "object",
    "properties": {"error": _TEXT, "reason": {"type": "string", "description": "A word for programs."}},
    "required": ["error", "reason"],
}


def description(labels: Sequence[str], limits: Limits, token: bool) -> dict[str, Any]:
    """The OpenAPI description of a served run.

    Args:
        labels: its findings.
        limits: of a request, which the words name.
        token: whether who asks must give one.
    """
    said = {
        "400": "Nothing was sent, or what cannot be read as a form.", "401": "The token is missing or wrong.",
        "403": "Another host or origin.", "408": f"Not here after {limits.upload_seconds:g} s.",
        "413": f"More than {limits.megabytes:g} MB, {limits.files} files or {limits.megapixels:g} megapixels.",
        "415": "Not multipart/form-data.",
        "422": "The study is not predicted: unreadable, of several studies, of another view, or unlike the training data.",
        "503": "Too many are waiting; see Retry-After.",
    }  # fmt: skip
    form = {
        "type": "object",
        "properties": {
            "files": {"type": "array", "items": {"type": "string", "format": "binary"}, "description": "The files of one study."},
            "findings": {"type": "string", "description": "Whose maps are wanted, comma-separated; none: those that are called."},
            "pictures": {"type": "string", "enum": ["true", "false"], "description": "Whether to answer pictures and maps."},
            "sample": {"type": "string", "description": "The name of a synthetic sample, in the place of files."},
        },
    }
    predict = {
        "summary": f"Predict one study: {', '.join(labels)}.",
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}},
        "responses": {"200": _response("The prediction.", "Answer")}
        | {code: _response(text, "Error") for code, text in said.items()},
    }
    finding = {"name": "finding", "in": "query", "required": True, "schema": {"type": "string", "enum": list(labels)}}
    value = {"name": "threshold", "in": "query", "required": True, "schema": {"type": "number", "minimum": 0, "maximum": 1}}
    threshold = _get("What another threshold would have done on validation.") | {"parameters": [finding, value]}
    threshold["responses"] = {**threshold["responses"], "400": _response(said["400"], "Error")}
    schemas = {"Answer": _ANSWER, "Finding": _FINDING, "Point": _POINT, "Image": _IMAGE, "Error": _ERROR}
    components: dict[str, Any] = {"schemas": schemas}
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "xraylab", "version": xraylab.__version__,
            "description": "Predictions of one model. Research only, no medical device. Nothing that is sent is kept.",
        },
        "paths": {
            "/api/predict": {"post": predict},
            "/api/threshold": {"get": threshold},
            "/api/model": {"get": _get("What the model is, and the limits.")},
            "/api/samples": {"get": _get("Synthetic studies that can be tried.")},
            "/healthz": {"get": _get("Whether the server is up.")},
        },
        "components": components,
    }  # fmt: skip
    if token:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"token": []}]
    return found


def _response(text: str, schema: str) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}}


def _get(summary: str) -> dict[str, Any]:
    return {"summary": summary, "responses": {"200": {"description": summary, "content": {"application/json": {}}}}}
