"""The licences and names of what a wheel's program has from other projects, put into the wheel.

They come as Debian's packages: libraries that auditwheel copied into the wheel, and headers and
archives that the program is compiled with (packaging/apt.txt).
"""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from auditwheel.wheeltools import InWheelCtx

_APT = Path(__file__).resolve().parent.parent / "packaging/apt.txt"
_DOCUMENTS = Path("/usr/share/doc")
_HEADING = """\
{source} {version}, as Debian has it: {parts}.
Its source: apt-get source {source}={version}

"""


@dataclass(frozen=True)
class Package:
    """A Debian package of which the wheel has something: `part` says what."""

    name: str
    version: str
    source: str
    source_version: str
    part: str

    @property
    def licence(self) -> str:
        """As the package has it."""
        return (_DOCUMENTS / self.name / "copyright").read_text()

    @property
    def component(self) -> dict[str, str]:
        """As an SBOM in the words of CycloneDX names it."""
        purl = f"pkg:deb/debian/{self.name}@{quote(self.version, safe='~')}"
        names = {"name": self.name, "version": self.version}
        return {"type": "library", "bom-ref": f"{purl}#{self.part}", **names, "purl": purl}


def add(wheel: Path, licensed: Path) -> None:
    """Writes `licensed`, which is `wheel` with the licences of all that it bundles."""
    licensed.parent.mkdir(parents=True, exist_ok=True)
    with InWheelCtx(wheel, licensed) as context:
        assert context.path is not None
        (information,) = context.path.glob("*.dist-info")
        (libraries,) = context.path.glob("*.libs")
        packages = _copied(sorted(path.name for path in libraries.iterdir())) + compiled_in()
        texts = _texts(packages)
        for name, text in texts.items():
            (information / "licenses" / name).write_text(text)
        _declare(information / "METADATA", list(texts))
        _complete(information / "sboms/auditwheel.cdx.json", packages)


def _copied(libraries: list[str]) -> list[Package]:
    """The packages of the libraries; libzmq-98f0defc.so.5.2.4 is Debian's libzmq.so.5.2.4."""
    originals = {re.sub(r"-[0-9a-f]{8}(?=\.)", "", name, count=1): name for name in libraries}
    owners = {}
    for line in _lines("dpkg-query", "--search", *(f"*/{name}" for name in originals)):
        package, path = line.split(": ")
        owners[Path(path).name] = package.split(":")[0]
    unknown = originals.keys() - owners.keys()
    if unknown:
        raise SystemExit(f"no Debian package has {', '.join(sorted(unknown))}: whose licence?")
    return _packages([(owners[original], name) for original, name in originals.items()])


def compiled_in() -> list[Package]:
    """What cmake finds, the second part of apt.txt."""
    (part,) = re.findall(r"^# libraries.*?\n(.*?)(?:\n\n|\Z)", _APT.read_text(), re.M | re.S)
    return _packages([(name, "in the program") for name in str(part).split()])


def _packages(parts: list[tuple[str, str]]) -> list[Package]:
    """From names, each with the part of the wheel that comes from it."""
    form = "${Package} ${Version} ${source:Package} ${source:Version}\n"
    names = sorted({name for name, _ in parts})
    facts = {}
    for line in _lines("dpkg-query", "--show", "--showformat", form, *names):
        name, version, source, source_version = line.split()
        facts[name] = (version, source, source_version)
    return [Package(name, *facts[name], part) for name, part in parts]


def _lines(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout.splitlines()


def _texts(packages: list[Package]) -> dict[str, str]:
    """A file for each source package."""
    sources: dict[str, list[Package]] = {}
    for package in packages:
        sources.setdefault(package.source, []).append(package)
    return {
        f"{source}.txt": _HEADING.format(
            source=source,
            version=parts[0].source_version,
            parts=", ".join(sorted({package.part for package in parts})),
        )
        + parts[0].licence
        for source, parts in sorted(sources.items())
    }


def _declare(metadata: Path, names: list[str]) -> None:
    """Names the files in METADATA, and says that the wheel's licence is not ours alone."""
    text = metadata.read_text()
    ours = "License-Expression: Apache-2.0\nLicense-File: LICENSE\n"
    assert text.count(ours) == 1, text
    files = "".join(f"License-File: {name}\n" for name in names)
    all_ = "License-Expression: Apache-2.0 AND LicenseRef-Bundled-Libraries\n"
    metadata.write_text(text.replace(ours, f"{all_}License-File: LICENSE\n{files}"))


def _complete(sbom: Path, packages: list[Package]) -> None:
    """Adds what auditwheel does not see: compiled-in code, and what Debian lists below /lib."""
    bill: dict[str, Any] = json.loads(sbom.read_text())
    seen = {component["name"] for component in bill["components"]}
    for package in packages:
        if package.name not in seen:
            seen.add(package.name)
            bill["components"].append(package.component)
            bill["dependencies"][0]["dependsOn"].append(package.component["bom-ref"])
            bill["dependencies"].append({"ref": package.component["bom-ref"]})
    sbom.write_text(json.dumps(bill))
