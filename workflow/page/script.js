"use strict";
// ---- theme: the system's, until the button chooses; remembered where the browser allows it
const root = document.documentElement;
const store = { get: () => { try { return localStorage.getItem("theme"); } catch { return null; } },
                set: (value) => { try { localStorage.setItem("theme", value); } catch { /* private */ } } };
if (store.get()) root.dataset.theme = store.get();
document.getElementById("theme").addEventListener("click", () => {
  const dark = (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  root.dataset.theme = dark ? "light" : "dark";
  store.set(root.dataset.theme);
});

// ---- table: numbers by size, text by name, what is empty last; a second press turns the order round
const table = document.getElementById("rows");
const body = table.tBodies[0];
const heads = [...table.tHead.rows[0].cells];
function sortBy(index) {
  const head = heads[index], down = head.getAttribute("aria-sort") === "ascending";
  heads.forEach((other) => other.setAttribute("aria-sort", "none"));
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const key = (row) => row.cells[index].dataset.sort;
  const numeric = head.classList.contains("number");
  const order = (a, b) => (numeric ? Number(a) - Number(b) : a.localeCompare(b)) * (down ? -1 : 1);
  const rows = [...body.rows].sort((a, b) => {
    if (key(a) === "" || key(b) === "") return (key(a) === "") - (key(b) === "");
    return order(key(a), key(b));
  });
  body.append(...rows);
}
heads.forEach((head, index) => head.querySelector("button").addEventListener("click", () => sortBy(index)));

// ---- filter: every word must stand somewhere in the row
const filter = document.getElementById("filter"), count = document.getElementById("count");
function show() {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of body.rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
    shown += !row.hidden;
  }
  count.textContent = `${shown} of ${body.rows.length} rows`;
}
filter.addEventListener("input", show);
show();

// ---- what is behind a row; its first picture is the gallery's
function openRow(id) {
  const dialog = document.getElementById(id);
  for (const image of dialog.querySelectorAll("img[data-from]")) {
    image.src = document.getElementById(image.dataset.from).src;
    image.removeAttribute("data-from");
  }
  dialog.showModal();
  dialog.scrollTop = 0;
}
document.addEventListener("click", (event) => {
  const opener = event.target.closest("[data-open]");
  if (opener) openRow(opener.dataset.open);
  else if (event.target.tagName === "DIALOG") event.target.close();
});
