"use strict";
const data = JSON.parse(document.getElementById("data").textContent);

// ---- elements ----

function byId(id) { return document.getElementById(id); }

/** An element with attributes and text; nothing is ever parsed as HTML. */
function make(parent, name, attributes = {}, text = null) {
  const element = document.createElementNS(parent.namespaceURI, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== null) element.textContent = text;
  parent.append(element);
  return element;
}

// ---- numbers ----

const FIXED = new Intl.NumberFormat("en", {maximumFractionDigits: 0});
const SHORT = new Intl.NumberFormat("en", {maximumSignificantDigits: 4});

/** A count with separators; anything else with four digits. */
function figure(value, measure) {
  if (measure.count) return FIXED.format(value);
  return value !== 0 && Math.abs(value) < 1e-4 ? value.toExponential(2) : SHORT.format(value);
}

/** A tick: 2 k, 50 M for counts, plain numbers else, powers of ten where these would be long. */
function tickText(value, measure) {
  const plain = v => new Intl.NumberFormat("en", {maximumSignificantDigits: 6, useGrouping: false}).format(v);
  if (measure.count) {
    for (const [unit, size] of [["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
      if (Math.abs(value) >= size * 0.9999) return `${plain(value / size)} ${unit}`;
    }
  }
  if (value !== 0 && (Math.abs(value) < 1e-4 || Math.abs(value) >= 1e6)) return value.toExponential().replace("e+", "e");
  return plain(value);
}

function linearTicks(low, high, most) {
  const rough = (high - low) / most, base = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(f => f * base).find(s => s >= rough * 0.999) || 10 * base;
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high * (1 + 1e-12) + step * 1e-9; i++) {
    ticks.push(Number((i * step).toPrecision(12)));
  }
  return ticks;
}

/** Powers of ten, about `most` of them; with multiples where these are too few. */
function logTicks(low, high, most) {
  const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
  const stride = Math.max(1, Math.ceil((last - first) / most));
  for (const factors of [[1], [1, 2, 5], [1, 2, 3, 5, 7]]) {
    const ticks = [];
    for (let power = first; power <= last; power += stride) {
      ticks.push(...factors.map(factor => Number(`${factor}e${power}`)).filter(tick => tick >= low && tick <= high));
    }
    if (ticks.length >= 4) return ticks;
  }
  return linearTicks(low, high, most);
}

/** What maps values to pixels, with its ticks. */
function makeScale(values, log, from, to, most) {
  let low = Infinity, high = -Infinity;
  for (const v of values) { if (v < low) low = v; if (v > high) high = v; }
  if (low > high) [low, high] = log ? [0.1, 1] : [0, 1];
  let bend = v => v, unbend = v => v;
  if (log) { bend = Math.log10; unbend = v => 10 ** v; }
  else if (low >= 0 && low < 0.5 * high) low = 0;
  let [a, b] = [bend(low), bend(high)];
  if (b - a < 1e-9 * Math.abs(b) || a === b) {
    const aside = log ? 0.2 : 0.5 * Math.abs(a) || 1;
    [a, b] = [a - aside, b + aside];
  }
  const room = 0.03 * (b - a);
  a -= room; b += room;
  const at = v => from + (bend(v) - a) / (b - a) * (to - from);
  const ticks = log ? logTicks(unbend(a), unbend(b), most) : linearTicks(a, b, most).filter(t => t >= 0 || low < 0);
  return {at, ticks};
}

// ---- axes ----

/** Axes with a grid in a box of left, right, top and bottom; measures have a label, and whether they count. */
function drawAxes(svg, box, across, up, x, y) {
  const grid = make(svg, "g", {stroke: "var(--grid)"}), labels = make(svg, "g");
  let free = 0;  // where the next label may start
  for (const tick of across.ticks) {
    const at = across.at(tick), text = tickText(tick, x), half = 3.6 * text.length;
    make(grid, "line", {x1: at.toFixed(1), x2: at.toFixed(1), y1: box.top, y2: box.bottom});
    if (at - half < free || at + half > box.width) continue;
    make(labels, "text", {x: at.toFixed(1), y: box.bottom + 18, "text-anchor": "middle"}, text);
    free = at + half + 8;
  }
  for (const tick of up.ticks) {
    const at = up.at(tick);
    make(grid, "line", {x1: box.left, x2: box.right, y1: at.toFixed(1), y2: at.toFixed(1)});
    make(labels, "text", {x: box.left - 8, y: (at + 4).toFixed(1), "text-anchor": "end"}, tickText(tick, y));
  }
  make(svg, "path", {d: `M${box.left} ${box.top}V${box.bottom}H${box.right}`, fill: "none", stroke: "var(--mark)"});
  make(labels, "text", {x: (box.left + box.right) / 2, y: box.bottom + 42, "text-anchor": "middle", class: "title"}, x.label);
  make(labels, "text", {
    transform: `translate(16 ${(box.top + box.bottom) / 2}) rotate(-90)`, "text-anchor": "middle", class: "title",
  }, y.label);
}

