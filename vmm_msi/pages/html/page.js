"use strict";
document.documentElement.classList.add("scripted");

// What is only of use with this script is hidden until it runs.
for (const part of document.querySelectorAll(".controls, .filter, .rows, .copy")) part.hidden = false;

for (const button of document.querySelectorAll(".copy")) {
  const label = button.textContent;
  button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code, span");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      // A file may have no access to the clipboard: select the text for the keyboard's own copy.
      getSelection().selectAllChildren(code);
      button.textContent = "Selected: press Ctrl+C";
    }
    setTimeout(() => { button.textContent = label; }, 3000);
  });
}

function show(parts, wanted, output, noun) {
  let count = 0;
  for (const part of parts) {
    part.hidden = !wanted(part);
    count += !part.hidden;
  }
  output.textContent = count === parts.length ? "" : `${count} of ${parts.length} ${noun} shown`;
}

// "direct 01:00, identity" is what has both of the first words, or the last one.
function matcher(input) {
  const wanted = input.value.toLowerCase().split(",").map((words) => words.split(/\s+/).filter(Boolean));
  const some = wanted.filter((words) => words.length);
  return (part) => {
    const text = part.textContent.toLowerCase();
    return !some.length || some.some((words) => words.every((word) => text.includes(word)));
  };
}

for (const bar of document.querySelectorAll(".filter")) {
  const parts = [...bar.parentElement.querySelectorAll(":scope > .section[data-marks]:not([data-marks=''])")];
  const search = bar.querySelector("input[type=search]");
  const output = bar.querySelector("output");
  bar.addEventListener("input", () => {
    const marks = new Set([...bar.querySelectorAll("input:checked")].map((box) => box.value));
    const matches = matcher(search);
    show(parts, (part) => part.dataset.marks.split(" ").some((mark) => marks.has(mark))
      && matches(part), output, "entries");
  });
}

for (const bar of document.querySelectorAll(".rows")) {
  const rows = [...bar.nextElementSibling.querySelectorAll("tbody tr")];
  bar.addEventListener("input", () => {
    show(rows, matcher(bar.querySelector("input")), bar.querySelector("output"), "rows");
  });
}

// Arrow keys go from cell to cell of a table whose cells are links.
for (const table of document.querySelectorAll("table")) {
  const ways = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  table.addEventListener("keydown", (event) => {
    const way = ways[event.key];
    const cell = event.target.closest("td, th");
    if (!way || !cell || event.target.tagName !== "A") return;
    const row = table.rows[cell.parentElement.rowIndex + way[0]];
    const link = row?.cells[cell.cellIndex + way[1]]?.querySelector("a");
    if (link) {
      event.preventDefault();
      event.stopPropagation();
      link.focus();
    }
  });
}

for (const area of document.querySelectorAll(".walks")) {
  const walks = new Map([...area.querySelectorAll(".walk")].map((walk) => [walk.id, walk]));
  const select = area.querySelector("select");
  const output = area.querySelector("output");
  let chosen = null;
  let step = 0;

  const rows = new Set([...walks.values()].map((walk) => walk.dataset.row));
  for (const row of rows) select.add(new Option(row, row));

  function beside() {
    return [...walks.values()].find((walk) => walk !== chosen
      && walk.dataset.row === select.value && walk.dataset.column === chosen.dataset.column);
  }

  function draw() {
    const pair = [chosen, beside()].filter(Boolean);
    for (const walk of walks.values()) walk.classList.toggle("shown", pair.includes(walk));
    for (const walk of pair) area.append(walk); // the chosen one first
    for (const link of document.querySelectorAll("td > a")) {
      const id = link.hash.slice(1);
      link.classList.toggle("chosen", id === chosen.id);
      link.classList.toggle("beside", pair.length > 1 && id === pair[1].id);
      if (id === chosen.id) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
    for (const walk of pair) {
      [...walk.querySelectorAll("g[data-step]")].forEach((group) => {
        const number = Number(group.dataset.step);
        group.classList.toggle("later", step > 0 && number > step);
        group.classList.toggle("now", number === step);
      });
      [...walk.querySelectorAll("li")].forEach((item, index) => {
        item.classList.toggle("later", step > 0 && index + 1 > step);
        if (index + 1 === step) item.setAttribute("aria-current", "step");
        else item.removeAttribute("aria-current");
      });
    }
  }

  function go(way) {
    const items = chosen.querySelectorAll("li");
    step = way === 0 ? 0 : Math.min(items.length, Math.max(0, step + way));
    draw();
    // Of two paths each says for itself what happens there.
    const item = items[step - 1];
    const text = item && (beside() ? item.querySelector("b") : item).innerText.replace(/\s+/g, " ");
    output.textContent = text ?? "the whole path";
  }

  function choose(walk) {
    chosen = walk;
    step = 0;
    output.textContent = "";
    draw();
  }

  area.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-go]");
    if (button) go(Number(button.dataset.go));
    if (event.target.closest("button[data-back]")) document.querySelector("td > a.chosen")?.focus();
  });
  select.addEventListener("change", draw);
  document.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const here = event.target === document.body || (area.contains(event.target) && event.target !== select);
    if (!way || !here || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    go(way);
  });
  window.addEventListener("hashchange", () => {
    const walk = walks.get(location.hash.slice(1));
    if (walk) {
      choose(walk);
      walk.focus();
    }
  });
  if (walks.size) {
    choose(walks.get(location.hash.slice(1))
      || [...walks.values()].find((walk) => walk.querySelector("g.bad")) || [...walks.values()][0]);
  }
}
