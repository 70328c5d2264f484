"use strict";
const root = document.documentElement;
document.getElementById("theme").addEventListener("click", () => {
  const dark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

// A column is one of numbers if each of its cells begins with one or has nothing to say, which comes last.
const number = (text) => parseFloat(text.replace("−", "-").replace(/^[<>≤≥]\s*/, "").replace(/,/g, ""));
function sort(table, column, up) {
  const rows = [...table.tBodies[0].rows];
  const text = (row) => row.cells[column].textContent.trim();
  const nothing = (row) => ["", "–"].includes(text(row));
  const numbers = rows.every((row) => nothing(row) || !Number.isNaN(number(text(row))));
  const compare = (a, b) =>
    nothing(a) - nothing(b) ||
    (up ? 1 : -1) * (numbers ? number(text(a)) - number(text(b)) : text(a).localeCompare(text(b)));
  table.tBodies[0].append(...rows.sort(compare));
}
for (const head of document.querySelectorAll("th")) {
  head.firstChild.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    sort(head.closest("table"), head.cellIndex, up);
  });
}
