// The grid: filters, pages, keys. What a corpus says is put into text nodes and nothing else.
import { Detail } from "/view.js";

export const $ = (id) => document.getElementById(id);

/** An element with properties (not attributes: no markup, no handlers in text) and children; strings become text. */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) node[name] = value;
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export async function ask(path, query = {}) {
  const answer = await fetch(`${path}?${new URLSearchParams(query)}`);
  return told(answer);
}

export async function post(path, value) {
  return told(await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(value) }));
}

async function told(answer) {
  const text = await answer.text();
  let value = null;
  try { value = JSON.parse(text); } catch { value = { error: text.trim() || answer.statusText }; }
  if (!answer.ok) throw new Error(value.error || answer.statusText);
  return value;
}

export const figures = (value) => value.toLocaleString("en-US");
export const rounded = (value, digits = 1) => (typeof value === "number" ? value.toFixed(digits) : "–");
export const quoted = (value) => `'${value.replaceAll("'", "''")}'`;

const PAGE = 60;
const SORTS = [
  ["", "as in the shards"], ["hash(key)", "shuffled"],
  ["mean_db", "darkest"], ["-mean_db", "brightest"], ["-std_db", "most contrast"], ["std_db", "least contrast"],
  ["-structure_db", "most structure"], ["enl", "fewest looks"], ["-enl", "most looks"], ["valid_fraction", "least data"],
  ["datetime", "oldest"], ["-datetime", "newest"], ["lat", "south to north"], ["lon", "west to east"], ["key", "key"],
];

const state = { where: "", sort: "", facets: {}, perScene: false, flagged: false, offset: 0, channel: "0", own: "0", tile: null };
let start = null, rows = [], count = 0, asked = 0, facetsOld = true, detail = null;
const channel = "BroadcastChannel" in window ? new BroadcastChannel(`sarsense-flags-${location.host}`) : null;

// ------------------------------------------------------------------------------------------------- state and address

function question() {
  const query = { where: state.where, sort: state.sort, facets: JSON.stringify(state.facets) };
  if (state.perScene) query.per_scene = "1";
  if (state.flagged) query.flagged = "1";
  return query;
}

function remember(entry = false) {
  const kept = { ...question(), offset: state.offset, channel: state.channel, own: state.own };
  if (state.tile !== null) kept.tile = state.tile;
  for (const [name, value] of Object.entries(kept)) if (value === "" || value === "{}" || value === "0" || value === 0) delete kept[name];
  if (state.tile === 0) kept.tile = 0;
  const address = `${location.pathname}#${new URLSearchParams(kept)}`;
  if (entry) history.pushState(null, "", address); else history.replaceState(null, "", address);
}

function recall() {
  const kept = new URLSearchParams(location.hash.slice(1));
  let facets = {};
  try { facets = JSON.parse(kept.get("facets") || "{}"); } catch { /* an address that somebody edited */ }
  Object.assign(state, {
    where: kept.get("where") || "", sort: kept.get("sort") || "", facets, perScene: kept.get("per_scene") === "1",
    flagged: kept.get("flagged") === "1", offset: Math.max(0, parseInt(kept.get("offset") || "0", 10) || 0),
    channel: kept.get("channel") || "0", own: kept.get("own") || "0",
    tile: /^\d{1,12}$/.test(kept.get("tile") || "") ? Number(kept.get("tile")) : null,
  });
}

function show() {
  $("where").value = state.where;
  const known = SORTS.some(([value]) => value === state.sort) && [...$("sort").options].some((one) => one.value === state.sort);
  $("sort").value = known ? state.sort : "own";
  $("sort-own").value = known ? "" : state.sort;
  $("sort-own").classList.toggle("hidden", known);
  $("per-scene").checked = state.perScene;
  $("flagged").checked = state.flagged;
  $("channel").value = state.channel;
  $("contrast").value = state.own;
}

/** Ask for what differs from now: all that is not a page begins at the first one. */
export function change(what, entry = true) {
  Object.assign(state, { offset: 0, ...what });
  remember(entry);
  show();
  return load(!("offset" in what) || Object.keys(what).length > 1);
}

// --------------------------------------------------------------------------------------------------------- the grid

