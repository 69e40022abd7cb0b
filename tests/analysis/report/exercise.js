// Uses every control of a report as a reader would, and tells the page around it what it saw.
const seen = {};
const wait = () => new Promise((done) => setTimeout(done, 50));
const all = (what, within = document) => [...within.querySelectorAll(what)];
const change = (element, value, kind) => { element.value = value; element.dispatchEvent(new Event(kind, { bubbles: true })); };
const labelled = (text) => all("label").filter((l) => l.firstChild.data.trim() === text).map((l) => l.control);
const pointer = (svg, kind, target, pointerType) => {
  const box = target.getBoundingClientRect();
  const at = { clientX: box.x + box.width / 2, clientY: box.y + box.height / 2, bubbles: true, pointerType };
  svg.dispatchEvent(new PointerEvent(kind, at));
};
const key = (svg, name) => svg.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true }));
const tip = (svg) => svg.nextElementSibling.hidden ? "" : svg.nextElementSibling.innerText;

async function exercise() {
  await wait();
  seen.width = [document.documentElement.scrollWidth, innerWidth];

  const theme = document.getElementById("theme"), colour = () => getComputedStyle(document.body).backgroundColor;
  const before = colour();
  theme.click();
  seen.theme = [before, colour()];
  theme.click();

  const svg = document.querySelector(".chart"), dots = () => all(".dots path", svg);
  seen.dots = dots().length;
  pointer(svg, "pointermove", dots()[0], "mouse");
  seen.hover = tip(svg);
  pointer(svg, "pointerleave", svg, "mouse");
  seen.left = tip(svg);
  pointer(svg, "pointerdown", dots().at(-1), "touch");
  seen.tap = tip(svg);
  key(svg, "Home");
  seen.home = tip(svg);
  key(svg, "ArrowRight");
  seen.right = tip(svg);
  key(svg, "Escape");
  seen.escaped = tip(svg);

  const slider = document.querySelector("input[type=range]"), moved = () => document.querySelector(".moved").getAttribute("d");
  seen.slider = [];
  for (const value of [0, slider.max]) {
    change(slider, value, "input");
    seen.slider.push([moved(), slider.nextElementSibling.innerText, slider.getAttribute("aria-valuetext")]);
  }
  const [along, residuals] = labelled("against"), [group] = labelled("runs of"), [knob] = labelled("move");
  change(group, "0", "change");
  seen.group = dots().length;
  change(along, "1", "change");
  seen.axis = [svg.getAttribute("aria-label"), dots().length, group.value];
  seen.knobs = [...knob.options].map((option) => { change(knob, option.value, "change"); return all(".moved", svg).length; });
  seen.residuals = [...residuals.options].map((option) => {
    change(residuals, option.value, "change");
    return all(".dots path", all(".chart")[1]).length;
  });
  const [every, chip] = all(".chips button");
  chip.click();
  seen.chip = [chip.getAttribute("aria-pressed"), dots().length];
  seen.every = [0, 1].map(() => { every.click(); return [dots().length, chip.getAttribute("aria-pressed")]; });

  const table = document.querySelector(".runs table"), heads = [...table.tHead.rows[0].cells];
  const column = heads.findIndex((head) => head.textContent === "val_loss"), body = table.tBodies[0];
  const values = () => [...body.rows].map((row) => row.cells[column].textContent);
  seen.sorted = [0, 1].map(() => {
    heads[column].querySelector("button").click();
    return [heads[column].getAttribute("aria-sort"), values()];
  });
  const field = document.querySelector(".runs").previousElementSibling.querySelector("input");
  seen.filtered = ["w3A8", "no such run", ""].map((text) => {
    change(field, text, "input");
    return [body.rows.length, field.nextElementSibling.textContent];
  });
  seen.images = all("img, iframe, object, a").length;
  seen.scripts = document.scripts.length;
}

addEventListener("load", () => exercise().catch((problem) => errors.push(`exercise: ${problem.stack}`))
  .finally(() => parent.postMessage(JSON.stringify({ ...seen, errors }), "*")));
