// The adapters as tiles in their tiers. A tile that changes its tier flies there.

import { bytes, calm, count, element, hueOf, say } from "./words.js";

const TIERS = ["device", "host", "disk", "absent"];
// Beyond this many a tier shows its tiles without their names.
const NAMED_MAX = 36;
const FLIGHT_MS = 650;
const UNDER_WAY = {
  fetching: "being fetched",
  staging: "on its way to host memory",
  placing: "waiting for room on the device",
  paging_in: "on its way to the device",
  draining: "leaves the device after those who use it",
  leaving_device: "leaves the device",
  leaving_host: "leaves host memory",
  leaving_disk: "leaves the disk",
};

export class Tiers {
  #bands = new Map();
  #tiles = new Map();
  #nodes = new Map();
  #source = { count: 0, names: [] };

  constructor(root, chosen) {
    for (const tier of TIERS) {
      const band = root.querySelector(`[data-tier="${tier}"]`);
      this.#bands.set(tier, {
        band,
        list: band.querySelector(".tiles"),
        count: band.querySelector(".count"),
        fill: band.querySelector(".fill"),
        copies: band.querySelector(".copies"),
      });
    }
    root.addEventListener("click", (event) => {
      const name = event.target.closest("button.tile")?.dataset.name;
      if (name) chosen(name);
    });
  }

  /** Tiles by id, as the server tells them. */
  get tiles() {
    return this.#tiles;
  }

  tell(told, server) {
    if (told.whole) this.#tiles.clear();
    if (told.source) this.#source = told.source;
    for (const id of told.gone ?? []) this.#tiles.delete(id);
    for (const tile of told.tiles ?? []) this.#tiles.set(tile.id, tile);
    if (told.whole || told.source || told.gone?.length || told.tiles?.length) this.#arrange();
    this.#count(told, server);
  }

  /** Every tile that shall be seen, by what it keeps its place and colour under. */
  #wanted() {
    const wanted = new Map();
    for (const tile of this.#tiles.values()) wanted.set(tile.name ?? tile.id, tile);
    for (const name of this.#source.names) {
      if (!wanted.has(name)) wanted.set(name, { name, tier: "absent", state: "absent" });
    }
    return wanted;
  }

  #arrange() {
    const wanted = this.#wanted();
    const before = new Map();
    const moves = [...wanted].some(([key, tile]) => this.#nodes.get(key)?.dataset.tier !== tile.tier);
    const flies = moves && !calm.matches && !document.hidden;
    if (flies) for (const [key, node] of this.#nodes) before.set(key, node.getBoundingClientRect());

    const byTier = new Map(TIERS.map((tier) => [tier, []]));
    for (const [key, tile] of wanted) byTier.get(tile.tier).push([key, tile]);
    for (const [key, node] of this.#nodes) {
      if (!wanted.has(key)) {
        node.parentElement.remove();
        this.#nodes.delete(key);
      }
    }
    for (const [tier, members] of byTier) this.#fill(tier, members);
    this.#copies("host", byTier.get("device").filter(([, tile]) => tile.in_host));
    this.#copies("disk", [...byTier.get("device"), ...byTier.get("host")]);
    if (flies) this.#fly(before);
  }

  #fill(tier, members) {
    const { band, list } = this.#bands.get(tier);
    // On the device the order is that of the pages; elsewhere names keep everything in its place.
    members.sort(([a, one], [b, other]) =>
      tier === "device" && one.page !== other.page ? one.page - other.page : a < b ? -1 : 1,
    );
    band.classList.toggle("dense", members.length > NAMED_MAX);
    members.forEach(([key, tile], place) => {
      const node = this.#node(key);
      this.#dress(node, key, tile);
      const item = node.parentElement;
      if (list.children[place] !== item) list.insertBefore(item, list.children[place] ?? null);
    });
  }

  /** What a tier holds beside its tiles: copies of those that are nearer, a dot each. */
  #copies(tier, members) {
    const { copies } = this.#bands.get(tier);
    while (copies.children.length > members.length) copies.lastChild.remove();
    while (copies.children.length < members.length) copies.append(element("i"));
    members.sort(([a], [b]) => (a < b ? -1 : 1));
    members.forEach(([key, tile], place) => {
      const dot = copies.children[place];
      dot.style.setProperty("--hue", hueOf(key).toFixed(1));
      dot.title = `a copy of ${tile.name ?? "a private adapter"}, which is nearer`;
    });
  }

  #node(key) {
    let node = this.#nodes.get(key);
    if (!node) {
      node = element("button", "tile");
      node.type = "button";
      node.style.setProperty("--hue", hueOf(key).toFixed(1));
      node.append(element("span", "name"), element("span", "meta"), element("span", "busy"));
      element("li").append(node);
      this.#nodes.set(key, node);
    }
    return node;
  }

  #dress(node, key, tile) {
    if (node.dataset.tier !== tile.tier) node.dataset.tier = tile.tier;
    if (node.dataset.state !== tile.state) node.dataset.state = tile.state;
    if (tile.name && node.dataset.name !== tile.name) node.dataset.name = tile.name;
    const [name, meta, busy] = node.children;
    const shown = tile.name ?? `private ${tile.id.slice(0, 6)}`;
    const size = tile.bytes ? `r${tile.rank} · ${bytes(tile.bytes)}` : "";
    say(name, shown);
    say(meta, tile.state === "failed" ? tile.code : size);
    const inUse = (tile.running ?? 0) + (tile.waiting ?? 0);
    say(busy, inUse ? count(inUse) : "");
    node.classList.toggle("running", Boolean(tile.running));
    node.classList.toggle("wanted", Boolean(tile.waiting) && !tile.running);
    const state = [
      shown,
      size,
      UNDER_WAY[tile.state],
      tile.running && `${tile.running} running`,
      tile.waiting && `${tile.waiting} waiting`,
      tile.state === "failed" && `could not be fetched: ${tile.code}`,
      tile.page >= 0 && tile.pages && `pages ${tile.page} to ${tile.page + tile.pages - 1}`,
    ];
    const title = state.filter(Boolean).join(", ");
    if (node.title !== title) node.title = title;
    node.disabled = !tile.name;
  }

  #fly(before) {
    const flights = [];
    for (const [key, node] of this.#nodes) {
      const from = before.get(key);
      const to = node.getBoundingClientRect();
      if (!from) flights.push([node, null, 0]);
      else if (from.x !== to.x || from.y !== to.y) {
        flights.push([node, [from.x - to.x, from.y - to.y], Math.abs(from.y - to.y)]);
      }
    }
    for (const [node, shift, distance] of flights) {
      if (!shift) {
        node.animate([{ opacity: 0, scale: 0.8 }, { opacity: 1, scale: 1 }], { duration: 250 });
        continue;
      }
      const far = distance > 60;
      const start = `translate(${shift[0]}px, ${shift[1]}px)`;
      node.classList.toggle("flying", far);
      const flight = node.animate([{ transform: start }, { transform: "none" }], {
        duration: far ? FLIGHT_MS : 220,
        easing: "cubic-bezier(.2,.75,.25,1)",
      });
      flight.onfinish = () => node.classList.remove("flying");
    }
  }

  #count(told, server) {
    if (!told.tiers || !server) return;
    const { device, host, disk } = told.tiers;
    const adapters = told.pages.adapters * server.page_bytes;
    this.#say("device", device.count, `${bytes(adapters)} of adapters in a pool of ${bytes(server.pages * server.page_bytes)}`);
    this.#say("host", host.count, `${bytes(host.bytes)} of ${bytes(server.host_bytes)}`);
    this.#say("disk", disk.count, `${bytes(disk.bytes)} of ${bytes(server.disk_bytes)}`);
    this.#say("absent", 0, `${count(this.#source.count)} listed, ${count(told.names)} asked for so far`);
  }

  #say(tier, number, text) {
    const band = this.#bands.get(tier);
    if (band.count) say(band.count, count(number));
    const shown = band.list.children.length + (band.copies?.children.length ?? 0);
    const more = number > shown ? `, the latest ${count(shown)} shown` : "";
    say(band.fill, text + more);
  }
}
