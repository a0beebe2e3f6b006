"""What tests of pages share: their scripts, and as much of a browser as those use."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest


class Scripts(HTMLParser):
    """What a browser takes for scripts, and for anything else."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict, str]] = []
        self.other = ""
        self.inside = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.inside = tag == "script"
        if self.inside:
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            attributes, text = self.scripts[-1]
            self.scripts[-1] = attributes, text + data
        else:
            self.other += data


def page_data(html: str) -> dict:
    (text,) = [text for attributes, text in Scripts(html).scripts if attributes.get("type") == "application/json"]
    return json.loads(text)


# As much of a browser as the pages' scripts use. Arguments: the page, and what to do once it has started.
BROWSER = r"""
"use strict";
const fs = require("fs"), vm = require("vm");
const ids = new Map(), html = fs.readFileSync(process.argv[2], "utf8");
class Element {
  constructor(name, space) {
    Object.assign(this, {name, namespaceURI: space, attributes: {}, children: [], listeners: {}, style: {}, text: ""});
    Object.assign(this, {hidden: false, checked: false, value: "", offsetWidth: 220, offsetHeight: 200});
    Object.assign(this, {clientWidth: 960, clientHeight: 540});
  }
  get firstChild() { return this.children[0]; }
  get textContent() { return this.text + this.children.map(c => c.textContent).join("|"); }
  set textContent(text) { this.children = []; this.text = text; }
  set innerHTML(_) { throw new Error("innerHTML"); }
  setAttribute(key, value) { this.attributes[key] = String(value); if (key === "id") ids.set(value, this); }
  getAttribute(key) { return this.attributes[key] ?? null; }
  removeAttribute(key) { delete this.attributes[key]; }
  append(child) { this.children.push(child); if (this.name === "select") this.value ||= child.attributes.value; }
  replaceChildren() { this.children = []; this.text = ""; }
  addEventListener(kind, call) { this.listeners[kind] = call; }
  getBoundingClientRect() { return {left: 10, top: 20, width: 960, height: 540}; }
  matches() { return true; }
  focus() {}
}
for (const [, name, rest] of html.matchAll(/<(\w+)([^>]*\bid="[^"]*"[^>]*)>/g)) {
  const element = new Element(name, name === "svg" ? "svg" : "html");
  element.setAttribute("id", rest.match(/\bid="([^"]*)"/)[1]);
  for (const [, key, value] of rest.matchAll(/\b([\w-]+)="([^"]*)"/g)) element.attributes[key] ??= value;
  element.checked = /\bchecked\b/.test(rest);
}
ids.get("data").text = html.match(/id="data">([^]*?)<\/script>/)[1];
const document = {
  getElementById: id => ids.get(id) ?? null,
  createElementNS: (space, name) => new Element(name, space),
  querySelectorAll: () => [...ids.values()].filter(e => ["select", "input"].includes(e.name)),
};
const set = (id, key, value) => { ids.get(id)[key] = value; ids.get(id).listeners.change(); };
const fire = (id, kind, event) => ids.get(id).listeners[kind]({preventDefault() {}, ...event});
const text = id => ids.get(id).textContent, out = {};
vm.runInNewContext(html.match(/<script>([^]*)<\/script>/)[1] + process.argv[3],
  {document, window: {addEventListener() {}}, Intl, ids, set, fire, text, out});
console.log(JSON.stringify(out));
"""


def run_page(html: str, script: str, folder: Path) -> dict[str, Any]:
    """Run JavaScript in a page once it has started; what it puts into `out` comes back."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    (folder / "page.html").write_text(html, encoding="utf-8")
    (folder / "browser.js").write_text(BROWSER, encoding="utf-8")
    command = [node, folder / "browser.js", folder / "page.html", script]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# What sticks out of the window or of its picture, and colours that a reader cannot tell from the page's.
PROBE = """<script>addEventListener("load", () => {
  const {scrollWidth, clientWidth} = document.documentElement, all = query => [...document.querySelectorAll(query)];
  const within = (inner, outer) => inner.left >= outer.left - 1 && inner.right <= outer.right + 1
    && inner.top >= outer.top - 1 && inner.bottom <= outer.bottom + 1;
  const box = element => element.getBoundingClientRect();
  const light = colour => colour.match(/[0-9.]+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0) / 765;
  const page = light(getComputedStyle(document.body).backgroundColor);
  const contrast = (element, name) => Math.abs(light(getComputedStyle(element)[name]) - page);
  const out = {wide: scrollWidth - clientWidth, marks: all("circle").length,
    cells: all("#map td").filter(c => c.style.background).length, bars: all("#levels rect").length, title: document.title,
    cut: all("svg text").filter(t => !within(box(t), box(t.ownerSVGElement))).map(t => t.textContent),
    hidden: all(".bar span").filter(bar => !within(box(bar), box(bar.closest(".scroll")))).length,
    dark: page < 0.5, faint: all("svg text").filter(t => !t.style.fill && contrast(t, "fill") < 0.4).length,
    loud: all("svg g line").filter(line => contrast(line, "stroke") > 0.25).length};
  document.body.textContent = JSON.stringify(out);
}); addEventListener("error", event => { document.title = `error: ${event.message}`; });</script>"""
# Of a page on which all is seen and nothing is cut.
GOOD = {"wide": 0, "cut": [], "hidden": 0, "faint": 0, "loud": 0}


def in_chromium(page: str, folder: Path, width: int, dark: bool) -> dict[str, Any]:
    """What `PROBE` finds on a page in a headless Chromium, so many pixels wide, by night or by day."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium is installed: the page is not looked at in a browser")
    # A window of Chromium is at least 500 pixels wide: a phone's page is looked at in a frame.
    probed = escape(page.replace("<title>", f"{PROBE}<title>"))
    frame = f'<iframe style="width: {width}px; height: 900px; border: 0" srcdoc="{probed}"></iframe>'
    relay = """<script>addEventListener("load", () => setTimeout(() => {
      document.body.textContent = document.querySelector("iframe").contentDocument.body.textContent; }, 500));</script>"""
    (folder / "page.html").write_text(f"<!DOCTYPE html><body>{frame}{relay}", encoding="utf-8")
    quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")
    command = [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", *quiet, f"--user-data-dir={folder / 'profile'}"]
    command += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--virtual-time-budget=4000"]
    command += ["--window-size=1400,1000", "--dump-dom", f"file://{folder / 'page.html'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    body = re.search(r"<body>(\{.*?\})</body>", done.stdout)
    assert body is not None, done.stdout[-2000:]
    return json.loads(unescape(body.group(1)))
