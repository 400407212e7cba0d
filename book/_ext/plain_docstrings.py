"""Docstrings as this package writes them, for autodoc: plain text is taken literally, whatever reST would make of it.

A paragraph is a paragraph, an indented block is shown as it stands, `- ` makes a list, `>>>` an example, and
`backticks` are code that links to what they name; *one* word in asterisks is emphasised. What stands at `#:` above a
constant describes it, wherever in its package it is made.
"""

import re
import sys
from collections.abc import Iterator

from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

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
    plain = [re.sub(r"([\\*|_`\"@])", r"\\\1", piece) for piece in pieces[::2]]
    plain = [re.sub(r"(?<![\w\\*])\\\*(\w+)\\\*(?![\w*])", r"\ *\1*\ ", piece) for piece in plain]
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


def constant(name: str) -> list[str]:
    """What is said above a constant, where it is made: below the package that shows it."""
    package, _, attribute = name.rpartition(".")
    value = getattr(sys.modules[package], attribute)
    for module in [m for m in sys.modules if f"{m}.".startswith(f"{package}.")]:
        said = ModuleAnalyzer.for_module(module).find_attr_docs().get(("", attribute))
        if said and getattr(sys.modules[module], attribute) is value:
            return said
    return []


def rewrite(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    lines[:] = as_rest(constant(name) if what == "data" else lines)  # a constant has the docstring of its type
    if name == "reptrans":
        for home, names in obj._HOMES.items():
            lines += [f"``{home}``", "    " + ", ".join(f":py:obj:`~{home}.{n}`" for n in names), ""]


# What Python writes into a signature, and what it is for a reader.
PLAINER = (
    (r"Annotated\[(\w+), .*?\)\]", r"\1"),  # bounds of a parameter: `Annotated[int, Ge(ge=0)]` is an int
    (r", _\w+: [^=]*= <factory>", ""),  # a field that nobody gives
    (r"<factory>", "{}"),
    (r"<function (\w+)>", r"\1"),
    (r"\b_Nearest\b", "Tensor"),  # a measure of neighbours takes x and y, and makes these of them
    (r"\b_([A-Z])", r"\1"),  # variables of types
)


def plainer(app: Sphinx, what: str, name: str, obj: object, options: object, signature: str | None, returned):
    """Signatures without what is no Python, or private. Numbers with more digits than anybody types are rounded."""
    for pattern, plain in PLAINER:
        signature = signature and re.sub(pattern, plain, signature)
        returned = returned and re.sub(pattern, plain, returned)
    return signature and re.sub(r"\d\.\d{12,}(e-?\d+)?", lambda m: f"{float(m[0]):.4g}", signature), returned


def unexplained(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """Fields are named in the signature of their class; of the rest, what has no docstring of its own is left out."""
    own = isinstance(obj, property) or "." in getattr(obj, "__qualname__", "")  # not a field's default
    return True if what == "class" and not (own and obj.__doc__) else None


def setup(app: Sphinx) -> dict:
    app.connect("autodoc-process-docstring", rewrite)
    app.connect("autodoc-process-signature", plainer)
    app.connect("autodoc-skip-member", unexplained)
    return {"parallel_read_safe": True}
