"use strict";

// A column is sorted by the numbers its cells carry, else by their text; what has no value stays last.
function sorted(rows, column, kind, sign) {
  const key = (row) => {
    const cell = row.cells[column];
    if (kind === "number") return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
    return cell.textContent.trim() || null;
  };
  const order = (a, b) => (kind === "number" ? a - b : a.localeCompare(b, "en", { numeric: true }));
  return rows
    .map((row, place) => ({ row, place, key: key(row) }))
    .sort((a, b) => {
      if (a.key === null || b.key === null) return (a.key === null) - (b.key === null) || a.place - b.place;
      return sign * order(a.key, b.key) || a.place - b.place;
    })
    .map((one) => one.row);
}

function makeSortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  const first = [...table.tBodies[0].rows];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.title = "Sort by this column";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const direction = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", direction);
      const sign = direction === "ascending" ? 1 : -1;
      table.tBodies[0].append(...sorted(first, column, head.dataset.kind, sign));
    });
  });
}

function makeFilter(bar) {
  const rows = [...document.getElementById(bar.dataset.table).querySelectorAll("tbody tr")];
  const buttons = [...bar.querySelectorAll("button")];
  const said = bar.querySelector("[role=status]");
  bar.hidden = false;
  buttons.forEach((button) => {
    button.addEventListener("click", () => {
      const wanted = button.dataset.group;
      buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
      rows.forEach((row) => { row.hidden = wanted !== "" && row.dataset.group !== wanted; });
      said.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows shown`;
    });
  });
}

document.querySelectorAll("table.data").forEach(makeSortable);
document.querySelectorAll(".filters").forEach(makeFilter);
if (window.matchMedia("(max-width: 64rem)").matches) document.querySelector("nav details").open = false;
window.addEventListener("beforeprint", () => {
  document.querySelectorAll("details").forEach((one) => { one.open = true; });
});
