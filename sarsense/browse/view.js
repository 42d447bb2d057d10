// One tile: its pixels in dB, histogram, place, provenance, near-duplicates, flag.
import { around, svg, world } from "/map.js";
import { ask, card, change, el, figures, open, post, quoted, rounded } from "/page.js";

const NO_DATA = [40, 70, 130];
const REASONS = ["stripes", "interference", "wrong place", "wrong unit", "no data", "seam", "duplicate"];

export class Detail {
  constructor(root, page) {
    Object.assign(this, { root, page, n: null, tile: null, shown: "0", coded: false, low: 0, high: 1, asked: 0, changes: 0, stages: [] });
    new ResizeObserver(() => this.fit()).observe(root);
  }

  hide() {
    this.n = this.tile = null;
    this.asked += 1;
    this.root.classList.add("hidden");
    this.root.replaceChildren();
  }

  async show(n) {
    this.n = n;
    this.tile = null; // until the new one is here, nothing can be done to the old one that is still seen
    this.root.setAttribute("aria-busy", "true");
    const mine = ++this.asked;
    this.root.classList.remove("hidden");
    this.root.focus();
    let tile;
    try {
      tile = await ask("/api/tile", { n });
    } catch (error) {
      this.root.setAttribute("aria-busy", "false");
      if (mine === this.asked) this.root.replaceChildren(this.top({ key: `tile ${n}` }), el("p", { className: "nothing", textContent: error.message }));
      return;
    }
    if (mine !== this.asked) return;
    this.tile = tile;
    this.flagBox = el("section", { className: "panel" });
    this.nearBox = el("section", { className: "panel" }, el("h2", { textContent: "Near-duplicates" }), el("p", { className: "note", textContent: "…" }));
    this.look = el("div", { className: "look" });
    const side = el("div", { className: "facts-side" }, this.flagBox, this.place(), this.nearBox, this.provenance(), this.scene());
    this.root.replaceChildren(this.top(tile), el("div", { className: "columns" }, this.look, side));
    this.root.setAttribute("aria-busy", "false");
    this.drawFlag();
    this.drawLook();
    const near = await ask("/api/near", { n }).catch((error) => ({ error: error.message }));
    if (mine === this.asked) this.drawNear(near);
  }

  /** The flags were changed in another tab. */
  async refresh() {
    const { changes } = this;
    const found = await ask("/api/tile", { n: this.n }).catch(() => null);
    if (found && this.tile && changes === this.changes && found.n === this.tile.n && JSON.stringify(found.flag) !== JSON.stringify(this.tile.flag)) {
      this.tile.flag = found.flag;
      this.drawFlag();
    }
  }

  key(name) {
    if (name === "f") { this.toggleFlag(); return true; }
    if (name === "c" && this.tile?.planes.length) { this.coded = !this.coded; this.drawLook(); return true; }
    const tab = this.tabs?.[Number(name) - 1];
    if (/^[1-9]$/.test(name) && tab) { this.shown = tab; this.drawLook(); return true; }
    return false;
  }

  top(tile) {
    return el("div", { className: "bar top" },
      el("button", { type: "button", className: "plain", textContent: "✕", title: "Back to the grid (Esc)", onclick: () => this.page.close() }),
      el("span", { id: "detail-key", textContent: tile.key ?? "", title: tile.key ?? "" }), el("span", { className: "gap" }),
      el("button", { type: "button", textContent: "←", title: "Tile before (←)", onclick: () => this.page.neighbour(-1) }),
      el("button", { type: "button", textContent: "→", title: "Tile after (→)", onclick: () => this.page.neighbour(1) }));
  }

  // ------------------------------------------------------------------------------------------------------- pixels

