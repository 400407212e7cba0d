"""The floors of the package: who may import whom, drawn and described from the code itself; run to fill them in."""

import ast
from html import escape
from pathlib import Path

from readme_table import split

ROOT = Path(__file__).resolve().parent.parent
MODULE = ROOT / "reptrans"
PAGE = ROOT / "book" / "architecture.md"
PICTURES = {dark: ROOT / "book" / "_static" / f"floors{'-dark' * dark}.svg" for dark in (False, True)}
BEGIN, END = "<!-- floors:begin -->", "<!-- floors:end -->"

# A file or folder of reptrans/ may import those of the lines above its own, never its neighbours. What two
# neighbours both need moves up.
LEVELS = (
    "errors moved labels completion",
    "randomness paths progress files",
    "tensorfiles report export",
    "data models layers",
    "figures training",
    "similarity checkpoints attribution bench",
    "matching",
    "stitching distillation extension inputs merging l2t",
    "detection reid",
    "notebook",
    "experiments",
    "atlas classifier comparison",
    "shortcuts",
    "runs",
    "sweeps",
    "packaged",
    "__main__",
    "__init__",
)
LEVEL = {name: level for level, line in enumerate(LEVELS) for name in line.split()}


def unit_of(path: Path) -> str:
    """The file or folder directly below reptrans/ that holds `path`."""
    return path.relative_to(MODULE).parts[0].removesuffix(".py")


def imported_units(source: str, package: str = "reptrans") -> set[str]:
    """Files and folders of reptrans/ that this source imports, wherever in it; `package` resolves relative imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node, package)
            # `from reptrans import x`: x is a module, or else a public name that `__init__` gathers.
            found |= {f"reptrans.{alias.name}" for alias in node.names} if base == "reptrans" else {base}
    found = {name.split(".")[1] if "." in name else "__init__" for name in found if name.split(".")[0] == "reptrans"}
    return {name if name in LEVEL or (MODULE / name).is_dir() else "__init__" for name in found}


def absolute(node: ast.ImportFrom, package: str) -> str:
    """The module that a from-import names, written out."""
    parts = package.split(".")
    above = parts[: len(parts) - node.level + 1] if node.level else []
    return ".".join([*above, *([node.module] if node.module else [])])


def arrows() -> dict[str, set[str]]:
    """What each file and folder imports, of the others."""
    found: dict[str, set[str]] = {unit: set() for unit in LEVEL}
    for path in sorted(MODULE.rglob("*.py")):
        package = ".".join(("reptrans", *path.relative_to(MODULE).parts[:-1]))
        found[unit_of(path)] |= imported_units(path.read_text("utf-8"), package) - {unit_of(path)}
    return found


def purpose(unit: str) -> str:
    """The first sentence of its docstring."""
    path = MODULE / unit / "__init__.py" if (MODULE / unit).is_dir() else MODULE / f"{unit}.py"
    text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())


def described() -> str:
    """The floors as a table, the highest first."""
    rows = ["| part | what it is | imports |", "| --- | --- | --- |"]
    known = arrows()
    for line in reversed(LEVELS[:-1]):
        for unit in line.split():
            below = ", ".join(sorted(known[unit], key=lambda name: (LEVEL[name], name))) or "nothing"
            rows.append(f"| `{unit}` | {purpose(unit).replace('|', chr(92) + '|')} | {below} |")
    return "\n".join(rows)


def drawn(dark: bool = False) -> str:
    """The floors as an SVG: a box for each part, a line to each part of a lower floor that no other leads to.

    What lies on the ground is used everywhere, so no lines lead there; it has two rows, to be no wider than the rest.
    """
    known, places, lines = arrows(), {}, []
    ground = [*(unit for line in LEVELS[:3] for unit in line.split()), "figures"]
    floors = [[u for u in line.split() if not u.startswith("__") and u not in ground] for line in LEVELS[3:]]
    half = len(ground) // 2
    floors = [*[units for units in floors if units][::-1], ground[half:], ground[:half]]
    for row, units in enumerate(floors):
        for column, unit in enumerate(units):
            places[unit] = (450 + (column - (len(units) - 1) / 2) * 112, 30 + row * 64)
    for unit, (x, y) in places.items():
        direct = known[unit] - set(ground) if unit not in ground else set()
        beyond = {far for near in direct for far in _reached(near, known)}
        for name in sorted(direct - beyond):
            a, b = places[name]
            lines.append(f'<path d="M{x:.0f} {y + 15} C{x:.0f} {y + 40} {a:.0f} {b - 40} {a:.0f} {b - 15}"/>')
    kind = ("part", "ground")
    boxes = [
        f'<rect x="{x - 50:.0f}" y="{y - 15}" width="100" height="30" rx="6" class="{kind[unit in ground]}"/>'
        f'<text x="{x:.0f}" y="{y + 5}">{escape(unit)}</text>'
        for unit, (x, y) in places.items()
    ]
    style = "path{fill:none;stroke:#7a869a;stroke-width:1.2}text{font:14px sans-serif;text-anchor:middle}" + (
        "rect{fill:#1d3557;stroke:#8fb4e3}rect.ground{fill:#333;stroke:#8a8a8a}text{fill:#eaf1fb}"
        if dark
        else "rect{fill:#eaf1fb;stroke:#2f5d9b}rect.ground{fill:#f2f2f2;stroke:#8a8a8a}text{fill:#14304f}"
    )
    height = 64 * len(floors)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 {height}" role="img">'
        f"<title>The parts of reptrans: lines lead down to what a part imports</title><style>{style}</style>"
        f"{''.join(lines)}{''.join(boxes)}</svg>\n"
    )


def _reached(unit: str, known: dict[str, set[str]]) -> set[str]:
    return known[unit] | {far for near in known[unit] for far in _reached(near, known)}


if __name__ == "__main__":
    before, _, after = split(PAGE.read_text("utf-8"), BEGIN, END)
    PAGE.write_text(before + described() + after, "utf-8")
    for dark, picture in PICTURES.items():
        picture.write_text(drawn(dark), "utf-8")
