// Rates with their last two minutes as a line each.

import { count, element, say, seconds } from "./words.js";

const WINDOW_S = 120;
// What a row of the feed's seconds holds.
const [AT, TOKENS, STEPS, ARRIVED, REFUSED, STEP_S, FIRST_S] = [0, 1, 2, 3, 4, 5, 6];
const SVG = "http://www.w3.org/2000/svg";
const [WIDE, HIGH] = [120, 28];

const VITALS = [
  { key: "tokens", name: "Tokens a second", of: (row) => row[TOKENS], show: (x) => count(Math.round(x)), quiet: 0 },
  { key: "first", name: "First token", of: (row) => row[FIRST_S] || null, show: seconds },
  { key: "step", name: "Step", of: (row) => row[STEP_S] || null, show: seconds },
  { key: "arrived", name: "Requests a second", of: (row) => row[ARRIVED], show: (x) => count(Math.round(x)), quiet: 0 },
  { key: "running", name: "Running" },
  { key: "waiting", name: "Waiting" },
];

export class Vitals {
  #rows = new Map();
  #figures = new Map();

  constructor(root) {
    for (const vital of VITALS) {
      const figure = element("div", `vital ${vital.key}`);
      const value = element("dd", "", "–");
      const note = element("dd", "note");
      figure.append(element("dt", "", vital.name), value, note);
      let line = null;
      if (vital.of) {
        const svg = document.createElementNS(SVG, "svg");
        svg.setAttribute("viewBox", `0 0 ${WIDE} ${HIGH}`);
        svg.setAttribute("preserveAspectRatio", "none");
        svg.setAttribute("aria-hidden", "true");
        line = ["area", "line"].map((name) => {
          const path = document.createElementNS(SVG, "path");
          path.setAttribute("class", name);
          svg.append(path);
          return path;
        });
        figure.append(svg);
      } else {
        const bar = element("div", "bar");
        bar.append(element("i"));
        figure.append(bar);
        line = bar.firstChild;
      }
      this.#figures.set(vital.key, { value, note, line });
      root.append(figure);
    }
  }

  tell(told, server) {
    if (told.whole) this.#rows.clear();
    for (const row of told.seconds ?? []) this.#rows.set(row[AT], row);
    if (told.at === undefined) return;
    const now = Math.floor(told.at);
    for (const at of this.#rows.keys()) if (at < now - WINDOW_S) this.#rows.delete(at);
    for (const vital of VITALS) if (vital.of) this.#trace(vital, now);
    this.#level("running", told.running, server.sequences, `of ${count(server.sequences)} in a step`);
    const note = told.waiting_for_adapter ? `${count(told.waiting_for_adapter)} for an adapter` : "";
    this.#level("waiting", told.waiting, Math.max(told.waiting, 32), note);
  }

  /** The second that runs is not over yet, so the line ends with the one before. */
  #trace(vital, now) {
    const { value, note, line } = this.#figures.get(vital.key);
    const points = [];
    for (let at = now - WINDOW_S; at < now; at += 1) {
      const row = this.#rows.get(at);
      points.push(row ? vital.of(row) : (vital.quiet ?? null));
    }
    const known = points.filter((point) => point !== null);
    const most = Math.max(...known, 1e-9);
    // The latest that is worth a figure: rates fall to nothing, times just stop.
    const latest = vital.quiet === undefined ? known.at(-1) : points.at(-1);
    say(value, latest === undefined ? "–" : vital.show(latest));
    say(note, known.length && most > 1e-9 ? `most ${vital.show(most)}` : "");
    let path = "";
    let area = "";
    let begun = null;
    const x = (index) => ((index * WIDE) / (WINDOW_S - 1)).toFixed(1);
    points.forEach((point, index) => {
      if (point === null) return;
      const y = (HIGH - 1.5 - (point / most) * (HIGH - 4)).toFixed(1);
      path += `${begun === null ? "M" : "L"}${x(index)} ${y}`;
      begun ??= index;
      area = `L${x(index)} ${HIGH}L${x(begun)} ${HIGH}Z`;
    });
    line[0].setAttribute("d", path + area);
    line[1].setAttribute("d", path);
  }

  #level(key, number, most, text) {
    const { value, note, line } = this.#figures.get(key);
    say(value, count(number));
    say(note, text);
    line.style.inlineSize = `${Math.min(100, (100 * number) / Math.max(most, 1))}%`;
  }
}
