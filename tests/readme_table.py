"""The README's table of parameters, as the stitching notebook itself declares them; run to fill it in."""

from pathlib import Path

from papermill import inspect_notebook

ROOT = Path(__file__).resolve().parent.parent
README, NOTEBOOK = ROOT / "README.md", ROOT / "notebooks" / "stitching.ipynb"
BEGIN, END = "<!-- parameters:begin -->", "<!-- parameters:end -->"


def parameter_table(notebook: Path) -> str:
    """A Markdown table: name, type, default and comment of every parameter."""
    rows = ["| parameter | type | default | what it sets |", "| --- | --- | --- | --- |"]
    for name, entry in inspect_notebook(notebook).items():
        cells = (f"`{name}`", entry["inferred_type_name"], f"`{entry['default']}`", entry["help"])
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows)


def split(text: str, begin: str = BEGIN, end: str = END) -> tuple[str, str, str]:
    """What stands before a table between two marks, the table, and what follows."""
    before, found, rest = text.partition(f"{begin}\n")
    table, closed, after = rest.partition(f"\n{end}")
    if not found or not closed:
        raise ValueError(f"the page has lost one of its marks {begin} and {end}, each on a line of its own.")
    return before + found, table, closed + after


if __name__ == "__main__":
    before, _, after = split(README.read_text("utf-8"))
    README.write_text(before + parameter_table(NOTEBOOK) + after, "utf-8")
