"""The book builds without a single warning: no dead link, no undefined label, no unreadable picture."""

import importlib
import pkgutil

import pytest

import reptrans


def test_strict_build(book):
    assert book.complaint == ""


@pytest.mark.parametrize("page", ["index.html", "book/intro.html", "book/stitching.html"])
def test_page_is_there(book, page):
    assert (book.site / page).is_file()


def public_modules() -> list[str]:
    """The package, its files and folders, and what lies below distillation, where every method is a file."""
    found = [module.name for module in pkgutil.walk_packages(reptrans.__path__, "reptrans.")]
    depth = {name: name.count(".") for name in found}
    return ["reptrans", *(n for n in found if depth[n] == 1 or n.startswith("reptrans.distillation.methods."))]


@pytest.mark.parametrize("name", [name for name in public_modules() if name != "reptrans.__main__"])
def test_reference_has_every_public_name(book, name):
    pages = "".join(page.read_text("utf-8") for page in (book.site / "book" / "api").glob("*.html"))
    assert f'id="module-{name}"' in pages, f"name it in a page of book/api, by `.. automodule:: {name}`"
    public = [] if name == "reptrans" else getattr(importlib.import_module(name), "__all__", [])
    assert [entry for entry in public if f'id="{name}.{entry}"' not in pages] == []