async function load(facetsToo = true) {
  const mine = ++asked;
  facetsOld ||= facetsToo; // a later page may overtake the one that was to bring them
  $("grid").setAttribute("aria-busy", "true");
  try {
    const found = await ask("/api/tiles", { ...question(), offset: state.offset, limit: PAGE });
    if (mine !== asked) return;
    const same = !facetsToo && rows.length > 0 && count === found.count && rows.length === found.rows.length && rows.every((row, index) => row.n === found.rows[index].n);
    ({ rows, count } = found);
    $("error").classList.add("hidden");
    if (same) drawFlags(); else draw();
  } catch (error) {
    if (mine !== asked) return;
    $("error").textContent = error.message;
    $("error").classList.remove("hidden");
    return;
  } finally {
    if (mine === asked) $("grid").setAttribute("aria-busy", "false");
  }
  if (facetsOld) ask("/api/facets", question()).then((found) => { if (mine === asked) { drawFacets(found); facetsOld = false; } }, () => {});
}

function draw() {
  $("grid").replaceChildren(...rows.map((row) => card(row, () => open(row.n))));
  if (!rows.length) $("grid").append(el("p", { className: "nothing", textContent: state.flagged ? "Nothing is flagged here." : "No tile is like that." }));
  $("grid").scrollTop = 0;
  const all = count === start.total ? figures(count) : `${figures(count)} of ${figures(start.total)}`;
  $("count").textContent = state.perScene ? `${figures(count)} scenes` : `${all} tiles`;
  $("range").textContent = rows.length ? `${figures(state.offset + 1)} – ${figures(state.offset + rows.length)} of ${figures(count)}` : "";
  $("first").disabled = $("back").disabled = state.offset === 0;
  $("on").disabled = state.offset + rows.length >= count;
}

/** The same tiles, of which others are flagged: focus and place in the grid stay. */
function drawFlags() {
  const tiles = $("grid").querySelectorAll(".tile");
  rows.forEach((row, index) => tiles[index]?.classList.toggle("flagged", Boolean(row.flag)));
}

/** A tile of the grid, or among those that are near another. */
export function card(row, onclick, facts = null) {
  const picture = el("img", { alt: "", loading: "lazy", decoding: "async", src: thumbnail(row.n) });
  const frame = el("span", { className: "frame" }, picture);
  picture.onerror = () => ask("/api/thumb", thumbnailQuery(row.n)).catch((error) => error.message)
    .then((why) => frame.replaceChildren(el("span", { className: "broken", textContent: why || "cannot be shown" })));
  const left = [row.split, row.polarisation].filter(Boolean).join(" · ");
  const right = typeof row.mean_db === "number" ? `${rounded(row.mean_db)} dB` : "";
  const node = el("button", { type: "button", className: "tile", title: row.key ?? "", onclick },
    frame, el("span", { className: "name", textContent: row.scene || row.key || `tile ${row.n}` }),
    facts ? el("span", { className: "facts" }, el("span", { textContent: facts }))
      : el("span", { className: "facts" }, el("span", { textContent: left }), el("span", { textContent: right })));
  node.dataset.n = row.n;
  node.classList.toggle("flagged", Boolean(row.flag));
  return node;
}

function thumbnailQuery(n) {
  return { n, channel: state.channel, own: state.own, v: start.session };
}

function thumbnail(n) {
  return `/api/thumb?${new URLSearchParams(thumbnailQuery(n))}`;
}

function drawFacets(found) {
  const shown = Object.entries(found).filter(([name, values]) => values.length > 1 || state.facets[name]?.length || (values.length && values[0][0] !== null && ["split", "sensor", "polarisation"].includes(name)));
  $("facets").replaceChildren(...shown.map(([name, values]) => {
    const chosen = state.facets[name] || [];
    const buttons = values.map(([value, n]) => el("button", {
      type: "button", className: chosen.includes(value) ? "on" : "", ariaPressed: String(chosen.includes(value)),
      onclick: () => choose(name, value),
    }, el("span", { className: "v", textContent: value === null ? "unknown" : String(value) }), el("span", { className: "n", textContent: figures(n) })));
    return el("div", { className: "facet" }, el("h2", { textContent: name.replaceAll("_", " ") }), ...buttons);
  }));
}

