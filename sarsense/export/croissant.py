"""A corpus as Croissant 1.1 (specification of 2026-01-29), the MLCommons vocabulary of datasets over schema.org.

Files: corpus.json, the tables and every shard, each with its SHA-256; the arrays and descriptions inside the shards as
two file sets. Records: `tiles`, a row of tiles.parquet each, and `samples`, a KEY.npy each, joined by the key; of a
labelled corpus also `labels`, a KEY.labels.npy each. Licence, creator, citation, address and date of publication are
not the corpus's to know, so they are left out; whoever publishes it adds them. mlcroissant warns of each.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sarsense.codes import code_steps
from sarsense.corpus import TABLES, Corpus, array_shape
from sarsense.export.columns import describe
from sarsense.labels import IGNORED
from sarsense.places import readable

CONFORMS_TO = "http://mlcommons.org/croissant/1.1"
PARQUET = "application/x-parquet"
TAR = "application/x-tar"

_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
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
"""that of the specification, appendix 1: programs compare it word for word"""


def croissant(corpus: Corpus, base: str = "") -> dict[str, Any]:
    """The Croissant description of a corpus, as a JSON-LD object.

    base: the corpus's folder as seen from where the description will lie, with a final slash; empty: in that folder.
    Raises CorpusError where a table is missing.
    """
    manifest = corpus.manifest
    counts = ", ".join(f"{number} {split}" for split, number in sorted(manifest["splits"].items()))
    height, width = corpus.tile_shape[1:]
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": corpus.name,
        "description": (
            f"SAR image corpus built by sarsense {manifest['sarsense']}: {counts} tiles of {width} x {height} pixels "
            f"as {corpus.dtype.name} codes of backscatter in decibels, georeferenced, in WebDataset tar shards. "
            f"Digest {corpus.digest}. Licences are those of the source scenes."
        ),
        "version": manifest["version"],
        "keywords": ["SAR", "synthetic aperture radar", "backscatter", "remote sensing", "WebDataset"],
        "distribution": _distribution(corpus, base),
        "recordSet": [_splits(), _tiles(corpus), _samples(corpus), *([_labels(corpus)] if corpus.labelled else [])],
    }


def _distribution(corpus: Corpus, base: str) -> list[dict[str, Any]]:
    manifest = (corpus.root / "corpus.json").read_bytes()
    files = [_file("corpus.json", base, "application/json", hashlib.sha256(manifest).hexdigest(), len(manifest))]
    for name in TABLES:
        size = (corpus.root / name).stat().st_size
        files.append(_file(name, base, PARQUET, corpus.manifest["tables"][name], size))
    files += [_file(shard.path, base, TAR, shard.sha256, shard.bytes) for shard in corpus.shards]
    inside = [{"@id": shard.path} for shard in corpus.shards]
    # a key ends in a digit
    arrays = "*[0-9].npy" if corpus.labelled else "*.npy"
    sets = [("arrays", arrays, "application/x-npy"), ("descriptions", "*.json", "application/json")]
    if corpus.labelled:
        sets.append(("label-arrays", "*.labels.npy", "application/x-npy"))
    return files + [
        {
            "@type": "cr:FileSet",
            "@id": name,
            "name": name,
            "description": f"{pattern} of all shards",
            "containedIn": inside,
            "encodingFormat": encoding,
            "includes": pattern,
        }
        for name, pattern, encoding in sets
    ]


def _file(name: str, base: str, encoding: str, sha256: str, size: int) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": f"{base}{name}",
        "contentSize": f"{size} B",
        "encodingFormat": encoding,
        "sha256": sha256,
    }


def _splits() -> dict[str, Any]:
    names = {"train": "cr:TrainingSplit", "val": "cr:ValidationSplit"}
    return {
        "@type": "cr:RecordSet",
        "@id": "splits",
        "name": "splits",
        "description": "Spatially disjoint splits",
        "dataType": "cr:Split",
        "key": {"@id": "splits/name"},
        "field": [
            {"@type": "cr:Field", "@id": "splits/name", "name": "name", "dataType": "sc:Text"},
            {"@type": "cr:Field", "@id": "splits/url", "name": "url", "dataType": "sc:URL"},
        ],
        "data": [{"splits/name": name, "splits/url": url} for name, url in names.items()],
    }


def _tiles(corpus: Corpus) -> dict[str, Any]:
    schema = pq.read_schema(readable(corpus.root / "tiles.parquet"))
    fields = [field for column in schema if (field := _column_field(column, "tiles")) is not None]
    return {
        "@type": "cr:RecordSet",
        "@id": "tiles",
        "name": "tiles",
        "description": "A row a tile, in the order of the shards. Croissant has no name for columns of structs "
        "(channels): read them from the table itself",
        "key": {"@id": "tiles/key"},
        "field": fields,
    }


def _column_field(column: pa.Field, record_set: str) -> dict[str, Any] | None:
    """The field of a column of tiles.parquet; None for one whose type Croissant cannot say."""
    kind, shape = column.type, None
    if pa.types.is_list(kind):
        kind = kind.value_type
        shape = "6" if column.name.endswith("transform") else "-1"
    if (data_type := _data_type(kind)) is None:
        return None
    field = {
        "@type": "cr:Field",
        "@id": f"{record_set}/{column.name}",
        "name": column.name,
        "description": describe(column.name),
        "dataType": data_type,
        "source": {"fileObject": {"@id": "tiles.parquet"}, "extract": {"column": column.name}},
    }
    if shape is not None:
        field |= {"isArray": True, "arrayShape": shape}
    if column.name == "split":
        field["references"] = {"field": {"@id": "splits/name"}}
    return field


def _data_type(kind: pa.DataType) -> str | None:
    if pa.types.is_boolean(kind):
        return "sc:Boolean"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        name = np.dtype(kind.to_pandas_dtype()).name
        return f"cr:{name.replace('int', 'Int').replace('uI', 'UI').replace('float', 'Float')}"
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return "sc:Text"
    return None


def _samples(corpus: Corpus) -> dict[str, Any]:
    """The arrays themselves. mlcroissant reads no npy, so that a record holds the file's bytes, for `numpy.load`."""
    shape = " x ".join(map(str, array_shape(corpus.tile_shape)))
    steps = code_steps(8 * corpus.dtype.itemsize)
    columns = ("lo_db", "hi_db", "enl_bias_db")
    schema = pq.read_schema(readable(corpus.root / "tiles.parquet"))
    return {
        "@type": "cr:RecordSet",
        "@id": "samples",
        "name": "samples",
        "description": "A KEY.npy each, with what undoes its normalisation. Code 0 is no data; the dB value of another "
        f"is lo_db + (code - 1) * (hi_db - lo_db) / {steps} + enl_bias_db",
        "key": {"@id": "samples/key"},
        "field": [
            _key_field("samples", "arrays", "npy"),
            _bytes_field("samples", "arrays", f"Bytes of a NumPy file: {corpus.dtype.name} codes, {shape}"),
            *filter(None, (_column_field(schema.field(name), "samples") for name in columns)),
        ],
    }


