/* A click on a column heading sorts the rows of its table: numbers by size, all else as text; a second click reverses. */
document.addEventListener("click", event => {
  const heading = event.target.closest("article th");
  if (!heading) return;
  const table = heading.closest("table"), body = table.tBodies[0], column = heading.cellIndex;
  const text = row => row.cells[column].textContent.trim();
  const down = heading.dataset.sorted !== "up" ? 1 : -1;
  const compare = (a, b) => {
    const [x, y] = [text(a), text(b)];
    if (!x || !y) return !x - !y;  /* empty cells come last in either order */
    const [m, n] = [parseFloat(x), parseFloat(y)];
    return down * (isNaN(m) || isNaN(n) ? x.localeCompare(y) : m - n);
  };
  body.append(...[...body.rows].sort(compare));
  for (const other of table.querySelectorAll("th")) delete other.dataset.sorted;
  heading.dataset.sorted = down > 0 ? "up" : "down";
});
