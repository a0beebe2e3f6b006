
// ---- colours and keys ----

const COLOUR = i => data.colours[i % data.colours.length];

/** Dark blue to yellow, as bright as the share is large; readers with any colour vision can order it. */
function shade(share) {
  const stops = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
  const at = Math.min(1, Math.max(0, share)) * (stops.length - 1), i = Math.min(stops.length - 2, Math.floor(at));
  return `rgb(${stops[i].map((from, c) => Math.round(from + (at - i) * (stops[i + 1][c] - from))).join(" ")})`;
}

function key(id, entries) {
  byId(id).replaceChildren();
  for (const [name, colour] of entries) {
    const entry = make(byId(id), "span");
    make(entry, "i").style.background = colour;
    make(entry, "span", {}, name);
  }
}

/** An empty picture and its box. */
function canvas(id) {
  const svg = byId(id), width = svg.clientWidth || 960, height = Number(svg.getAttribute("height"));
  svg.removeAttribute("hidden");
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  return {svg, box: {left: 76, right: width - 24, top: 14, bottom: height - 52, width}};
}

function absent(id, note) {
  byId(id).setAttribute("hidden", "");
  byId(`${id}Key`).replaceChildren();
  byId(`${id}Note`).textContent = note;
}

/** Those that no other beats in both: x is to be small, y small or large. */
function front(points, up) {
  const better = (a, b) => a.x <= b.x && (up ? a.y >= b.y : a.y <= b.y) && (a.x !== b.x || a.y !== b.y);
  return points.filter(point => !points.some(other => better(other, point)));
}

function fillSelect(id, entries, chosen) {
  byId(id).replaceChildren();
  for (const [value, text] of entries) make(byId(id), "option", {value}, text);
  byId(id).value = entries.some(([value]) => value === chosen) ? chosen : entries.length ? entries[0][0] : "";
}

/** A table of blocks × kinds of layer; a cell has a text, what is said of it, and a share for its colour, or null. */
function drawMap(tensors, cellOf) {
  const blocks = [...new Set(tensors.map(t => t.block))], kinds = [...new Set(tensors.map(t => t.kind))];
  byId("blocks").replaceChildren();
  byId("kinds").replaceChildren();
  make(byId("blocks"), "th");
  for (const block of blocks) make(byId("blocks"), "th", {scope: "col"}, block === "" ? "" : `block ${block}`);
  for (const kind of kinds) {
    const line = make(byId("kinds"), "tr");
    make(line, "th", {scope: "row"}, kind);
    for (const block of blocks) {
      const t = tensors.find(own => own.block === block && own.kind === kind);
      if (!t) { make(line, "td"); continue; }
      const {text, said, share} = cellOf(t), cell = make(line, "td", {title: said}, text);
      if (share === null) continue;
      cell.style.background = shade(share);
      cell.style.color = share > 0.55 ? "#000" : "#fff";
    }
  }
}

/** Points of x, y, colour and a function of what is said of them, those on the front outlined and joined; how many these are, and all. */
function drawFront(id, given, x, y, up) {
  const points = given.filter(p => Number.isFinite(p.x) && Number.isFinite(p.y)), {svg, box} = canvas(id);
  const sx = makeScale(points.map(p => p.x), false, box.left, box.right, Math.floor(box.width / 110));
  const sy = makeScale(points.map(p => p.y), Boolean(y.log), box.bottom, box.top, 7);
  drawAxes(svg, box, sx, sy, x, y);
  const best = front(points, up).sort((a, b) => a.x - b.x || (up ? b.y - a.y : a.y - b.y));
  const path = best.map(p => `${sx.at(p.x).toFixed(1)} ${sy.at(p.y).toFixed(1)}`).join("L");
  if (best.length > 1) make(svg, "path", {d: `M${path}`, fill: "none", stroke: "var(--quiet)", "stroke-dasharray": "4 3"});
  for (const p of points) {
    const look = best.includes(p) ? {stroke: "var(--text)", "stroke-width": 1.5} : {stroke: "var(--page)", "stroke-width": 1};
    const r = p.large ? 8 : p.small ? 3.5 : 5, at = {cx: sx.at(p.x).toFixed(1), cy: sy.at(p.y).toFixed(1), r};
    make(make(svg, "circle", {...at, fill: p.colour, ...look}), "title", {}, p.said());
  }
  return [best.length, points.length];
}
