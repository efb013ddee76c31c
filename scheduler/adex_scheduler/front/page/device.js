// The device pool as a strip: page 0 at the left, adapters from there, KV blocks from the right.

import { colourOf, count, onScheme, say } from "./words.js";

const GAP_PX_MIN = 84;
const CELL_PX_MAX = 14;
const FULL = 16;

// A canvas knows no light-dark(), so it is given what the legend's own swatches came out as.
function inks(canvas) {
  const of = (selector) => getComputedStyle(document.querySelector(selector)).backgroundColor;
  const { color, outlineColor } = getComputedStyle(canvas);
  return { kv: of(".k-kv"), prefix: of(".k-prefix"), other: of(".k-other"), soft: color, line: outlineColor };
}

export class Strip {
  #canvas;
  #note;
  #map = null;
  #tiles = new Map();
  #due = false;

  constructor(canvas, note) {
    this.#canvas = canvas;
    this.#note = note;
    new ResizeObserver(() => this.#later()).observe(canvas);
    onScheme(() => this.#later());
  }

  tell(told, tiles, server) {
    if (told.map) this.#map = told.map;
    this.#tiles = tiles;
    if (told.map || told.tiles?.length || told.gone?.length) this.#later();
    if (!told.pages || !server) return;
    const part = (pages) => `${((100 * pages) / server.pages).toFixed(pages * 200 < server.pages ? 1 : 0)} %`;
    const { adapters, kv, prefix, free } = told.pages;
    for (const [name, pages] of Object.entries({ adapters, kv, prefix, free })) {
      say(document.getElementById(`l-${name}`), `${count(pages)}`);
    }
    const label = `Device pool of ${count(server.pages)} pages: adapters ${part(adapters)}, KV blocks ${part(kv)}, prefixes kept ${part(prefix)}, free ${part(free)}`;
    if (this.#canvas.ariaLabel !== label) this.#canvas.ariaLabel = label;
    if (this.#map) {
      const each = this.#map.cell_pages;
      say(this.#note, `a column is ${each === 1 ? "one page" : `${each} pages`}; page 0 is at the left, page ${count(server.pages - 1)} at the right`);
    }
  }

  #later() {
    if (this.#due) return;
    this.#due = true;
    requestAnimationFrame(() => {
      this.#due = false;
      this.#draw();
    });
  }

  #draw() {
    const canvas = this.#canvas;
    const ratio = devicePixelRatio || 1;
    const width = canvas.clientWidth;
    const height = canvas.clientHeight;
    if (!width || !this.#map) return;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const ink = inks(canvas);
    const stretches = this.#map.stretches;
    const last = stretches.at(-1);
    const cells = stretches.reduce((sum, one) => sum + one.cells.length / 3, 0);
    const gaps = Math.max(stretches.length - 1, stretches.length === 1 && last.start > 0 ? 1 : 0);
    const room = width - gaps * GAP_PX_MIN;
    const cell = gaps ? Math.min(CELL_PX_MAX, room / cells) : room / cells;
    const gap = gaps ? (width - cells * cell) / gaps : 0;
    const runs = [...this.#tiles.values()].filter((tile) => tile.page >= 0 && tile.pages);
    runs.sort((one, other) => one.page - other.page);
    let x = 0;
    let page = 0;
    for (const stretch of stretches) {
      if (stretch.start > page) {
        this.#drawGap(pen, x, gap, height, stretch.start - page, ink);
        x += gap;
      }
      x = this.#drawStretch(pen, stretch, x, cell, height, runs, ink);
      page = stretch.stop;
    }
  }

  #drawGap(pen, x, width, height, pages, ink) {
    pen.strokeStyle = ink.line;
    pen.setLineDash([2, 5]);
    pen.beginPath();
    pen.moveTo(x + 6, height / 2);
    pen.lineTo(x + width - 6, height / 2);
    pen.stroke();
    pen.setLineDash([]);
    const text = `${count(pages)} free`;
    pen.font = "11px system-ui, sans-serif";
    const wide = pen.measureText(text).width;
    if (wide + 16 > width) return;
    pen.clearRect(x + (width - wide) / 2 - 6, height / 2 - 8, wide + 12, 16);
    pen.fillStyle = ink.soft;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.fillText(text, x + width / 2, height / 2);
  }

  #drawStretch(pen, stretch, x, cell, height, runs, ink) {
    const each = this.#map.cell_pages;
    const number = stretch.cells.length / 3;
    const seam = cell >= 5 ? 1 : 0;
    let at = 0;
    for (let index = 0; index < number; index += 1) {
      const [adapters, kv, prefix] = [0, 1, 2].map((k) => parseInt(stretch.cells[3 * index + k], 17));
      const left = Math.round((x + index * cell) * 2) / 2;
      const wide = Math.max(Math.round((x + (index + 1) * cell) * 2) / 2 - left - seam, 0.5);
      const first = stretch.start + index * each;
      let top = height;
      const put = (part, colour) => {
        const high = (height * Math.min(part, FULL)) / FULL;
        pen.fillStyle = colour;
        pen.fillRect(left, top - high, wide, high);
        top -= high;
      };
      if (adapters) {
        while (at < runs.length && runs[at].page + runs[at].pages <= first) at += 1;
        const owner = runs[at] && runs[at].page < first + each ? runs[at] : null;
        put(adapters, owner ? colourOf(owner.name ?? owner.id) : ink.other);
        // Where a run begins, a hair of the ground sets it off from its neighbour.
        if (owner && owner.page >= first && owner.page > 0) pen.clearRect(left, 0, Math.min(1, wide / 2), height);
      }
      if (kv) put(kv, ink.kv);
      if (prefix) put(prefix, ink.prefix);
    }
    return x + number * cell;
  }
}
