"""Croissant: the JSON-LD by which catalogues and loaders of other projects understand a data file (ML Commons Croissant Format, version 1.0)."""

import json
import re
from collections.abc import Sequence
from typing import Any

CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""The terms of version 1.0, as its specification lists them for every file to repeat."""

FORMATS = {
    ".jsonl": ["application/jsonlines"],
    ".jsonl.gz": ["application/gzip", "application/jsonlines"],
    ".parquet": ["application/x-parquet"],
}
"""MIME types by the endings that records are written with."""

MESSAGES = ("prompt", "chosen", "rejected", "completion")
TYPES = {"label": "sc:Boolean", "weight": "sc:Float", "margin": "sc:Float"}


def croissant(name: str, *, id: str, parents: Sequence[str], step: str, records: int, fields: Sequence[str], sha256: str, created: str) -> str:
    """The metadata of the data file `name` as text: the same for the same arguments, so that it can be checked.

    The data set's id and its parents' stand as `identifier` and `isBasedOn`. Messages are repeated fields with `role` and `content`; what else a
    message holds is not described, and neither is what `meta` holds.
    """
    ending = next((ending for ending in FORMATS if name.lower().endswith(ending)), "")
    file = {
        "@type": "cr:FileObject",
        "@id": "file",
        "name": name,
        "contentUrl": name,
        "encodingFormat": FORMATS.get(ending, []),
        "sha256": sha256,
    }
    dataset = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": re.sub(r"[^\w.-]", "-", name.removesuffix(ending), flags=re.ASCII),
        "description": f"{records} preference records, made by: {step}.",
        "identifier": urn(id),
        "isBasedOn": [urn(parent) for parent in parents],
        "version": f"1.0.0+{id[:12]}",  # the part after the plus is for names of builds
        "datePublished": created,
        "isLiveDataset": False,
        "distribution": [file],
        "recordSet": [
            {"@type": "cr:RecordSet", "@id": "records", "name": "records", "field": [_field(field, table=ending == ".parquet") for field in fields]}
        ],
    }
    return json.dumps(dataset, indent=2, ensure_ascii=False) + "\n"


def urn(id: str) -> str:
    """A data set's id as a name that is good everywhere."""
    return f"urn:likelier:sha256:{id}"


def _field(field: str, *, table: bool) -> dict[str, Any]:
    """One field of a record. In a table messages are JSON text."""
    described: dict[str, Any] = {"@type": "cr:Field", "@id": f"records/{field}", "name": field}
    source = {"fileObject": {"@id": "file"}, "extract": {"column": field}}
    if field not in MESSAGES or table:
        return {**described, "dataType": TYPES.get(field, "sc:Text"), "source": source}
    parts = [
        {
            "@type": "cr:Field",
            "@id": f"records/{field}/{part}",
            "name": part,
            "dataType": "sc:Text",
            "source": {**source, "transform": {"jsonPath": part}},
        }
        for part in ("role", "content")
    ]
    return {**described, "repeated": True, "subField": parts}
