// The playground: one prompt, through the base model and through an adapter, side by side.

import { complaintOf, dataOf } from "./events.js";
import { credentials } from "./feed.js";
import { colourOf, count, element, seconds } from "./words.js";

const FIND_PAUSE_MS = 150;

export class Playground {
  #abort = null;
  #finding = 0;

  constructor(root) {
    const by = (id) => root.querySelector(`#${id}`);
    this.fields = Object.fromEntries(
      ["prompt", "adapter", "form", "tokens", "temperature", "seed", "run", "stop"].map((id) => [id, by(id)]),
    );
    this.names = by("adapters");
    this.panes = [pane(by("pane-base")), pane(by("pane-adapter"))];
    by("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      this.run();
    });
    this.fields.stop.addEventListener("click", () => this.#abort?.abort());
    this.fields.adapter.addEventListener("input", () => this.#findSoon());
    this.fields.adapter.addEventListener("focus", () => this.#findSoon());
    root.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        this.run();
      } else if (event.key === "Escape") this.#abort?.abort();
    });
    this.#title();
  }

  choose(name) {
    this.fields.adapter.value = name;
    this.#title();
    this.fields.prompt.focus({ preventScroll: true });
    this.fields.prompt.scrollIntoView({ block: "nearest" });
  }

  /** Names as one types, from the server: there may be far too many for a list. */
  #findSoon() {
    this.#title();
    clearTimeout(this.#finding);
    this.#finding = setTimeout(async () => {
      const query = new URLSearchParams({ find: this.fields.adapter.value });
      try {
        const response = await fetch(`ui/adapters?${query}`, { headers: credentials() });
        if (!response.ok) return;
        const { names } = await response.json();
        this.names.replaceChildren(
          ...names.map((name) => Object.assign(element("option"), { value: name })),
        );
      } catch {
        // The feed says that the server is gone.
      }
    }, FIND_PAUSE_MS);
  }

  #title() {
    const name = this.fields.adapter.value.trim();
    const { head, root } = this.panes[1];
    head.textContent = name || "Adapter";
    root.style.setProperty("--own", colourOf(name));
  }

  async run() {
    this.#abort?.abort();
    const abort = (this.#abort = new AbortController());
    this.#title();
    const name = this.fields.adapter.value.trim();
    const asked = [this.#ask(this.panes[0], "", abort.signal)];
    if (name) asked.push(this.#ask(this.panes[1], name, abort.signal));
    else clear(this.panes[1], "Choose an adapter to compare.");
    this.fields.stop.disabled = false;
    await Promise.all(asked);
    if (this.#abort === abort) this.fields.stop.disabled = true;
  }

  #body(model) {
    const { prompt, form, tokens, temperature, seed } = this.fields;
    const body = { model, stream: true, stream_options: { include_usage: true } };
    if (tokens.value) body.max_tokens = Number(tokens.value);
    if (temperature.value) body.temperature = Number(temperature.value);
    if (seed.value) body.seed = Number(seed.value);
    if (form.value === "chat") body.messages = [{ role: "user", content: prompt.value }];
    else body.prompt = prompt.value;
    return body;
  }

  async #ask(pane, model, signal) {
    clear(pane, "waits for its first token");
    pane.root.dataset.state = "running";
    const began = performance.now();
    let first = 0;
    let last = 0;
    let pieces = 0;
    let usage = null;
    let finish = "";
    const tally = () => {
      const parts = [`first token ${seconds((first - began) / 1000)}`, `${count(usage?.completion_tokens ?? pieces)} tokens`];
      const rate = (pieces - 1) / ((last - first) / 1000);
      if (pieces > 1 && Number.isFinite(rate)) parts.push(`${count(Math.round(rate))} tokens a second`);
      if (finish) parts.push(`ended by ${finish}`);
      pane.tally.textContent = parts.join(" · ");
    };
    try {
      const path = this.fields.form.value === "chat" ? "v1/chat/completions" : "v1/completions";
      const response = await fetch(path, {
        method: "POST",
        headers: { "Content-Type": "application/json", ...credentials() },
        body: JSON.stringify(this.#body(model)),
        signal,
      });
      if (!response.ok) throw new Error(await complaintOf(response));
      for await (const data of dataOf(response)) {
        if (data === "[DONE]") break;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new Error(chunk.error.message ?? chunk.error);
        usage = chunk.usage ?? usage;
        const choice = chunk.choices[0];
        if (!choice) continue;
        const text = choice.text ?? choice.delta?.content ?? "";
        finish = choice.finish_reason ?? finish;
        if (text) {
          last = performance.now();
          first ||= last;
          pieces += 1;
          pane.text.append(text);
          pane.text.scrollTop = pane.text.scrollHeight;
        }
        if (first) tally();
      }
      pane.root.dataset.state = "done";
      if (first) tally();
      else pane.tally.textContent = `no text${finish ? `, ended by ${finish}` : ""}`;
    } catch (error) {
      if (signal.aborted) {
        pane.root.dataset.state = "stopped";
        pane.tally.textContent = `stopped after ${count(pieces)} tokens`;
        return;
      }
      pane.root.dataset.state = "failed";
      pane.tally.textContent = error.message;
    }
  }
}

function pane(root) {
  return {
    root,
    head: root.querySelector("h3"),
    text: root.querySelector("pre"),
    tally: root.querySelector(".tally"),
  };
}

function clear(pane, note) {
  pane.text.textContent = "";
  pane.tally.textContent = note;
  pane.root.dataset.state = "idle";
}
