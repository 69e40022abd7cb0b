"""Croissant metadata of a published runs table: MLCommons' JSON-LD vocabulary, version 1.0
(https://docs.mlcommons.org/croissant/docs/croissant-spec.html)."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from precisionlm.columns import COLUMNS

VERSION = "http://mlcommons.org/croissant/1.0"
_OF_DTYPE = {"str": "sc:Text", "int": "sc:Integer", "float": "sc:Float", "bool": "sc:Boolean"}
# The names of the vocabulary, as the specification's appendix 1 wants them abbreviated in every file.
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
} | {
    name: f"cr:{name}"
    for name in ("citeAs", "column", "equivalentProperty", "extract", "field", "fileProperty", "fileObject", "fileSet",
                 "format", "includes", "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet",
                 "references", "regex", "repeated", "replace", "samplingRate", "separator", "source", "subField",
                 "transform")
}  # fmt: skip


def metadata(
    frame: pd.DataFrame, name: str, about: str, files: Sequence[Mapping[str, str]], stated: Mapping[str, str]
) -> dict[str, Any]:
    """The content of croissant.json. files: name, encodingFormat, contentSize and sha256 of each, the one whose columns
    are described first; stated: license, url, datePublished and creator, those that the publisher states."""
    table = files[0]["name"]
    creator = {"creator": {"@type": "sc:Person", "name": stated["creator"]}} if "creator" in stated else {}
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": VERSION,
        "name": name,
        "description": about,
        **{key: value for key, value in stated.items() if key != "creator"},
        **creator,
        "distribution": [
            {"@type": "cr:FileObject", "@id": file["name"], "contentUrl": file["name"], **file} for file in files
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "runs",
                "name": "runs",
                "description": "One row a (run, evaluation).",
                "field": [_field(frame, str(column), table) for column in frame.columns],
            }
        ],
    }


def _field(frame: pd.DataFrame, column: str, table: str) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"runs/{column}",
        "name": f"runs/{column}",
        "description": meaning(column),
        "dataType": _OF_DTYPE[dtype(frame, column)],
        "source": {"fileObject": {"@id": table}, "extract": {"column": column}},
    }


def meaning(column: str) -> str:
    """What a column means, with its unit."""
    return next((c.meaning for c in COLUMNS if c.name == column), "not a column of precisionlm's tables: undocumented")


def dtype(frame: pd.DataFrame, column: str) -> str:
    """str, int, float or bool: of the values that are there."""
    kind = frame[column].dtype
    if pd.api.types.is_bool_dtype(kind):
        return "bool"
    if pd.api.types.is_integer_dtype(kind):
        return "int"
    return "float" if pd.api.types.is_numeric_dtype(kind) else "str"
