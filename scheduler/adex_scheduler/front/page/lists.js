// The running batch, the queue and the log.

import { bytes, colourOf, count, element, say, seconds } from "./words.js";

const LINES_MAX = 200;

/** A list whose items are made once and then dressed anew. */
function fill(list, members, make, dress) {
  while (list.children.length > members.length) list.lastChild.remove();
  while (list.children.length < members.length) list.append(make());
  members.forEach((member, index) => dress(list.children[index], member));
}

function swatch() {
  return element("i", "swatch");
}

export class Lists {
  #tiles = new Map();
  #pageBytes = 0;
  #at = 0;

  constructor(root) {
    for (const name of ["segments", "sequences", "queue", "log"]) {
      this[name] = root.querySelector(`#${name}`);
    }
    this.batchCount = root.querySelector("#batch-count");
    this.queueCount = root.querySelector("#queue-count");
  }

  tell(told, tiles, server) {
    this.#tiles = tiles;
    if (told.whole) this.log.replaceChildren();
    if (told.at !== undefined) {
      this.#at = told.at;
      this.#batch(told);
      this.#queues(told);
    }
    this.#pageBytes = server?.page_bytes ?? 0;
    this.#entries(told.log ?? []);
  }

  /** What an adapter keeps its colour under, and what it is called. */
  #known(id) {
    if (!id) return ["", "base model"];
    const tile = this.#tiles.get(id);
    const name = tile?.name;
    return [name ?? id, name ?? `private ${id.slice(0, 6)}`];
  }

  #batch(told) {
    const rows = told.segments.reduce((sum, [, decode, prefill]) => sum + decode + prefill, 0);
    const ids = new Set(told.sequences.map(([id]) => id));
    const base = ids.delete("") ? " and the base model" : "";
    const through = `${ids.size} adapter${ids.size === 1 ? "" : "s"}${base}`;
    say(
      this.batchCount,
      told.running ? `${count(told.running)} through ${through}` : "idle",
    );
    const parts = [];
    for (const [id, decode, prefill] of told.segments) {
      if (decode) parts.push([id, decode, false]);
      if (prefill) parts.push([id, prefill, true]);
    }
    fill(this.segments, parts, () => element("i"), (node, [id, number, prefill]) => {
      const [key, name] = this.#known(id);
      node.style.flexGrow = number;
      node.style.backgroundColor = colourOf(key);
      node.classList.toggle("prefill", prefill);
      node.title = `${name}: ${count(number)} ${prefill ? "rows of prompts" : "rows, one for each sequence"}`;
    });
    const label = `Latest step: ${count(rows)} rows in ${told.segments.length} segments`;
    if (this.segments.ariaLabel !== label) this.segments.ariaLabel = label;
    const ordered = [...told.sequences].sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
    fill(this.sequences, ordered, sequenceRow, (row, [id, prompt, computed, written, most]) => {
      const [key, name] = this.#known(id);
      const [mark, label, bar, tally] = row.children;
      mark.style.backgroundColor = colourOf(key);
      say(label, name);
      const [read, wrote] = bar.children;
      const all = prompt + most;
      read.style.inlineSize = `${(100 * computed) / all}%`;
      wrote.style.inlineSize = `${(100 * written) / all}%`;
      wrote.style.backgroundColor = colourOf(key);
      say(tally, computed < prompt ? `reads ${Math.floor((100 * computed) / prompt)} %` : `${count(written)}/${count(most)}`);
    });
    this.sequences.classList.toggle("many", ordered.length > 24);
  }

  #queues(told) {
    say(this.queueCount, told.waiting ? `${count(told.waiting)} waiting` : "nobody waits");
    fill(this.queue, told.queues, queueRow, (row, queue) => {
      const [key, known] = queue.base ? this.#known("") : this.#known(queue.id);
      const name = queue.name ?? (queue.base || queue.id ? known : "not resolved yet");
      const [mark, label, tally, since] = row.children;
      mark.style.backgroundColor = colourOf(queue.name ?? key);
      say(label, name);
      const why = queue.for_adapter ? ` (${count(queue.for_adapter)} for the adapter)` : "";
      say(tally, `${count(queue.waiting)}${why}`);
      say(since, seconds(Math.max(this.#at - queue.since, 0)));
      row.title = `tenant ${queue.tenant}`;
    });
  }

  #entries(entries) {
    if (!entries.length) return;
    for (const entry of entries) {
      // A line that happened again comes again, with a new number.
      const first = this.log.firstChild;
      if (entry.times > 1 && first?.dataset.same === sameness(entry)) first.remove();
      this.log.prepend(this.#line(entry));
    }
    while (this.log.children.length > LINES_MAX) this.log.lastChild.remove();
  }

  #line(entry) {
    const line = element("li", entry.what);
    line.dataset.same = sameness(entry);
    const when = new Date(Date.now() - Math.max(this.#at - entry.at, 0) * 1000);
    const time = element("time", "", when.toTimeString().slice(0, 8));
    time.dateTime = when.toISOString();
    const mark = swatch();
    const text = element("span", "what");
    line.append(time, mark, text);
    const [key, known] = this.#known(entry.id);
    const name = entry.name ?? known;
    const about = entry.id || entry.name;
    if (about) {
      mark.style.backgroundColor = colourOf(entry.name ?? key);
      text.append(element("b", "", name), " ");
    }
    text.append(words(entry));
    if (entry.times > 1) text.append(element("em", "", ` ×${count(entry.times)}`));
    if (entry.code) text.append(" ", element("code", "", entry.code));
    if (entry.reason) text.append(" ", element("q", "", entry.reason));
    const tile = this.#tiles.get(entry.id);
    if (tile?.bytes) line.title = `${bytes(tile.bytes)}, rank ${tile.rank}`;
    return line;
  }
}

const ARRIVALS = { device: "on the device", host: "in host memory", disk: "on disk" };
const TIER_WORDS = { device: "the device", host: "host memory", disk: "the disk", absent: "its source" };

function words(entry) {
  const took = entry.seconds ? ` in ${seconds(entry.seconds)}` : "";
  switch (entry.what) {
    case "fetched":
      return `fetched to disk${took}`;
    case "staged":
      return `read into host memory${took}`;
    case "paged_in":
      return `paged in to the device${took}`;
    case "evicted":
      return `evicted from ${TIER_WORDS[entry.tier]}`;
    case "load_failed":
      return entry.id || entry.name ? `did not arrive ${ARRIVALS[entry.tier]}` : "An adapter did not arrive";
    case "request_failed":
      return entry.id || entry.name ? "request failed" : "Request failed";
    case "worker_lost":
      return "The worker is gone";
    case "worker_back":
      return "A worker is connected";
    case "draining":
      return "The server drains and takes nothing new";
    default:
      return entry.what;
  }
}

const sameness = (entry) => [entry.what, entry.name, entry.id, entry.tier, entry.code].join("|");

function sequenceRow() {
  const row = element("li");
  const bar = element("span", "progress");
  bar.append(element("i", "read"), element("i", "wrote"));
  row.append(swatch(), element("span", "name"), bar, element("span", "tally"));
  return row;
}

function queueRow() {
  const row = element("li");
  row.append(swatch(), element("span", "name"), element("span", "tally"), element("span", "since"));
  return row;
}