  async drawLook() {
    const { planes, broken } = this.tile;
    if (broken !== null) {
      this.stages = [];
      this.look.replaceChildren(el("div", { className: "stage" }, el("p", { className: "broken", textContent: broken })));
      return;
    }
    this.tabs = [...planes.map((_, index) => String(index)), ...(planes.length > 1 ? ["both"] : [])];
    if (!this.tabs.includes(this.shown)) this.shown = "0";
    const chosen = this.shown === "both" ? [planes.findIndex((one) => !/despeckled/.test(one.name)), planes.findIndex((one) => /despeckled/.test(one.name))] : [Number(this.shown)];
    const which = chosen.some((index) => index < 0) ? [0, 1] : chosen;
    const first = planes[which[0]];
    this.setRange(first);
    this.stages = which.map((index) => new Stage(planes[index], this.tile.n, index, this.page.start.session, (x, y) => this.point(x, y)));
    this.bars = el("div", { className: "histogram" });
    this.look.replaceChildren(this.tabBar(planes, first), el("div", { className: "pictures" }, ...this.stages.map((stage) => stage.node)), this.bars);
    this.drawHistogram(first);
    await Promise.all(this.stages.map((stage) => stage.load()));
    this.fit();
    this.paint();
  }

  tabBar(planes, first) {
    const tab = (id, textContent, title) => el("button", { type: "button", textContent, title, className: this.shown === id ? "on" : "", ariaPressed: String(this.shown === id), onclick: () => { this.shown = id; this.drawLook(); } });
    const bar = el("div", { className: "tabs" }, ...planes.map((plane, index) => tab(String(index), plane.name, plane.note)));
    if (planes.length > 1) bar.append(tab("both", "side by side", "Speckled and despeckled under one cursor"));
    const way = (coded, textContent, title) => el("button", { type: "button", textContent, title, className: this.coded === coded ? "on" : "", ariaPressed: String(this.coded === coded), onclick: () => { this.coded = coded; this.drawLook(); } });
    bar.append(el("span", { className: "gap" }), way(false, first.unit === "value" ? "this tile" : "dB, this tile", "Black to white over per cent 1 to 99 of this tile (c)"));
    if (first.coded && first.coded[0] !== null) bar.append(way(true, "as coded", "Black to white over the range of all codes, as a trainer sees it (c)"));
    return bar;
  }

  setRange(plane) {
    const told = plane.histogram;
    const own = told.counts.length ? [told.p1, told.p99] : [0, 1];
    [this.low, this.high] = this.coded && plane.coded && plane.coded[0] !== null ? plane.coded : own;
    if (!(this.high > this.low)) this.high = this.low + 1;
  }

  fit() {
    for (const stage of this.stages) stage.fit();
  }

  paint() {
    for (const stage of this.stages) stage.paint(this.low, this.high);
  }

  point(x, y) {
    for (const stage of this.stages) stage.read(x, y);
  }

  drawHistogram(plane) {
    const told = plane.histogram;
    if (!told.counts.length) {
      this.bars.replaceChildren(el("p", { textContent: "No pixel is data." }));
      return;
    }
    const from = Math.min(told.edges[0], this.coded ? this.low : told.low), to = Math.max(told.edges[1], this.coded ? this.high : told.high);
    const wide = 1000, high = 84, span = to - from || 1;
    const at = (value) => ((value - from) / span) * wide;
    const [left, right] = told.edges;
    const bin = (right - left) / told.counts.length;
    const most = Math.max(...told.counts);
    const picture = svg("svg", { viewBox: `0 0 ${wide} 108`, preserveAspectRatio: "none", role: "img" });
    const bars = told.counts.map((n, index) => {
      const height = (n / most) * high;
      return svg("rect", { x: at(left + index * bin), width: Math.max(at(left + bin) - at(left) - 0.6, 0.6), y: high - height, height });
    });
    picture.append(...bars, svg("line", { class: "axis", x1: 0, x2: wide, y1: high, y2: high }));
    const colour = () => bars.forEach((bar, index) => {
      const middle = left + (index + 0.5) * bin;
      bar.setAttribute("class", middle < this.low || middle > this.high ? "outside" : "bars");
    });
    for (const end of ["low", "high"]) picture.append(...this.handle(picture, end, at, (x) => from + (x / wide) * span, high, colour));
    colour();
    const axis = el("p", {});
    const told2 = [["from", told.low], ["median", told.median], ["to", told.high], ["mean power", told.mean], ["deviation", told.std]];
    const unit = plane.unit === "value" ? "" : " dB";
    axis.append(...told2.filter(([, value]) => typeof value === "number").map(([name, value]) => el("span", {}, `${name} `, el("b", { textContent: `${rounded(value, 2)}${unit}` }))));
    axis.append(el("span", {}, "valid ", el("b", { textContent: `${rounded(100 * told.valid, 1)} %` })));
    this.greys = el("b");
    axis.append(el("span", {}, "grey ", this.greys));
    this.unit = unit;
    this.bars.replaceChildren(picture, axis);
    const notes = [plane.note, plane.unit === "dB of the picture's values" ? "dB of the picture's values, not of backscatter" : "", plane.unit === "value" ? "values as they are: nothing says what they mean" : ""].filter(Boolean);
    if (notes.length) this.bars.append(el("p", { className: "note", textContent: notes.join("; ") }));
    this.sayGreys();
  }

