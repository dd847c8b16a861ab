# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
"""The bill of materials of a release, as CycloneDX: what the wheels contain and depend on."""

from __future__ import annotations

import hashlib
import os
import sys
import uuid
from datetime import datetime, timezone
from email.parser import HeaderParser
from pathlib import Path
from zipfile import ZipFile

from cyclonedx.factory.license import LicenseFactory
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from sources import SOURCES, Source


def write(out: Path) -> None:
    """Write NAME-VERSION.cdx.json for the wheels in `out`."""
    wheels = sorted(out.glob("*.whl"))
    with ZipFile(wheels[0]) as archive:
        (name,) = (x for x in archive.namelist() if x.endswith(".dist-info/METADATA"))
        metadata = HeaderParser().parsestr(archive.read(name).decode())
    version = metadata["Version"]
    own = Component(
        name=metadata["Name"],
        version=version,
        type=ComponentType.APPLICATION,
        bom_ref=metadata["Name"],
        purl=PackageURL("pypi", name=metadata["Name"], version=version),
        licenses=[LicenseFactory().make_with_expression(metadata["License-Expression"])],
    )
    bom = Bom()
    bom.metadata.component = own
    bom.metadata.timestamp = datetime.fromtimestamp(
        int(os.environ["SOURCE_DATE_EPOCH"]), timezone.utc
    )
    bundled = [_component(source) for source in SOURCES]
    required = [
        _requirement(line) for line in metadata.get_all("Requires-Dist", []) if ";" not in line
    ]
    files = [_file(wheel) for wheel in wheels]
    for component in (*bundled, *required, *files):
        bom.components.add(component)
    bom.register_dependency(own, [*bundled, *required])
    content = "".join(str(component.hashes) for component in files)
    bom.serial_number = uuid.uuid5(uuid.NAMESPACE_OID, content)
    text = JsonV1Dot6(bom).output_as_string(indent=2)
    if problem := JsonStrictValidator(JsonV1Dot6(bom).schema_version).validate_str(text):
        sys.exit(f"wheels: the SBOM is not valid CycloneDX: {problem}")
    target = out / f"{wheels[0].name.split('-')[0]}-{version}.cdx.json"
    target.write_text(f"{text}\n", encoding="utf-8")


def _component(source: Source) -> Component:
    """A library that is linked into the extension."""
    return Component(
        name=source.name,
        version=source.version,
        type=ComponentType.LIBRARY,
        bom_ref=source.name,
        purl=PackageURL("generic", name=source.name, version=source.version),
        licenses=[LicenseFactory().make_with_expression(source.licence)],
        external_references=[
            ExternalReference(
                type=ExternalReferenceType.SOURCE_DISTRIBUTION,
                url=XsUri(source.home),
                hashes=[HashType(alg=HashAlgorithm.SHA_256, content=source.sha256)],
            )
        ],
    )


def _requirement(line: str) -> Component:
    """A package that pip installs beside it, in a version that is not decided here."""
    name = line.partition(">")[0].strip()
    return Component(
        name=name, type=ComponentType.LIBRARY, bom_ref=name, purl=PackageURL("pypi", name=name),
        description=f"{line}, installed by pip",
    )  # fmt: skip


def _file(wheel: Path) -> Component:
    """A wheel with its checksum."""
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return Component(
        name=wheel.name,
        type=ComponentType.FILE,
        bom_ref=wheel.name,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)],
    )
