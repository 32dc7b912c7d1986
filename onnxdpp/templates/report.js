"use strict";
// Columns sort by what their cells say in data-v: numbers by size, names by letters; what is missing comes last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const words = head.classList.contains("words");
      const now = head.getAttribute("aria-sort");
      const down = now === "ascending" || (now === "none" && !words);
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => row.cells[column].dataset.v;
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        const order = words ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
        return down ? -order : order;
      });
      table.tBodies[0].append(...rows);
    });
  });
}
// Under the pointer, what the curve says: read back from its own path and the ends of its scales.
for (const plot of document.querySelectorAll("svg.probed")) {
  const [left, right, bottom, top, n, low, high] = ["left", "right", "bottom", "top", "n", "low", "high"].map((name) => +plot.dataset[name]);
  const points = plot.querySelector(".line").getAttribute("d").slice(1).split("L").map((pair) => pair.split(" ").map(Number));
  const probe = plot.querySelector(".probe");
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * plot.viewBox.baseVal.width;
    const [x, y] = points.reduce((best, point) => (Math.abs(point[0] - at) < Math.abs(best[0] - at) ? point : best));
    const kept = Math.round(((x - left) / (right - left)) * n);
    const loss = low * (high / low) ** ((bottom - y) / (bottom - top));
    probe.querySelector("path").setAttribute("transform", `translate(${x})`);
    probe.querySelector("circle").setAttribute("transform", `translate(${x} ${y})`);
    probe.querySelector("text").textContent = `${kept} kept: loss ${y >= bottom ? "≤ " : ""}${loss.toPrecision(2)}`;
    probe.setAttribute("visibility", "visible");
  });
  plot.addEventListener("pointerleave", () => probe.setAttribute("visibility", "hidden"));
}
// Paper shows everything.
window.addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
});
// A link to a layer opens it.
const follow = () => {
  const part = document.getElementById(location.hash.slice(1));
  if (part instanceof HTMLDetailsElement) part.open = true;
};
window.addEventListener("hashchange", follow);
follow();