  sayGreys() {
    this.greys.textContent = `${rounded(this.low)} to ${rounded(this.high)}${this.unit}`;
  }

  /** A line that is dragged to say what is black, or white. */
  handle(picture, end, at, value, high, colour) {
    const line = svg("line", { class: "handle", y1: 0, y2: high + 8, "vector-effect": "non-scaling-stroke" });
    const grip = svg("rect", { class: "grip", y: 0, width: 28, height: high + 24 });
    const put = () => {
      const x = Math.min(Math.max(at(this[end]), 1), 999);
      line.setAttribute("x1", x);
      line.setAttribute("x2", x);
      grip.setAttribute("x", x - 14);
    };
    const drag = (event) => {
      const box = picture.getBoundingClientRect();
      const wanted = value(((event.clientX - box.left) / box.width) * 1000);
      const least = (value(1000) - value(0)) / 200;
      this[end] = end === "low" ? Math.min(wanted, this.high - least) : Math.max(wanted, this.low + least);
      put();
      colour();
      this.sayGreys();
      this.paint();
    };
    grip.addEventListener("pointerdown", (event) => { grip.setPointerCapture(event.pointerId); grip.onpointermove = drag; });
    grip.addEventListener("pointerup", () => { grip.onpointermove = null; });
    put();
    return [line, grip];
  }

  // -------------------------------------------------------------------------------------------------------- flags

  drawFlag() {
    const { flag } = this.tile;
    this.flagBox.classList.toggle("is-flagged", Boolean(flag));
    const parts = [el("h2", { textContent: flag ? (flag.what === "scene" ? "Scene flagged" : "Flagged") : "Flag" })];
    if (flag) {
      parts.push(el("p", { className: "why", textContent: flag.reason || "without a reason" }),
        el("div", { className: "row" }, el("button", { type: "button", id: "unflag", textContent: "take back", onclick: () => this.toggleFlag() })));
    } else {
      this.reason = el("input", { id: "reason", placeholder: "why? (optional)", maxLength: 500, onkeydown: (event) => { if (event.key === "Enter") this.flag(false); } });
      parts.push(el("div", { className: "chips" }, ...REASONS.map((textContent) => el("button", { type: "button", textContent, onclick: () => { this.reason.value = textContent; this.reason.focus(); } }))),
        el("div", { className: "row" }, this.reason,
          el("button", { type: "button", id: "flag-tile", textContent: "tile", title: "Flag this tile (f)", onclick: () => this.flag(false) }),
          el("button", { type: "button", id: "flag-scene", textContent: "whole scene", disabled: !this.tile.scene, onclick: () => this.flag(true) })));
    }
    parts.push(el("p", { className: "note", id: "flag-note", textContent: this.page.start.corpus ? "sarsense build --exclude leaves out what is flagged" : "tars of another program: the list is for you alone" }));
    this.flagBox.replaceChildren(...parts);
  }

  toggleFlag() {
    if (!this.tile) return;
    if (!this.tile.flag) this.flag(false);
    else this.change("/api/unflag", { whole: this.tile.flag.what === "scene" });
  }

  flag(whole) {
    return this.change("/api/flag", { reason: this.reason.value, whole });
  }

