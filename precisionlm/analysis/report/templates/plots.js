"use strict";
// What moves on the page. It draws numbers that were computed when the page was written, and knows no law.
// Text from the table reaches the document as text nodes and attributes only.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 340, LEFT = 52, RIGHT = 22, TOP = 10, BOTTOM = 42, NEAR = 24;
const SHAPES = ["M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0", "M-3.5,-3.5h7v7h-7z", "M0,-4.5L4.3,3.5h-8.6z",
                "M0,-5L4.5,0L0,5L-4.5,0z", "M0,4.5L4.3,-3.5h-8.6z",
                "M-4.5,-1.3h3.2v-3.2h2.6v3.2h3.2v2.6h-3.2v3.2h-2.6v-3.2h-3.2z"];

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  return filled(element, attributes, children);
}

function draw(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function count(value) {
  for (const [size, letter] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]])
    if (value >= size) return Number((value / size).toPrecision(3)) + letter;
  return String(Number(value.toPrecision(3)));
}

const short = (value) => value === null ? "unknown" : String(Number(value.toPrecision(4)));

function within(value, low, high) {
  if (value === null) return "undefined";
  return `${short(value)} ${low === null || high === null ? "(not determined)" : `[${short(low)}, ${short(high)}]`}`;
}

// Scales: values -> pixels, with ticks.
function scale(values, log, from, to) {
  const known = values.filter((v) => v !== null && (!log || v > 0));
  if (!known.length) known.push(1);
  const turn = log ? Math.log : (v) => v, back = log ? Math.exp : (v) => v;
  let low = Infinity, high = -Infinity;
  for (const v of known) { low = Math.min(low, turn(v)); high = Math.max(high, turn(v)); }
  const margin = 0.05 * (high - low) || (log ? 0.3 : 0.05 * Math.abs(high) || 1);
  low -= margin; high += margin;
  const at = (v) => from + (turn(v) - low) / (high - low) * (to - from);
  const most = Math.max(2, Math.floor(Math.abs(to - from) / 55));
  return { at, ticks: log ? decades(back(low), back(high), most) : steps(low, high, most) };
}

function decades(low, high, most) {
  for (const parts of [[1, 2, 5], [1, 3], [1]]) {
    const found = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++)
      for (const part of parts) if (part * 10 ** e >= low && part * 10 ** e <= high) found.push(part * 10 ** e);
    if (found.length <= most && found.length > 1) return found;
  }
  return [low * 1.1, high / 1.1];
}

function steps(low, high, most) {
  const rough = (high - low) / most, size = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * size).find((s) => s >= rough);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) found.push(i * step);
  return found;
}

function path(xs, ys) {
  let d = "", pen = "M";
  xs.forEach((x, i) => {
    if (ys[i] === null) { pen = "M"; return; }
    d += `${pen}${x.toFixed(1)},${ys[i].toFixed(1)}`;
    pen = "L";
  });
  return d;
}

