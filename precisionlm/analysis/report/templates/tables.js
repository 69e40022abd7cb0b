// Tables that sort by a click on a head and show the rows that have all words of a text.
const ORDER = new Intl.Collator("en", { numeric: true });
const FEW = 12, AT_ONCE = 200; // rows up to which there is nothing to filter; rows shown until all are asked for, as in the template

function handy(table) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells], box = table.closest(".scroll");
  let rows = [...table.rows].slice(1), left = rows, most = AT_ONCE;
  const texts = new Map(), told = make("output"), more = make("button", { type: "button" });
  const field = make("input", { type: "search", placeholder: "filter rows", "aria-label": "filter rows" });

  function show() {
    body.replaceChildren(...left.slice(0, most));
    told.textContent = left.length === rows.length ? `${rows.length} rows` : `${left.length} of ${rows.length} rows`;
    more.textContent = `show all ${left.length}`;
    more.hidden = left.length <= most;
  }

  function filter() {
    if (!texts.size)
      for (const row of rows) texts.set(row, [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase());
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    left = rows.filter((row) => words.every((word) => texts.get(row).includes(word)));
    show();
  }

  heads.forEach((head, column) => {
    const button = make("button", { type: "button" }, ...head.childNodes);
    head.replaceChildren(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const way = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      heads.forEach((other) => other.setAttribute("aria-sort", other === head ? way : "none"));
      rows = sorted(rows, column, way === "ascending" ? 1 : -1);
      filter();
    });
  });
  field.addEventListener("input", filter);
  more.addEventListener("click", () => { most = Infinity; show(); });
  table.tBodies[1]?.remove();
  if (rows.length > FEW) box.before(make("div", { class: "controls" }, field, told, more));
  show();
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