  async change(path, value) {
    const { tile } = this;
    if (tile === null) return;
    try {
      tile.flag = (await post(path, { n: tile.n, ...value })).flag;
      this.changes += 1; // what was asked before tells of the past
      this.page.flagged();
      if (tile === this.tile) this.drawFlag();
    } catch (error) {
      if (tile === this.tile) this.flagBox.querySelector("#flag-note").textContent = error.message;
    }
    this.root.focus();
  }

  // -------------------------------------------------------------------------------------------------------- place

  place() {
    const box = el("section", { className: "panel map" }, el("h2", { textContent: "Place" }));
    const { ring, lon, lat } = this.tile;
    if (typeof lon !== "number" || typeof lat !== "number") {
      box.append(el("p", { className: "note", textContent: this.page.start.corpus ? "The tile lies nowhere: its scene has no georeference." : "Nothing in these tars says where." }));
      return box;
    }
    box.append(world(this.page.start.places, lon, lat));
    if (ring.length > 2) box.append(around(ring));
    const reach = 0.25;
    box.append(el("div", { className: "row" }, el("span", { textContent: `${rounded(Math.abs(lat), 4)}° ${lat < 0 ? "S" : "N"}, ${rounded(Math.abs(lon), 4)}° ${lon < 0 ? "W" : "E"}` }), el("span", { className: "gap" }),
      el("button", { type: "button", textContent: "tiles around", onclick: () => this.find(`lon between ${rounded(lon - reach, 3)} and ${rounded(lon + reach, 3)} and lat between ${rounded(lat - reach, 3)} and ${rounded(lat + reach, 3)}`) })));
    return box;
  }

  find(where) {
    this.page.close();
    change({ where, facets: {}, flagged: false, perScene: false });
  }

  // --------------------------------------------------------------------------------------------------- provenance

  provenance() {
    const box = el("section", { className: "panel" }, el("h2", { textContent: "Tile" }), facts(this.tile.row));
    if (this.tile.searchable) box.append(el("div", { className: "row" }, el("button", { type: "button", textContent: "all tiles of its scene", onclick: () => this.find(`scene = ${quoted(this.tile.scene)}`) })));
    return box;
  }

  scene() {
    const box = el("section", { className: "panel" }, el("h2", { textContent: "Scene" }));
    const none = this.page.start.corpus ? "scenes.parquet has no row of it." : "Tars of another program: nothing says which scene it was cut from.";
    box.append(this.tile.scene_row ? facts(this.tile.scene_row) : el("p", { className: "note", textContent: none }));
    return box;
  }

  drawNear(near) {
    const parts = [el("h2", { textContent: "Near-duplicates" })];
    if (near.error) parts.push(el("p", { className: "note", textContent: near.error }));
    else {
      parts.push(...this.nearGroup("looks alike", near.look_alikes, (one) => `${one.distance} of 64 bits`, near.hashed ? "no tile's hash is near" : "no hash: too little structure, or none was made"));
      if (near.same_place.length) parts.push(...this.nearGroup("the same place", near.same_place, (one) => [one.polarisation, String(one.datetime || "").slice(0, 10)].filter(Boolean).join(" · ")));
      parts.push(el("p", { className: "near-head", textContent: !near.duplicates ? "No list of duplicates: these are tars of another program." : near.left_out.length ? "left out by the build, or for another" : "The build left nothing out for it." }));
      parts.push(...near.left_out.map((one) => el("div", { className: "list" }, `${one.other ?? "(none)"}`,
        el("span", { className: "quiet", textContent: `${one.kind}, ${one.of}: ${one.role}${typeof one.distance === "number" ? `; distance ${rounded(one.distance, 3)}` : ""}` }),
        typeof one.number === "number" ? el("button", { type: "button", textContent: "show", onclick: () => open(one.number) }) : null)));
    }
    this.nearBox.replaceChildren(...parts);
  }

  nearGroup(title, rows, says, none = "") {
    const head = el("p", { className: "near-head", textContent: rows.length ? title : none });
    return rows.length ? [head, el("div", { className: "near" }, ...rows.map((row) => card({ ...row, n: row.number }, () => open(row.number), says(row))))] : [head];
  }
}

