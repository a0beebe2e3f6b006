"""What tests of pages share: their scripts, and as much of a browser as those use."""

from __future__ import annotations

import json
import shutil
import subprocess
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