// One chart of a fit's runs. `view` says what to draw for the present choices, see lossView and residualView.
function chart(host, view) {
  const tip = make("div", { class: "tip", role: "status", "aria-live": "polite" });
  const svg = draw("svg", { tabindex: 0, role: "img", class: "chart", height: HEIGHT });
  host.append(svg, tip);
  tip.hidden = true;
  let spots = [], chosen = -1, now;

  function show(i) {
    chosen = i;
    svg.querySelector(".chosen")?.remove();
    tip.hidden = i < 0;
    if (i < 0) return;
    const spot = spots[i];
    tip.replaceChildren(...now.told(spot.run).map((line) => make("div", {}, line)));
    svg.append(draw("circle", { class: "chosen", cx: spot.x, cy: spot.y, r: 8 }));
    const room = host.clientWidth - tip.offsetWidth - 8;
    tip.style.left = `${Math.max(4, Math.min(spot.x + 12, room))}px`;
    tip.style.top = `${Math.max(0, spot.y < 150 ? spot.y + 16 : spot.y - tip.offsetHeight - 12)}px`;
  }

  function nearest(event) {
    const box = svg.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    let best = -1, least = NEAR ** 2;
    spots.forEach((spot, i) => {
      const far = (spot.x - x) ** 2 + (spot.y - y) ** 2;
      if (far < least) { best = i; least = far; }
    });
    return best;
  }

  svg.addEventListener("pointermove", (event) => show(nearest(event)));
  svg.addEventListener("pointerdown", (event) => show(nearest(event)));
  svg.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") show(-1); });
  svg.addEventListener("blur", () => show(-1));
  svg.addEventListener("keydown", (event) => {
    const last = spots.length - 1;
    const to = { ArrowRight: Math.min(chosen + 1, last), ArrowLeft: Math.max(chosen - 1, 0), Home: 0, End: last,
                 Escape: -1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    show(to);
  });

  function redraw() {
    const width = Math.max(host.clientWidth, 240);
    const kept = spots[chosen]?.run;
    now = view();
    svg.setAttribute("width", width);
    svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    svg.setAttribute("aria-label", `${now.label}. ${now.points.length} runs; arrow keys go from run to run.`);
    const x = scale(now.points.map((p) => p.x), now.logX, LEFT, width - RIGHT);
    const y = scale([...now.points.map((p) => p.y), ...now.marks], now.logY, HEIGHT - BOTTOM, TOP);
    const frame = draw("g", { class: "frame" });
    for (const v of x.ticks) frame.append(
      draw("line", { x1: x.at(v), x2: x.at(v), y1: TOP, y2: HEIGHT - BOTTOM }),
      draw("text", { x: x.at(v), y: HEIGHT - BOTTOM + 15, "text-anchor": "middle" }, now.logX && v >= 1000 ? count(v) : short(v)));
    for (const v of y.ticks) frame.append(
      draw("line", { x1: LEFT, x2: width - RIGHT, y1: y.at(v), y2: y.at(v) }),
      draw("text", { x: LEFT - 6, y: y.at(v) + 4, "text-anchor": "end" }, short(v)));
    for (const v of now.marks) frame.append(
      draw("line", { class: "mark", x1: LEFT, x2: width - RIGHT, y1: y.at(v), y2: y.at(v) }));
    frame.append(draw("text", { x: (LEFT + width - RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, now.titleX));
    const inside = (values) => values.map((v) => v === null || (now.logY && v <= 0) ? null
      : Math.max(-1e4, Math.min(1e4, y.at(v))));
    const lines = draw("svg", { x: LEFT, y: TOP, width: width - LEFT - RIGHT, height: HEIGHT - TOP - BOTTOM,
                                viewBox: `${LEFT} ${TOP} ${width - LEFT - RIGHT} ${HEIGHT - TOP - BOTTOM}` });
    for (const line of now.lines) {
      const xs = line.x.map(x.at);
      if (line.low && !line.low.includes(null) && !line.high.includes(null)) lines.append(draw("path", {
        class: "band", d: path([...xs, ...xs.toReversed()], [...inside(line.low), ...inside(line.high).toReversed()]) }));
      lines.append(draw("path", { class: line.class, stroke: line.colour ?? "currentColor", d: path(xs, inside(line.y)) }));
    }
    const dots = draw("g", { class: "dots" });
    spots = now.points.filter((p) => p.x !== null && p.y !== null).sort((a, b) => a.x - b.x || a.y - b.y)
      .map((p) => ({ run: p.run, look: p.look, x: x.at(p.x), y: y.at(p.y) }));
    for (const spot of spots) dots.append(draw("path", { d: SHAPES[spot.look.shape], fill: spot.look.colour,
      transform: `translate(${spot.x.toFixed(1)},${spot.y.toFixed(1)})` }));
    svg.replaceChildren(frame, lines, dots);
    show(spots.findIndex((spot) => spot.run === kept));
  }

  new ResizeObserver(redraw).observe(host);
  return redraw;
}

// The plots of one fit and what they are chosen by.
function plots(host, fit) {
  const state = { axis: 0, group: "", against: "", knob: "", stop: 0, without: new Set() };
  const { runs } = fit, axis = () => fit.axes[state.axis];

  function told(i) {
    const lines = [fit.names[runs.name[i]], fit.recipes[runs.recipe[i]].name];
    if (runs.N && runs.D) lines.push(`N = ${count(runs.N[i])}, D = ${count(runs.D[i])} tokens`);
    const error = runs.error[i] === null ? "" : ` ± ${short(runs.error[i])} (95 %)`;
    return [...lines, `observed ${short(runs.loss[i])}${error}`,
            `the law ${within(runs.law[i], runs.low[i], runs.high[i])}`,
            `the law is ${short(runs.percent[i])} % off, ${short(runs.far[i])} standard deviations`];
  }

  const seen = (i) => !state.without.has(runs.recipe[i])
    && (state.group === "" || !fit.axes.length || axis().group[i] === Number(state.group));
  const points = (xs, ys) => runs.loss.map((_, i) => i).filter(seen)
    .map((i) => ({ run: i, x: xs[i], y: ys[i], look: fit.recipes[runs.recipe[i]] }));

  function lossView() {
    const { key, title, groups, lines } = axis(), chosen = (g) => state.group === "" || g === Number(state.group);
    const drawn = lines.filter((l) => chosen(l.group) && l.recipes.some((r) => !state.without.has(r))).map((l) => ({
      x: groups[l.group].x, y: l.y, class: "law",
      colour: l.alike ? undefined : fit.recipes[l.recipes.find((r) => !state.without.has(r))].colour }));
    if (state.knob !== "") {
      const { y, low, high } = fit.knobs[state.knob].axes[key];
      groups.forEach((group, g) => chosen(g) && drawn.push({ x: group.x, y: y[state.stop][g], low: low[state.stop][g],
        high: high[state.stop][g], class: "moved" }));
    }
    return { points: points(runs[key], runs.loss), lines: drawn, logX: true, logY: fit.log, titleX: title, marks: [],
             told, label: `${fit.loss} against ${title}` };
  }

  function residualView() {
    const title = residuals.find(([key]) => key === state.against)[1];
    return { points: points(runs[state.against], runs.far), lines: [], logX: state.against !== "bits" && (state.against !== "law" || fit.log),
             logY: false, titleX: title, marks: [-3, 0, 3], told, label: `Residuals against ${title}` };
  }

  const residuals = [["law", "loss that the law predicts"], ["D", "training tokens D"],
                     ["N", "non-embedding parameters N"], ["bits", "mean bits of the operands in training"]]
    .filter(([key]) => runs[key]?.some((v) => v !== runs[key][0]));
  const all = [], redraw = () => all.forEach((one) => one());
  const figure = (title, ...controls) => {
    const box = make("div", { class: "plot" });
    host.append(make("h4", {}, title), make("div", { class: "controls" }, ...controls), box);
    return box;
  };
  if (fit.axes.length) {
    const among = () => [["", `every ${axis().other}`], ...axis().groups.map((g, i) => [i, g.label])];
    const group = select("runs of", among(), (value) => { state.group = value; redraw(); tell(); });
    const along = select("against", fit.axes.map((a, i) => [i, a.title]), (value) => {
      state.axis = Number(value); state.group = ""; refill(group, among()); redraw(); tell();
    });
    const output = make("output");
    const slider = make("input", { type: "range", min: 0, step: 1, "aria-label": "precision of the moved line" });
    const tell = () => {
      const knob = fit.knobs[state.knob];
      slider.hidden = output.hidden = !knob;
      if (!knob) return;
      const { key, other, groups } = axis(), { y, low, high } = knob.axes[key], s = state.stop;
      const says = groups.map((g, i) => [g, i]).filter(([, i]) => state.group === "" || i === Number(state.group))
        .map(([g, i]) => `${g.at}, ${key} = ${g.end}: ${within(y[s][i].at(-1), low[s][i].at(-1), high[s][i].at(-1))}`);
      slider.setAttribute("aria-valuetext", knob.stops[s]);
      output.replaceChildren(make("b", {}, knob.stops[s]), ...says.map((text) => make("div", {}, text)));
    };
    const take = (value) => {
      state.knob = value;
      if (value !== "") { slider.max = fit.knobs[value].stops.length - 1; slider.value = state.stop = fit.knobs[value].start; }
      redraw(); tell();
    };
    slider.addEventListener("input", () => { state.stop = Number(slider.value); redraw(); tell(); });
    const moved = fit.knobs.length ? [select("move", [...fit.knobs.map((k, i) => [i, k.title]), ["", "nothing"]], take),
                                      slider, output] : [];
    all.push(chart(figure(fit.loss, along, group, ...moved), lossView));
    if (moved.length) take(0);
  }
  if (residuals.length) {
    state.against = residuals[0][0];
    all.push(chart(figure("What the law leaves, in standard deviations",
      select("against", residuals, (value) => { state.against = value; redraw(); })), residualView));
  }
  const chips = fit.recipes.map((look, r) => {
    const swatch = draw("svg", { width: 12, height: 12, viewBox: "-6 -6 12 12", "aria-hidden": "true" },
                        draw("path", { d: SHAPES[look.shape], fill: look.colour }));
    return make("button", { type: "button" }, swatch, look.name);
  });
  const every = make("button", { type: "button" });
  const press = () => {
    chips.forEach((chip, r) => chip.setAttribute("aria-pressed", String(!state.without.has(r))));
    every.textContent = state.without.size < chips.length ? "none" : "all";
    redraw();
  };
  chips.forEach((chip, r) => chip.addEventListener("click", () => {
    if (!state.without.delete(r)) state.without.add(r);
    press();
  }));
  every.addEventListener("click", () => {
    state.without = new Set(state.without.size < chips.length ? chips.keys() : []);
    press();
  });
  press();
  if (chips.length > 1)
    host.prepend(make("div", { class: "chips", role: "group", "aria-label": "recipes" }, every, ...chips));
  if (fit.shown < fit.total) host.append(make("p", {}, `${fit.shown} of ${fit.total} rows are drawn.`));
}

function select(label, options, act) {
  const found = make("select");
  refill(found, options);
  found.addEventListener("change", () => act(found.value));
  return make("label", {}, `${label} `, found);
}

function refill(within, options) {
  const target = within.querySelector("select") ?? within;
  target.replaceChildren(...options.map(([value, text]) => make("option", { value }, text)));
}