/** A canvas of one plane: grey between two values, to the pixel; what the cursor is on is read out below. */
class Stage {
  constructor(plane, n, index, session, point) {
    Object.assign(this, { plane, n, index, session, values: null });
    this.canvas = el("canvas", { width: plane.width, height: plane.height });
    this.value = el("b", { textContent: "\u00a0" });
    this.where = el("span");
    this.stage = el("div", { className: "stage" }, this.canvas);
    this.node = el("figure", { className: "picture" }, this.stage, el("figcaption", { className: "under" }, el("span", { textContent: plane.name }), this.value, this.where));
    this.canvas.addEventListener("pointermove", (event) => {
      const box = this.canvas.getBoundingClientRect();
      point(Math.floor(((event.clientX - box.left) / box.width) * plane.width), Math.floor(((event.clientY - box.top) / box.height) * plane.height));
    });
    this.canvas.addEventListener("pointerleave", () => point(-1, -1));
  }

  async load() {
    const answer = await fetch(`/api/values?${new URLSearchParams({ n: this.n, plane: this.index, v: this.session })}`);
    if (!answer.ok) {
      const told = await answer.json().catch(() => ({ error: answer.statusText }));
      this.stage.replaceChildren(el("p", { className: "broken", textContent: told.error }));
      return;
    }
    this.values = new Float32Array(await answer.arrayBuffer());
  }

  fit() {
    const { clientWidth, clientHeight } = this.stage;
    const most = Math.min(clientWidth / this.plane.width, clientHeight / this.plane.height);
    const scale = most >= 1 ? Math.max(1, Math.floor(most * 4) / 4) : most;
    this.canvas.style.width = `${Math.floor(this.plane.width * scale)}px`;
    this.canvas.style.height = `${Math.floor(this.plane.height * scale)}px`;
  }

  paint(low, high) {
    if (!this.values) return;
    const context = this.canvas.getContext("2d");
    const image = context.createImageData(this.plane.width, this.plane.height);
    const out = image.data, scale = 255 / (high - low);
    for (let i = 0, o = 0; i < this.values.length; i += 1, o += 4) {
      const value = this.values[i];
      if (Number.isNaN(value)) [out[o], out[o + 1], out[o + 2]] = NO_DATA;
      else out[o] = out[o + 1] = out[o + 2] = (value - low) * scale; // clamped by the array
      out[o + 3] = 255;
    }
    context.putImageData(image, 0, 0);
  }

  read(x, y) {
    const { width, height, step, unit } = this.plane;
    const inside = x >= 0 && y >= 0 && x < width && y < height && this.values;
    const value = inside ? this.values[y * width + x] : NaN;
    this.value.textContent = !inside ? "\u00a0" : Number.isNaN(value) ? "no data" : `${value.toFixed(2)}${unit === "value" ? "" : " dB"}`;
    this.where.textContent = inside ? `row ${figures(y * step)}, column ${figures(x * step)}` : step > 1 ? `every ${step}th pixel` : "";
  }
}

// ------------------------------------------------------------------------------------------------------------- parts

function facts(rows) {
  const said = rows.filter(([, value]) => value !== null && !(Array.isArray(value) && !value.length));
  const none = rows.filter((row) => !said.includes(row)).map(([name]) => name);
  const table = el("table", {}, ...said.map(([name, value, what]) => el("tr", {}, el("td", { textContent: name.replaceAll("_", " "), title: what }), el("td", { textContent: written(value) }))));
  const box = el("div", {}, table);
  if (none.length) box.append(el("p", { className: "note", textContent: `nobody says: ${none.join(", ").replaceAll("_", " ")}` }));
  return box;
}

function written(value) {
  if (typeof value === "number") return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(8)));
  if (Array.isArray(value)) return value.map(written).join(typeof value[0] === "object" ? "\n" : ", ");
  if (value && typeof value === "object") return Object.entries(value).filter(([, one]) => one !== null).map(([name, one]) => `${name} ${written(one)}`).join(", ");
  return String(value);
}
