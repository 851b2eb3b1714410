"use strict";
// What a point says when it is pointed at; tables that sort and filter. Nothing is loaded.
const tip = document.getElementById("tip");
let lit = null;
const light = (mark) => {
  if (lit) lit.classList.remove("on");
  lit = mark;
  tip.hidden = !mark;
  if (mark) { mark.classList.add("on"); tip.textContent = mark.getAttribute("aria-label"); }
};
const middle = (mark, box) => {
  const at = mark.getBoundingClientRect();
  return [mark, at.left + at.width / 2 - box.left, at.top + at.height / 2 - box.top];
};
for (const svg of document.querySelectorAll(".panels svg")) {
  let places = [], width = 0;
  const nearest = (event) => {
    const box = svg.getBoundingClientRect();
    if (box.width !== width) { width = box.width; places = [...svg.querySelectorAll(".p")].map((m) => middle(m, box)); }
    let best = null, least = 16 ** 2;
    for (const [mark, x, y] of places) {
      const away = (x - event.clientX + box.left) ** 2 + (y - event.clientY + box.top) ** 2;
      if (away < least) { least = away; best = mark; }
    }
    return best;
  };
  svg.addEventListener("pointermove", (event) => {
    light(nearest(event));
    const right = Math.max(4, window.innerWidth - tip.offsetWidth - 8);
    tip.style.left = Math.min(event.clientX + 14, right) + "px";
    tip.style.top = Math.min(event.clientY + 16, window.innerHeight - tip.offsetHeight - 8) + "px";
  });
  svg.addEventListener("pointerleave", () => light(null));
  svg.addEventListener("click", (event) => {
    const mark = lit ?? nearest(event);
    const row = mark && document.querySelector(`tr[data-run="${CSS.escape(mark.getAttribute("aria-label").split(":")[0])}"]`);
    if (!row) return;
    document.querySelectorAll("tr.on").forEach((other) => other.classList.remove("on"));
    row.classList.add("on");
    row.hidden = false;
    for (let part = row.closest("details"); part; part = part.parentElement.closest("details")) part.open = true;
    row.scrollIntoView({ block: "center" });
  });
}
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const value = (row, i) => row.cells[i].dataset.v ?? row.cells[i].textContent.trim();
  const sort = (head, i) => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const keyed = [...body.rows].map((row) => [value(row, i), row]);
    const number = keyed.every(([key]) => key === "" || key === "\u2013" || !isNaN(key));
    const none = (key) => number && (key === "" || key === "\u2013");
    keyed.sort(([a], [b]) => none(a) - none(b)  // what is not known stays last
      || (up ? 1 : -1) * (number ? a - b : a.localeCompare(b, "en", { numeric: true })));
    body.append(...keyed.map(([, row]) => row));
  };
  heads.forEach((head, i) => {
    head.tabIndex = 0;
    head.addEventListener("click", () => sort(head, i));
    head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(head, i); });
  });
}
for (const tools of document.querySelectorAll(".tools")) {
  const input = tools.querySelector("input"), count = tools.querySelector("output");
  const rows = [...document.getElementById(input.dataset.of).tBodies[0].rows].map((row) => [row, row.textContent.toLowerCase()]);
  const filter = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let seen = 0;
    for (const [row, text] of rows) {
      const keep = words.every((word) => text.includes(word));
      row.hidden = !keep;
      seen += keep;
    }
    count.textContent = `${seen} of ${rows.length}`;
  };
  tools.hidden = false;
  input.addEventListener("input", filter);
  filter();
}
window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
