"""The Spanish edition of the part on distillation: the pages of _toc_es.yml with the sentences of book/locale.

python book/spanish.py             builds it into _build/html/es, beside the English book
python book/spanish.py catalogue   brings the catalogue up to the pages: new sentences in, old ones out
"""

import filecmp
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from functools import partial
from pathlib import Path

import yaml
from babel.messages import Catalog
from babel.messages.pofile import read_po, write_po

ROOT = Path(__file__).resolve().parent.parent
CATALOGUE = ROOT / "book" / "locale" / "es" / "LC_MESSAGES" / "distillation.po"
GETTEXT = {
    "language": "es",
    "locale_dirs": ["book/locale"],
    "gettext_compact": "distillation",
    "gettext_location": False,
    "gettext_uuid": False,
}


def configuration() -> dict:
    """The book's own, in Spanish."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))
    config["sphinx"]["config"] |= GETTEXT
    config["author"] = "los autores de reptrans"
    if "baseurl" in config["html"]:
        config["html"]["baseurl"] += "es/"
    local = config["sphinx"]["local_extensions"]
    config["sphinx"]["local_extensions"] = {name: str(ROOT / folder) for name, folder in local.items()}
    return config


def build(output: Path, *options: str) -> None:
    """The edition below `output`/_build, as strictly as the book; `options` are those of jupyter-book."""
    config = output / "_config.yml"
    config.write_text(yaml.safe_dump(configuration(), allow_unicode=True), "utf-8")
    command = [Path(sysconfig.get_path("scripts")) / "jupyter-book", "build", ROOT, "--config", config,
               "--toc", ROOT / "book" / "_toc_es.yml", "--path-output", output, "-W", "-n", "--keep-going"]  # fmt: skip
    subprocess.run([*command, *options], check=True)


def publish(site: Path) -> None:
    """The edition as the folder es of the built book `site`."""
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        shutil.rmtree(site / "es", ignore_errors=True)
        shutil.copytree(Path(folder) / "_build" / "html", site / "es")
    share(site)


def share(site: Path) -> None:
    """What is in the book need not be in the edition: files that are the same, and pages in English only."""
    own = site / "es" / "_static"
    for path in [path for path in own.rglob("*") if path.is_file() and _same(path, site / "_static", own)]:
        path.unlink()
    for page in (site / "es").rglob("*.html"):
        text = page.read_text("utf-8").replace("/es/_static/", "/_static/")  # of whole addresses
        there = partial(_there, site, page)
        page.write_text(re.sub(r'(?<=src=")[^":#?]+|(?<=href=")[^":#?]+', there, text), "utf-8")


def _same(path: Path, static: Path, own: Path) -> bool:
    there = static / path.relative_to(own)
    return there.is_file() and filecmp.cmp(path, there, shallow=False)


def _there(site: Path, page: Path, link: re.Match) -> str:
    """The link from a page of the edition, to the book if only the book has what it leads to."""
    target = Path(os.path.normpath(page.parent / link[0]))
    if target.exists() or not target.is_relative_to(site / "es"):
        return link[0]
    english = site / target.relative_to(site / "es")
    return os.path.relpath(english, page.parent) if english.exists() else link[0]


def sentences() -> list[str]:
    """All that the pages have to be translated, in their order."""
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder), "--builder", "custom", "--custom-builder", "gettext")
        found = catalogue(Path(folder) / "_build" / "gettext" / "distillation.pot")
    return [message.id for message in found if message.id]


def catalogue(path: Path = CATALOGUE) -> Catalog:
    with path.open("rb") as file:
        return read_po(file, "es")


def renew() -> None:
    """The catalogue with the sentences that the pages have now; translations of those that stayed stay too."""
    old = catalogue()
    new = Catalog("es", header_comment="# The part on distillation in Spanish.", fuzzy=False)
    for sentence in sentences():
        new.add(sentence, old[sentence].string if sentence in old else "")
    with CATALOGUE.open("wb") as file:
        write_po(file, new, width=118)


if __name__ == "__main__":
    if sys.argv[1:] == ["catalogue"]:
        renew()
    else:
        publish(Path(sys.argv[1]) if sys.argv[1:] else ROOT / "_build" / "html")
