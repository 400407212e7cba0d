// Tables of the class "taxonomy" are sorted by a click on a column's title, once more for the other way round.
document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll("table.taxonomy")) {
    const language = document.documentElement.lang;
    const value = (row, column) => row.cells[column].textContent.trim().replace("−", "-");
    const compare = (a, b) => {
      const [x, y] = [parseFloat(a), parseFloat(b)];
      return x - y || a.localeCompare(b, language, { numeric: true });
    };
    [...table.tHead.rows[0].cells].forEach((title, column) => {
      const button = document.createElement("button");
      button.append(...title.querySelector("p").childNodes);
      title.querySelector("p").append(button);
      button.addEventListener("click", () => {
        const up = title.getAttribute("aria-sort") !== "ascending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        title.setAttribute("aria-sort", up ? "ascending" : "descending");
        const rows = [...table.tBodies[0].rows];
        rows.sort((a, b) => (up ? 1 : -1) * compare(value(a, column), value(b, column)));
        table.tBodies[0].append(...rows);
      });
    });
  }
});
