"""At the end of every notebook and stored run: links to its method, its notebook or runs, and the claims it tests."""

from collections.abc import Callable
from html import escape
from pathlib import Path

import yaml
from claims import PAGE, Claim, load
from docutils import nodes
from sphinx.application import Sphinx

NOTEBOOKS, RUNS = "notebooks/", "book/runs/"


def parts(toc: Path) -> list[list[str]]:
    """The pages of each part of the book, in order; sections of a chapter are left out."""
    return [
        [chapter["file"] for chapter in part["chapters"]] for part in yaml.safe_load(toc.read_text("utf-8"))["parts"]
    ]


def related(page: str, part: list[str]) -> dict[str, list[str]]:
    """Pages of the same part: the method, the notebook that a run executes, the runs of a notebook."""
    name = page.rpartition("/")[2]
    notebooks = [other for other in part if other.startswith(NOTEBOOKS)]
    own = sorted((n for n in notebooks if f"{name}_".startswith(n.removeprefix(NOTEBOOKS) + "_")), key=len)[-1:]
    runs = [other for other in part for n in own if other.startswith(n.replace(NOTEBOOKS, RUNS) + "_")]
    methods = [other for other in part if not other.startswith((NOTEBOOKS, RUNS))]
    found = {"Method": methods[:1], "Notebook": own, "Stored runs": runs}
    return {label: others for label, pages in found.items() if (others := [other for other in pages if other != page])}


def tested(page: str, rows: list[Claim]) -> list[Claim]:
    """The claims whose numbers the page prints."""
    target = f"../{page}.ipynb" if page.startswith(NOTEBOOKS) else page.removeprefix("book/") + ".ipynb"
    return [row for row in rows if target in row.runs.values()]


def listed(others: dict[str, list[str]], rows: list[Claim], title: Callable[[str], str], link: Callable) -> str:
    def anchor(address: str, text: str) -> str:
        return f'<a class="reference internal" href="{address}">{escape(text)}</a>'

    items = [f"{label}: {' · '.join(anchor(link(p), title(p)) for p in pages)}" for label, pages in others.items()]
    claims = [f"{row.verdict}: {anchor(f'{link(PAGE)}#claim-{row.id}', row.claim)}" for row in rows]
    if claims:
        inner = "".join(f"<li>{claim}</li>" for claim in claims)
        items.append(f"<details><summary>Claims tested here: {len(claims)}</summary><ul>{inner}</ul></details>")
    return (
        f'<div class="see-also"><p class="rubric">See also</p><ul>{"".join(f"<li>{i}</li>" for i in items)}</ul></div>'
    )


def add(app: Sphinx, page: str, template: str, context: dict, doctree: nodes.document | None) -> None:
    source = Path(app.srcdir)
    part = next((part for part in parts(source / "book" / "_toc.yml") if page in part), [])
    if page.startswith((NOTEBOOKS, RUNS)) and part:
        rows = tested(page, load(source / f"{PAGE}.yaml").rows)
        context["body"] += listed(related(page, part), rows, lambda p: app.env.titles[p].astext(), context["pathto"])


def setup(app: Sphinx) -> dict:
    app.connect("html-page-context", add)
    return {"parallel_read_safe": True}
