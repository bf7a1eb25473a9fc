// Tables that sort by a click on a heading; the confusion matrix: its cell size, and the count at the pointer.
document.documentElement.classList.add("js");
for (const table of document.querySelectorAll("table.sortable")) {
  table.tHead.addEventListener("click", (event) => {
    const heading = event.target.closest("th");
    if (!heading) return;
    const sign = (heading.dataset.sign = heading.dataset.sign === "1" ? -1 : 1), column = heading.cellIndex;
    const value = (row) => row.cells[column].dataset.v ?? row.cells[column].textContent;
    const byText = (a, b) => sign * value(a).localeCompare(value(b), undefined, { numeric: true });
    const byNumber = (a, b) => sign * (value(a) - value(b));
    const body = table.tBodies[0], rows = [...body.rows];
    body.append(...rows.sort(rows.every((row) => row.cells[column].dataset.v) ? byNumber : byText));
  });
}
for (const matrix of document.querySelectorAll(".matrix")) {
  const { names, cells, text } = JSON.parse(document.getElementById(matrix.dataset.of).textContent);
  const slider = document.querySelector(`input[data-of=${matrix.dataset.of}]`);
  const output = slider.closest(".zoom").querySelector("output");
  const resize = () => {
    matrix.style.setProperty("--cell", slider.value + "px");
    matrix.classList.toggle("tiny", slider.value < 11);
  };
  slider.value = matrix.querySelector(".true span").offsetHeight;
  slider.addEventListener("input", resize);
  matrix.querySelector(".cells").addEventListener("pointermove", (event) => {
    const box = event.currentTarget.getBoundingClientRect(), n = names.length;
    const index = (x, length) => Math.min(n - 1, Math.max(0, Math.floor((x * n) / length)));
    const i = index(event.clientY - box.top, box.height), j = index(event.clientX - box.left, box.width);
    const sum = Object.values(cells[i]).reduce((a, b) => a + b, 0), count = cells[i][j] ?? 0;
    const share = sum ? ((100 * count) / sum).toFixed(1) : "0";
    const values = { true: names[i], predicted: names[j], count, sum, share };
    output.textContent = text.replace(/{(\w+)}/g, (_, key) => values[key]);
  });
}
