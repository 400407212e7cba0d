"""Docstrings as this package writes them, for autodoc: plain text is taken literally, whatever reST would make of it.

A paragraph is a paragraph, an indented block is shown as it stands, `- ` makes a list, `>>>` an example, and
`backticks` are code that links to what they name.
"""

import re
from collections.abc import Iterator

from sphinx.application import Sphinx

# What begins a block of its own, also without an empty line before it.
OPENING = re.compile(r"- |>>> |(Arguments|Returns?|Yields|Raises|Sources?|Deviations?)\b")


def blocks(lines: list[str]) -> Iterator[list[str]]:
    """Runs of lines that belong together: indented ones, examples, list items, paragraphs."""
    block: list[str] = []
    for line in [*lines, ""]:
        if block and not goes_on(block, line):
            yield block
            block = []
        block += [line] if line else []


def goes_on(block: list[str], line: str) -> bool:
    """Whether the line belongs to the block before it."""
    if not line or block[0].startswith(">>>"):
        return bool(line)
    return line.startswith("    ") == block[0].startswith("    ") and not OPENING.match(line)


def inline(text: str) -> str:
    """One paragraph of plain text as reST."""
    pieces = re.split(r"`([^`]+)`", text)
    plain = [re.sub(r"([\\*|_`\"])", r"\\\1", piece) for piece in pieces[::2]]
    code = [rf"\ :py:obj:`{c}`\ " if re.fullmatch(r"[A-Za-z][\w.]*\w", c) else rf"\ ``{c}``\ " for c in pieces[1::2]]
    return "".join(a + b for a, b in zip(plain, [*code, ""], strict=True)).strip()


def raises(listed: re.Match) -> str:
    """A list of errors, each a paragraph of its own."""
    return re.sub(r"(?m)^ {4}(?! )", "Raises ", listed[1]).replace(" " * 8, "")


def as_rest(lines: list[str]) -> list[str]:
    """The lines of a docstring as lines of reST."""
    found: list[str] = []
    for block in blocks(re.sub(r"(?m)^Raises:\n((?: {4}.*\n?)+)", raises, "\n".join(lines)).splitlines()):
        if block[0].startswith("    "):
            found += [".. code-block:: text", "", *block]
        elif block[0].startswith(">>>"):
            found += block
        elif block[0].startswith("- "):
            found += ["- " + inline(" ".join(line.strip() for line in block)[2:])]
        else:
            found += [inline(" ".join(block))]
        found += [""]
    return found


def rewrite(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    lines[:] = [] if what == "data" else as_rest(lines)  # a constant has the docstring of its type
    if name == "reptrans":
        for home, names in obj._HOMES.items():
            lines += [f"``{home}``", "    " + ", ".join(f":py:obj:`~{home}.{n}`" for n in names), ""]


def without_bounds(app: Sphinx, what: str, name: str, obj: object, options: object, signature: str | None, returned):
    """Bounds of parameters are left out of signatures: `Annotated[int, Ge(ge=0)]` is an int."""
    return signature and re.sub(r"Annotated\[(\w+), .*?\)\]", r"\1", signature), returned


def unexplained(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """Fields are named in the signature of their class; of the rest, what has no docstring of its own is left out."""
    described = (callable(obj) or isinstance(obj, property)) and obj.__doc__
    return True if what == "class" and not described else None


def setup(app: Sphinx) -> dict:
    app.connect("autodoc-process-docstring", rewrite)
    app.connect("autodoc-process-signature", without_bounds)
    app.connect("autodoc-skip-member", unexplained)
    return {"parallel_read_safe": True}
