// Tables that sort by a click on a head and show the rows that have all words of a text.
const ORDER = new Intl.Collator("en", { numeric: true });
const FEW = 8; // rows up to which there is nothing to filter

function sortable(table) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = make("button", { type: "button" }, ...head.childNodes);
    head.replaceChildren(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const way = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      heads.forEach((other) => other.setAttribute("aria-sort", other === head ? way : "none"));
      body.append(...sorted([...body.rows], column, way === "ascending" ? 1 : -1));
    });
  });
}

// By number where every cell is one, else as text with its numbers in order; empty cells are last either way.
function sorted(rows, column, way) {
  const keyed = rows.map((row) => ({ row, text: row.cells[column].textContent.trim() }));
  const full = keyed.filter((one) => one.text !== ""), empty = keyed.filter((one) => one.text === "");
  for (const one of full) one.number = Number(one.text);
  const compare = full.every((one) => !Number.isNaN(one.number))
    ? (a, b) => a.number - b.number : (a, b) => ORDER.compare(a.text, b.text);
  return [...full.sort((a, b) => way * compare(a, b)), ...empty].map((one) => one.row);
}

function filterable(table) {
  const rows = [...table.tBodies[0].rows];
  if (rows.length <= FEW) return;
  let texts;
  const field = make("input", { type: "search", placeholder: "filter rows", "aria-label": "filter rows" });
  const told = make("output", {}, `${rows.length} rows`);
  field.addEventListener("input", () => {
    texts ??= rows.map((row) => [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase());
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let left = 0;
    rows.forEach((row, i) => {
      row.hidden = !words.every((word) => texts[i].includes(word));
      left += row.hidden ? 0 : 1;
    });
    told.textContent = left === rows.length ? `${left} rows` : `${left} of ${rows.length} rows`;
  });
  table.closest(".scroll").before(make("div", { class: "controls" }, field, told));
}
