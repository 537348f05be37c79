"""JSON Schemas of the files that lifedeploy writes and reads back, from the types that it checks them with.

    python docs/schemas/generate.py

writes them anew beside this file; a test holds the committed ones against the types.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from lifedeploy.files import readable_json
from lifedeploy.manifest import REQUIRED, SCHEMA, Manifest
from lifedeploy.serving.record import PackageRecord
from lifedeploy.spec import ModelSpec
from lifedeploy.training.config import TrainConfig

HERE = Path(__file__).parent
DRAFT = "https://json-schema.org/draft/2020-12/schema"
TYPES: dict[str, type] = {
    "manifest": Manifest,
    "model": ModelSpec,
    "train-config": TrainConfig,
    "package": PackageRecord,
}


def schemas() -> dict[str, dict[str, Any]]:
    """Name of the file, without its ending → its schema."""
    generated = {}
    for name, kind in TYPES.items():
        root, parts = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
        generated[name] = {"$schema": DRAFT, **root[0], "$defs": parts}
    for closed in ("PreprocessSpec", "Provenance"):  # what is not known there is refused, not passed over
        for name in ("manifest", "model"):
            generated[name]["$defs"][closed]["additionalProperties"] = False
    manifest = generated["manifest"]["$defs"]["Manifest"]
    manifest["properties"] = {"schema": {"const": SCHEMA}, **manifest["properties"]}
    manifest["required"] = ["schema", *REQUIRED]
    # In a schema $ is the end of the text in any case, and many a validator has no lookahead.
    plain: dict[str, dict[str, Any]] = json.loads(json.dumps(generated).replace(r"$(?!\\n)", "$"))
    return plain


def main() -> None:
    """Write all of them."""
    for name, schema in schemas().items():
        (HERE / f"{name}.json").write_text(readable_json(schema), encoding="utf-8")


if __name__ == "__main__":
    main()
