// Numbers in words, and one colour for each adapter.

const whole = new Intl.NumberFormat("en");

export const count = (number) => whole.format(number);

export function bytes(number) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (number >= 1024 && unit < units.length - 1) {
    number /= 1024;
    unit += 1;
  }
  return `${number >= 100 || unit === 0 ? Math.round(number) : number.toFixed(1)} ${units[unit]}`;
}

export function seconds(value) {
  if (value >= 10) return `${Math.round(value)} s`;
  if (value >= 1) return `${value.toFixed(1)} s`;
  const ms = value * 1000;
  return `${ms >= 10 ? Math.round(ms) : ms.toFixed(1)} ms`;
}

// Each adapter gets the next hue of a sequence in which neighbours lie far apart.
const hues = new Map();
const HUES_MAX = 4096;

export function hueOf(key) {
  if (!hues.has(key)) {
    if (hues.size >= HUES_MAX) hues.clear();
    hues.set(key, (35 + hues.size * 137.508) % 360);
  }
  return hues.get(key);
}

const dark = matchMedia("(prefers-color-scheme: dark)");
export const onScheme = (redraw) => dark.addEventListener("change", redraw);

/** The adapter's colour; "" is the base model. */
export function colourOf(key) {
  if (!key) return dark.matches ? "oklch(0.62 0.012 250)" : "oklch(0.6 0.012 250)";
  return `oklch(${dark.matches ? 0.76 : 0.63} 0.13 ${hueOf(key).toFixed(1)})`;
}

export const calm = matchMedia("(prefers-reduced-motion: reduce)");

export function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

/** Sets the text only where it differs, so that nothing is laid out anew in vain. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