function choose(name, value) {
  const chosen = state.facets[name] || [];
  const now = chosen.includes(value) ? chosen.filter((one) => one !== value) : [...chosen, value];
  const facets = { ...state.facets, [name]: now };
  if (!now.length) delete facets[name];
  change({ facets });
}

export function turn(by) {
  const offset = state.offset + by * PAGE;
  if (offset < 0 || offset >= count) return Promise.resolve();
  return change({ offset });
}

// --------------------------------------------------------------------------------------------------------- one tile

export function open(n, entry = true) {
  state.tile = n;
  remember(entry);
  detail.show(n);
}

function close() {
  const n = state.tile;
  state.tile = null;
  remember(true);
  detail.hide();
  document.querySelector(`#grid .tile[data-n="${Number(n)}"]`)?.focus();
}

async function neighbour(by) {
  const at = rows.findIndex((row) => row.n === state.tile);
  if (at < 0) return;
  if (rows[at + by]) return open(rows[at + by].n, false);
  await turn(by);
  const next = by > 0 ? rows[0] : rows[rows.length - 1];
  if (next && next.n !== state.tile) open(next.n, false);
}

/** A tile was flagged, or is no more: here, and in other tabs. */
function flagged() {
  channel?.postMessage("changed");
  load(false);
}

// ------------------------------------------------------------------------------------------------------------- keys

const KEYS = [
  ["← → ↑ ↓", "move over the grid; in a tile: before, after"], ["Enter", "open a tile"], ["Esc", "back to the grid"],
  ["PageUp PageDown", "page before, page after"], ["Home", "first page"], ["/", "write a condition"],
  ["f", "flag the tile, or take the flag back"], ["1 2 3", "speckled, despeckled, side by side"],
  ["c", "contrast: this tile, as coded"], ["?", "this"],
];

function drawHelp() {
  const table = el("table", {}, ...KEYS.map(([key, what]) => el("tr", {}, el("td", { textContent: key }), el("td", { textContent: what }))));
  $("help").replaceChildren(el("div", {}, table));
}

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const writing = event.target.matches("input:not([type=checkbox]), select, textarea");
  if (!$("help").classList.contains("hidden")) { $("help").classList.add("hidden"); event.preventDefault(); return; }
  if (event.key === "Escape") {
    if (writing) event.target.blur(); else if (state.tile !== null) close();
    return;
  }
  if (writing) return;
  if (event.key === "?") { $("help").classList.remove("hidden"); event.preventDefault(); return; }
  if (state.tile !== null) {
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (by) { event.preventDefault(); neighbour(by); } else if (detail.key(event.key)) event.preventDefault();
    return;
  }
  const does = { PageDown: () => turn(1), PageUp: () => turn(-1), Home: () => change({ offset: 0 }), "/": () => $("where").focus() }[event.key];
  if (does) { event.preventDefault(); does(); return; }
  if (event.key === "f" && document.activeElement?.matches("#grid .tile")) { quickly(Number(document.activeElement.dataset.n)); return; }
  move(event);
}

function move(event) {
  const tiles = [...$("grid").querySelectorAll(".tile")];
  if (!tiles.length) return;
  const across = getComputedStyle($("grid")).gridTemplateColumns.split(" ").length;
  const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across }[event.key];
  if (!by) return;
  event.preventDefault();
  const at = tiles.indexOf(document.activeElement);
  if (at < 0) { tiles[0].focus(); return; }
  const to = at + by;
  if (to >= tiles.length && state.offset + rows.length < count && by === 1) turn(1).then(() => $("grid").querySelector(".tile")?.focus());
  else if (to < 0 && state.offset > 0 && by === -1) turn(-1).then(() => [...$("grid").querySelectorAll(".tile")].pop()?.focus());
  else tiles[Math.min(Math.max(to, 0), tiles.length - 1)].focus();
}

/** Flag a tile of the grid without opening it. */
async function quickly(n) {
  const row = rows.find((one) => one.n === n);
  if (!row) return;
  try {
    const path = row.flag ? "/api/unflag" : "/api/flag";
    const whole = row.flag?.what === "scene";
    row.flag = (await post(path, row.flag ? { n, whole } : { n, reason: "", whole: false })).flag;
    drawFlags();
    flagged();
  } catch (error) {
    $("error").textContent = error.message;
    $("error").classList.remove("hidden");
  }
}

