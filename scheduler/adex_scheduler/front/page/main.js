// The page: what the feed tells goes to each part of it.

import { Strip } from "./device.js";
import { adminKey, watch } from "./feed.js";
import { Lists } from "./lists.js";
import { Playground } from "./playground.js";
import { Tiers } from "./tiers.js";
import { Vitals } from "./vitals.js";
import { bytes, count, say } from "./words.js";

const by = (id) => document.getElementById(id);
const playground = new Playground(by("playground"));
const tiers = new Tiers(document.querySelector(".tiers"), (name) => playground.choose(name));
const strip = new Strip(by("strip"), by("strip-note"));
const vitals = new Vitals(by("vitals"));
const lists = new Lists(document);
const keyForm = by("key-form");
let server = null;

function status(state, text) {
  by("status").dataset.state = state;
  say(by("status"), text);
}

function told(snapshot) {
  keyForm.hidden = true;
  if (snapshot.server) {
    server = snapshot.server;
    const { model, architecture, dtype, device, pages, page_bytes: each } = server;
    say(by("server"), `${model} · ${architecture} · ${dtype} on ${device} · ${count(pages)} pages of ${bytes(each)}`);
    document.title = `Adex · ${model}`;
  }
  tiers.tell(snapshot, server);
  strip.tell(snapshot, tiers.tiles, server);
  if (server) vitals.tell(snapshot, server);
  lists.tell(snapshot, tiers.tiles, server);
  if (snapshot.connected === false) status("lost", server ? "no worker" : "waiting for a worker");
  else if (snapshot.draining) status("draining", "draining");
  else status("live", "live");
}

const restart = watch(told, (reason, forbidden) => {
  status("lost", forbidden ? "a key is needed" : reason);
  keyForm.hidden = !forbidden;
  if (forbidden) by("key").focus();
});

keyForm.addEventListener("submit", (event) => {
  event.preventDefault();
  adminKey.set(by("key").value);
  restart();
});