def _labels(corpus: Corpus) -> dict[str, Any]:
    """The labels, as the arrays."""
    shape = " x ".join(map(str, corpus.tile_shape[1:]))
    named = ", ".join(f"{value} {name}" for value, name in (corpus.classes or {}).items())
    return {
        "@type": "cr:RecordSet",
        "@id": "labels",
        "name": "labels",
        "description": f"A KEY.labels.npy each: the class of each pixel of its KEY.npy. {named}; {IGNORED} is ignored",
        "key": {"@id": "labels/key"},
        "field": [
            _key_field("labels", "label-arrays", "labels.npy"),
            _bytes_field("labels", "label-arrays", f"Bytes of a NumPy file: uint8 labels, {shape}"),
        ],
    }


def _key_field(record_set: str, file_set: str, ending: str) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"{record_set}/key",
        "name": "key",
        "description": describe("key"),
        "dataType": "sc:Text",
        "references": {"fileObject": {"@id": "tiles.parquet"}, "extract": {"column": "key"}},
        "source": {
            "fileSet": {"@id": file_set},
            "extract": {"fileProperty": "filename"},
            # matches what it made, too: mlcroissant applies it again after it has joined
            "transform": {"regex": rf"^(.*?)(?:\.{ending.replace('.', '[.]')})?$"},
        },
    }


def _bytes_field(record_set: str, file_set: str, description: str) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"{record_set}/npy",
        "name": "npy",
        "description": description,
        "dataType": "sc:Text",
        "source": {"fileSet": {"@id": file_set}, "extract": {"fileProperty": "content"}},
    }
