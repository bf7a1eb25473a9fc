// Tables that sort by a click on a heading, and the confusion matrix: its size, and what the pointer is at.
document.documentElement.classList.add("js");
for (const table of document.querySelectorAll("table.sortable")) {
  table.tHead.addEventListener("click", (event) => {
    const cell = event.target.closest("th");
    if (!cell) return;
    const way = (cell.dataset.way = cell.dataset.way === "1" ? -1 : 1), at = cell.cellIndex;
    const value = (row) => row.cells[at].dataset.v ?? row.cells[at].textContent;
    const order = (a, b) => way * value(a).localeCompare(value(b), undefined, { numeric: true });
    const numbers = (a, b) => way * (value(a) - value(b));
    const body = table.tBodies[0], rows = [...body.rows];
    body.append(...rows.sort(rows.every((row) => row.cells[at].dataset.v) ? numbers : order));
  });
}
for (const matrix of document.querySelectorAll(".matrix")) {
  const { names, cells, said } = JSON.parse(document.getElementById(matrix.dataset.of).textContent);
  const zoom = document.querySelector(`input[data-of=${matrix.dataset.of}]`);
  const out = zoom.closest(".zoom").querySelector("output");
  const size = () => {
    matrix.style.setProperty("--cell", zoom.value + "px");
    matrix.classList.toggle("tiny", zoom.value < 11);
  };
  zoom.addEventListener("input", size);
  size();
  matrix.querySelector(".cells").addEventListener("pointermove", (event) => {
    const box = event.currentTarget.getBoundingClientRect(), n = names.length;
    const at = (x, length) => Math.min(n - 1, Math.max(0, Math.floor((x * n) / length)));
    const i = at(event.clientY - box.top, box.height), j = at(event.clientX - box.left, box.width);
    const sum = Object.values(cells[i]).reduce((a, b) => a + b, 0), count = cells[i][j] ?? 0;
    const values = { true: names[i], said: names[j], count, sum, share: sum ? ((100 * count) / sum).toFixed(1) : "0" };
    out.textContent = said.replace(/{(\w+)}/g, (_, key) => values[key]);
  });
}