// ------------------------------------------------------------------------------------------------------------ start

async function begin() {
  if (location.search) history.replaceState(null, "", `/${location.hash}`); // the token is in the cookie by now
  start = await ask("/api/start");
  document.title = `${start.name} · sarsense browse`;
  $("name").textContent = start.name;
  $("flags-file").textContent = `flags: ${start.flags}`;
  const names = new Set(start.columns.map((column) => column.name));
  const sorts = SORTS.filter(([value]) => !value || value.startsWith("hash") || names.has(value.replace("-", "")));
  $("sort").append(...[...sorts, ["own", "other …"]].map(([value, textContent]) => el("option", { value, textContent })));
  $("channel").append(...start.channels.map((name, value) => el("option", { value, textContent: kind(name) })));
  $("channel").classList.toggle("hidden", start.channels.length < 2);
  $("columns").querySelector("dl").append(...start.columns.flatMap((column) => [
    el("dt", { textContent: column.name, title: column.type, onclick: () => insert(column.name) }), el("dd", { textContent: column.what === column.name ? "" : column.what }),
  ]));
  if (!start.corpus) {
    $("unknown").textContent = `Tars of another program. Nothing in them says: ${start.unknown.join(", ") || "(all is said)"}.`;
    $("unknown").classList.remove("hidden");
    $("per-scene").parentElement.classList.toggle("hidden", !names.has("scene"));
    $("contrast").options[0].textContent = "as it is";
  }
  drawHelp();
  detail = new Detail($("detail"), { start, close, neighbour, flagged });
  listen();
  recall();
  show();
  await load();
  if (state.tile !== null) detail.show(state.tile);
}

/** Of channels all of one polarisation, what tells them apart. */
function kind(name) {
  const first = (one) => one.split(" ")[0];
  const same = start.channels.every((one) => first(one) === first(start.channels[0]) && one.includes(" "));
  return same ? name.slice(first(name).length + 1) : name;
}

function insert(name) {
  const box = $("where");
  box.setRangeText(box.value && !box.value.endsWith(" ") ? ` ${name}` : name, box.selectionStart, box.selectionEnd, "end");
  box.focus();
}

function listen() {
  $("filter").addEventListener("submit", (event) => { event.preventDefault(); change({ where: $("where").value, sort: $("sort").value === "own" ? $("sort-own").value : $("sort").value }); });
  for (const id of ["where", "sort-own"]) $(id).addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); $("filter").requestSubmit(); } });
  $("where").addEventListener("change", () => { if ($("where").value !== state.where) $("filter").requestSubmit(); });
  $("sort").addEventListener("change", () => {
    const own = $("sort").value === "own";
    $("sort-own").classList.toggle("hidden", !own);
    if (own) $("sort-own").focus(); else change({ sort: $("sort").value });
  });
  $("per-scene").addEventListener("change", () => change({ perScene: $("per-scene").checked }));
  $("flagged").addEventListener("change", () => change({ flagged: $("flagged").checked }));
  $("channel").addEventListener("change", () => { state.channel = $("channel").value; remember(); draw(); });
  $("contrast").addEventListener("change", () => { state.own = $("contrast").value; remember(); draw(); });
  $("first").addEventListener("click", () => change({ offset: 0 }));
  $("back").addEventListener("click", () => turn(-1));
  $("on").addEventListener("click", () => turn(1));
  $("help-open").addEventListener("click", () => $("help").classList.remove("hidden"));
  $("help").addEventListener("click", () => $("help").classList.add("hidden"));
  document.addEventListener("keydown", pressed);
  window.addEventListener("popstate", () => {
    recall();
    show();
    load();
    if (state.tile === null) detail.hide(); else detail.show(state.tile);
  });
  channel?.addEventListener("message", () => { load(false); if (state.tile !== null) detail.refresh(); });
  window.addEventListener("focus", () => load(false));
}

begin().catch((error) => { $("error").textContent = error.message; $("error").classList.remove("hidden"); });
