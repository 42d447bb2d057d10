"use strict";
// The map of a corpus. Reads what the page carries: `about` and `coastline` (JSON), `tiles` (zlib, base64).
// What is known of the tiles goes into the page as text alone (textContent), never as HTML.

const $ = (id) => document.getElementById(id);
const about = JSON.parse($("about").textContent);
const COLORS = ["#3b63c4", "#e8871a", "#d9483b", "#2a9d8f", "#8a4fbe", "#c2417c", "#6b8f23", "#8c5a3c", "#2f8fc0"];
const OTHER = "#7d8790", UNKNOWN = "#b9a7a7";
const RAMP = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];
const CELL = 5, LEAST = 3, MOST_SHAPES = 40000, RAD = Math.PI / 180, KM = 111.195;

// ------------------------------------------------------------------------------------------------------- data

async function unpack(name) {
  const kinds = { uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, int16: Int16Array, float32: Float32Array, float64: Float64Array };
  const found = {};
  for (const [key, { type, number, width }] of Object.entries(JSON.parse($(`${name}-index`).textContent))) {
    const block = $(`${name}-${number}`), bytes = Uint8Array.from(atob(block.textContent), (c) => c.charCodeAt(0));
    block.remove();
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const planes = new Uint8Array(await new Response(stream).arrayBuffer());
    const parts = width * kinds[type].BYTES_PER_ELEMENT, rows = parts ? planes.length / parts : 0, raw = new Uint8Array(planes.length);
    for (let part = 0; part < parts; part++) for (let i = 0, at = part * rows; i < rows; i++) raw[i * parts + part] = planes[at + i];
    found[key] = new kinds[type](raw.buffer);
  }
  return found;
}

let arrays, N, lon, lat, polar;
const columns = {};      // name -> {names or null, values}
const pictures = new Map();

function decode() {
  N = arrays.step.length;
  lon = new Float64Array(N);
  lat = new Float64Array(N);
  for (let i = 0; i < N; i++) {
    lon[i] = arrays.middle[2 * i] * (360 / 2 ** 32) - 180;
    lat[i] = arrays.middle[2 * i + 1] * (180 / 2 ** 32) - 90;
  }
  polar = new Set(about.polar);
  for (const [name, names] of Object.entries(about.columns)) columns[name] = { names, values: arrays[`column ${name}`] };
  if (columns.datetime && !columns.year) {   // of few dates: names of names
    const years = [...new Set(columns.datetime.names.map((d) => (/^\d{4}-/.test(d) ? d.slice(0, 4) : "")))].filter(Boolean).sort();
    const number = new Uint16Array(columns.datetime.names.length + 1);
    columns.datetime.names.forEach((d, n) => { number[n + 1] = years.indexOf(d.slice(0, 4)) + 1; });
    columns.year = { names: years, values: Uint16Array.from(columns.datetime.values, (v) => number[v]), derived: true };
  }
  for (const one of about.pictures) pictures.set(one.tile, one);
}

const corner = (i, k) => [lon[i] + arrays.corner[8 * i + 2 * k] * arrays.step[i], lat[i] + arrays.corner[8 * i + 2 * k + 1] * arrays.step[i]];

function keyOf(i) {
  if (about.keys) return about.keys[i];
  const five = (value) => String(value).padStart(5, "0");
  return [text("scene", i), text("polarisation", i), five(columns.row.values[i]), five(columns.col.values[i])].join("-");
}

function text(name, i) {
  const { names, values } = columns[name];
  if (names) return values[i] ? names[values[i] - 1] : null;
  return Number.isNaN(values[i]) ? null : String(Number(values[i].toPrecision(6)));
}

// ------------------------------------------------------------------------------------------------- projections
// Flat: lon and lat, narrower by the cosine of the latitude amid the view as one comes closer, so that shapes are true.
// Polar: distance from the pole and direction, true from the pole (azimuthal equidistant).

const canvas = $("map"), ctx = canvas.getContext("2d");
let kind = "flat", cx = 0, cy = 0, scale = 3, width = 0, height = 0, X, Y, R, Q;

function project(lo, la) {
  if (kind === "flat") return [lo, la];
  const r = kind === "north" ? 90 - la : 90 + la, s = kind === "north" ? 1 : -1;
  return [r * Math.sin(lo * RAD), -s * r * Math.cos(lo * RAD)];
}

function place(x, y) {
  if (kind === "flat") return [((x + 180) % 360 + 360) % 360 - 180, y];
  const r = Math.hypot(x, y), s = kind === "north" ? 1 : -1;
  return [r ? Math.atan2(x, -s * y) / RAD : 0, s * (90 - r)];
}

function squeeze() {
  if (kind !== "flat") return 1;
  const span = height / scale, t = Math.min(1, Math.max(0, Math.log2(120 / span) / 2.6));
  return Math.pow(Math.max(0.02, Math.cos(Math.min(89, Math.abs(cy)) * RAD)), t);
}

function near(x) { return kind === "flat" ? x - 360 * Math.round((x - cx) / 360) : x; }

// Middles, reach and corners of all tiles in the projection: once for each projection.
function lay() {
  X = new Float64Array(N); Y = new Float64Array(N); R = new Float32Array(N); Q = new Float32Array(8 * N);
  for (let i = 0; i < N; i++) {
    const [x, y] = project(lon[i], lat[i]);
    X[i] = x; Y[i] = y;
    let reach = 0;
    for (let k = 0; k < 4; k++) {
      const [u, v] = project(...corner(i, k));
      Q[8 * i + 2 * k] = u - x; Q[8 * i + 2 * k + 1] = v - y;
      reach = Math.max(reach, Math.abs(u - x), Math.abs(v - y));
    }
    R[i] = reach;
    if (kind !== "flat" && (kind === "north" ? lat[i] < -11 : lat[i] > 11)) { Y[i] = 1e9; R[i] = 0; }   // at the back
  }
}

// ---------------------------------------------------------------------------------------------------- colours

let color = null, classes = null, hidden = new Set();

function choose(name) {
  color = name; hidden = new Set();
  const column = columns[name];
  const of = new Uint8Array(N);
  if (!column) { classes = { of, colors: [COLORS[0]], names: ["tiles"], counts: [N], ramp: false }; return legend(); }
  if (column.names) {
    const counts = new Float64Array(column.names.length + 1);
    for (let i = 0; i < N; i++) counts[column.values[i]]++;
    const order = [...counts.keys()].filter((c) => c > 0 && counts[c] > 0);
    order.sort((a, b) => counts[b] - counts[a] || a - b);
    const years = order.length <= 40 && order.every((c) => /^\d{4}(-\d\d)?$/.test(column.names[c - 1]));
    const shown = years ? [...order].sort((a, b) => (column.names[a - 1] < column.names[b - 1] ? -1 : 1)) : order.slice(0, order.length > COLORS.length ? COLORS.length - 1 : COLORS.length);
    const number = new Uint8Array(counts.length).fill(shown.length);
    shown.forEach((c, n) => { number[c] = n; });
    const unknown = counts[0] > 0, rest = order.length - shown.length;
    const names = shown.map((c) => column.names[c - 1]);
    const colors = years ? shown.map((_, n) => ramp(shown.length > 1 ? n / (shown.length - 1) : 0.5)) : COLORS.slice(0, shown.length);
    if (rest) { names.push(`${rest.toLocaleString("en")} others`); colors.push(OTHER); }
    if (unknown) { number[0] = names.length; names.push("unknown"); colors.push(UNKNOWN); }
    for (let i = 0; i < N; i++) of[i] = number[column.values[i]];
    classes = { of, colors, names, ramp: false };
  } else {
    const known = [];
    for (let i = 0; i < N; i += Math.max(1, Math.floor(N / 50000))) if (!Number.isNaN(column.values[i])) known.push(column.values[i]);
    known.sort((a, b) => a - b);
    const at = (share) => known[Math.min(known.length - 1, Math.floor(share * known.length))] ?? 0;
    let low = at(0.02), high = at(0.98);
    if (!(high > low)) { low = at(0); high = at(1) > low ? at(1) : low + 1; }
    const steps = 24;
    for (let i = 0; i < N; i++) {
      const value = column.values[i];
      of[i] = Number.isNaN(value) ? steps : Math.max(0, Math.min(steps - 1, Math.floor((value - low) / (high - low) * steps)));
    }
    const colors = Array.from({ length: steps }, (_, n) => ramp((n + 0.5) / steps));
    classes = { of, colors: [...colors, UNKNOWN], names: null, ramp: true, low, high, steps };
  }
  classes.counts = new Float64Array(classes.colors.length);
  for (let i = 0; i < N; i++) classes.counts[of[i]]++;
  legend();
}

function ramp(share) {
  const at = share * (RAMP.length - 1), n = Math.min(RAMP.length - 2, Math.floor(at)), t = at - n;
  const part = (hex, k) => parseInt(hex.slice(1 + 2 * k, 3 + 2 * k), 16);
  return `rgb(${[0, 1, 2].map((k) => Math.round(part(RAMP[n], k) * (1 - t) + part(RAMP[n + 1], k) * t)).join(",")})`;
}

function element(tag, content, kind_) {
  const made = document.createElement(tag);
  if (content !== undefined && content !== null) made.textContent = content;
  if (kind_) made.className = kind_;
  return made;
}

function legend() {
  const box = $("legend");
  box.replaceChildren();
  if (classes.ramp) {
    const bar = element("canvas"); bar.id = "ramp"; bar.width = classes.steps; bar.height = 1;
    const pen = bar.getContext("2d");
    classes.colors.slice(0, classes.steps).forEach((one, n) => { pen.fillStyle = one; pen.fillRect(n, 0, 1, 1); });
    const ends = element("div", null, "ends");
    ends.append(element("span", Number(classes.low.toPrecision(4))), element("span", Number(classes.high.toPrecision(4))));
    box.append(bar, ends);
    if (classes.counts[classes.steps]) box.append(entry(classes.steps, "unknown"));
  } else classes.names.forEach((name, n) => box.append(entry(n, name)));
}

function entry(n, name) {
  const line = element("button", null, "entry");
  const dot = element("i"); dot.style.background = classes.colors[n];
  line.append(dot, element("span", name), element("b", classes.counts[n].toLocaleString("en")));
  line.title = `${name}: hide or show`;
  line.onclick = () => { if (!hidden.delete(n)) hidden.add(n); line.classList.toggle("off"); draw(); };
  return line;
}

// --------------------------------------------------------------------------------------------------- drawing

let rings = [];

function shore() {
  const { unit, rings: steps } = JSON.parse($("coastline").textContent);
  rings = steps.map((ring) => {
    const points = new Float64Array(ring.length);
    let x = 0, y = 0;
    for (let k = 0; k < ring.length; k += 2) { x += ring[k]; y += ring[k + 1]; points[k] = x * unit; points[k + 1] = y * unit; }
    return points;
  });
}

let ratio = 1, waiting = false;
function draw() { if (!waiting) { waiting = true; requestAnimationFrame(() => { waiting = false; paint(); }); } }

function sx(x) { return width / 2 + (x - cx) * scale * kx; }
function sy(y) { return height / 2 - (y - cy) * scale; }
let kx = 1;

function paint() {
  kx = squeeze();
  ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
  ctx.fillStyle = "#eef2f5"; ctx.fillRect(0, 0, width, height);
  ctx.save();
  ctx.beginPath();
  if (kind === "flat") {
    const half = 180 * scale * kx;
    ctx.rect(Math.max(0, width / 2 - half), Math.max(0, sy(90)), Math.min(width, 2 * half), Math.min(height, sy(-90)) - Math.max(0, sy(90)));
  } else ctx.arc(sx(0), sy(0), 100 * scale, 0, 2 * Math.PI);
  ctx.clip();
  ctx.fillStyle = "#d6e4ee"; ctx.fillRect(0, 0, width, height);
  land();
  graticule();
  tiles();
  ctx.restore();
  labels();
  foot();
}

function land() {
  const shifts = kind === "flat" ? [-360, 0, 360] : [0];
  const fill = new Path2D(), line = new Path2D();
  for (const ring of rings) {
    if (kind !== "flat") {
      let worst = 90;
      for (let k = 1; k < ring.length; k += 2) worst = Math.min(worst, kind === "north" ? ring[k] : -ring[k]);
      if (worst < -62) continue;   // it goes around the pole at the back
    }
    for (const shift of shifts) {
      const base = kind === "flat" ? shift : 0;
      let before = null, seen = false;
      if (kind === "flat") {
        let west = Infinity, east = -Infinity, south = 91, north = -91;
        for (let k = 0; k < ring.length; k += 2) { west = Math.min(west, ring[k]); east = Math.max(east, ring[k]); south = Math.min(south, ring[k + 1]); north = Math.max(north, ring[k + 1]); }
        seen = sx(east + base) > 0 && sx(west + base) < width && sy(south) > 0 && sy(north) < height;
        if (!seen) continue;
      }
      for (let k = 0; k < ring.length; k += 2) {
        const [u, v] = project(ring[k], ring[k + 1]);
        const px = sx(u + base), py = sy(v);
        if (k) fill.lineTo(px, py); else fill.moveTo(px, py);
        const edge = before !== null && ((Math.abs(ring[k]) > 179.9 && Math.abs(before[0]) > 179.9) || (ring[k + 1] < -89.5));
        if (k && !edge) line.lineTo(px, py); else line.moveTo(px, py);
        before = [ring[k], ring[k + 1]];
      }
      fill.closePath();
    }
  }
  ctx.fillStyle = "#f8f6f1"; ctx.fill(fill, "evenodd");
  ctx.strokeStyle = "#8fa3b1"; ctx.lineWidth = 0.8; ctx.stroke(line);
}

function step() {
  const wanted = 90 / scale;
  return [30, 15, 10, 5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005, 0.0002, 0.0001].find((s) => s <= wanted) ?? 0.0001;
}

function graticule() {
  const s = step();
  ctx.strokeStyle = "rgba(90, 115, 135, 0.28)"; ctx.lineWidth = 0.7;
  ctx.beginPath();
  if (kind === "flat") {
    const half = Math.min(180, width / 2 / scale / kx), high = Math.min(90, cy + height / 2 / scale), low = Math.max(-90, cy - height / 2 / scale);
    const sl = Math.min(30, [1, 2, 5, 10].map((m) => m * s).find((v) => v * scale * kx > 60) ?? 30);
    for (let x = Math.ceil((cx - half) / sl) * sl; x <= cx + half; x += sl) { ctx.moveTo(sx(x), sy(high)); ctx.lineTo(sx(x), sy(low)); }
    for (let y = Math.ceil(low / s) * s; y <= high + 1e-9; y += s) { ctx.moveTo(sx(cx - half), sy(y)); ctx.lineTo(sx(cx + half), sy(y)); }
    graticule.lon = sl;
  } else {
    for (let x = -180; x < 180; x += 30) { const [u, v] = project(x, kind === "north" ? -10 : 10); ctx.moveTo(sx(0), sy(0)); ctx.lineTo(sx(u), sy(v)); }
    const far = Math.min(100, Math.hypot(cx, cy) + Math.hypot(width, height) / 2 / scale), close = Math.max(0, Math.hypot(cx, cy) - Math.hypot(width, height) / 2 / scale);
    const s2 = Math.min(10, s);
    for (let r = Math.max(s2, Math.floor(close / s2) * s2); r <= far; r += s2) { ctx.moveTo(sx(0) + r * scale, sy(0)); ctx.arc(sx(0), sy(0), r * scale, 0, 2 * Math.PI); }
  }
  ctx.stroke();
}

function degrees(value, positive, negative) {
  const shown = Math.round(Math.abs(value) * 1e4) / 1e4;
  return `${shown}°${value > 1e-9 ? positive : value < -1e-9 ? negative : ""}`;
}

function labels() {
  ctx.font = "11px system-ui, sans-serif"; ctx.fillStyle = "#5c6b78"; ctx.textAlign = "center";
  ctx.strokeStyle = "rgba(255,255,255,0.85)"; ctx.lineWidth = 3; ctx.lineJoin = "round";
  const put = (words, x, y) => { ctx.strokeText(words, x, y); ctx.fillText(words, x, y); };
  const s = step();
  if (kind !== "flat") {
    for (let x = -180; x < 180; x += 30) {
      const [u, v] = project(x, kind === "north" ? -7 : 7);
      put(degrees(x, "E", "W"), sx(u), sy(v));
    }
    return;
  }
  const half = Math.min(180, width / 2 / scale / kx), high = Math.min(90, cy + height / 2 / scale), low = Math.max(-90, cy - height / 2 / scale), sl = graticule.lon;
  const bottom = Math.min(height - covered() - 8, sy(-90) - 6);
  for (let x = Math.ceil((cx - half) / sl) * sl; x <= cx + half; x += sl) if (sx(x) > 60 && sx(x) < width - 20) put(degrees(place(x, 0)[0], "E", "W"), sx(x), bottom);
  ctx.textAlign = "left";
  for (let y = Math.ceil(low / s) * s; y <= high + 1e-9; y += s) if (sy(y) > 20 && sy(y) < height - covered() - 20) put(degrees(y, "N", "S"), Math.max(6, sx(cx - half) + 4), sy(y) - 3);
}

function tiles() {
  const w = width / 2 / scale / kx, h = height / 2 / scale, shapes = [];
  const columns_ = Math.ceil(width / CELL) + 2, lines = Math.ceil(height / CELL) + 2, kinds = classes.colors.length;
  const ox = ((-cx * scale * kx) % CELL + CELL) % CELL, oy = ((cy * scale) % CELL + CELL) % CELL;
  const bins = new Map();
  const bin = (i) => {
    const px = sx(near(X[i])), py = sy(Y[i]);
    const cell = Math.floor((py - oy) / CELL + 1) * columns_ + Math.floor((px - ox) / CELL + 1);
    let counts = bins.get(cell);
    if (!counts) bins.set(cell, counts = new Uint32Array(kinds + 1));
    counts[classes.of[i]]++; counts[kinds]++;
  };
  for (let i = 0; i < N; i++) {
    if (hidden.has(classes.of[i])) continue;
    const around = kind === "flat" && polar.has(i), r = around ? 360 : R[i];
    if (Math.abs(Y[i] - cy) > h + r || Math.abs(near(X[i]) - cx) > w + r) continue;
    if ((around ? 90 - Math.abs(corner(i, 0)[1]) : 2 * r) * scale >= LEAST && shapes.length < MOST_SHAPES) shapes.push(i); else bin(i);
  }
  if (shapes.length === MOST_SHAPES) { shapes.forEach(bin); shapes.length = 0; }
  let most = 1;
  for (const counts of bins.values()) most = Math.max(most, counts[kinds]);
  for (const [cell, counts] of bins) {
    let best = 0;
    for (let k = 1; k < kinds; k++) if (counts[k] > counts[best]) best = k;
    const share = Math.log1p(counts[kinds]) / Math.log1p(most);
    ctx.globalAlpha = 0.45 + 0.55 * share;
    ctx.fillStyle = classes.colors[best];
    const x = (cell % columns_ - 1) * CELL + ox, y = (Math.floor(cell / columns_) - 1) * CELL + oy, gap = 0.5;
    ctx.fillRect(x + gap, y + gap, CELL - 2 * gap, CELL - 2 * gap);
  }
  ctx.globalAlpha = 1;
  const by = Array.from({ length: kinds }, () => []);
  for (const i of shapes) by[classes.of[i]].push(i);
  by.forEach((members, k) => {
    if (!members.length) return;
    ctx.beginPath();
    for (const i of members) trace(i);
    ctx.globalAlpha = 0.38; ctx.fillStyle = classes.colors[k]; ctx.fill();
    ctx.globalAlpha = members.length > 4000 ? 0.35 : 0.9; ctx.lineWidth = 0.8; ctx.strokeStyle = classes.colors[k]; ctx.stroke();
  });
  ctx.globalAlpha = 1;
  let drawn = 0;
  for (const i of shapes) if (pictures.has(i) && 2 * R[i] * scale > 26 && drawn++ < 120) picture(i);
  if (chosen !== null) mark(chosen);
}

function trace(i) {
  if (about.points) { ctx.moveTo(sx(near(X[i])) + 4, sy(Y[i])); ctx.arc(sx(near(X[i])), sy(Y[i]), 4, 0, 7); return; }
  if (kind === "flat" && polar.has(i)) return cap(i);
  const x = near(X[i]);
  for (let k = 0; k < 4; k++) {
    const px = sx(x + Q[8 * i + 2 * k]), py = sy(Y[i] + Q[8 * i + 2 * k + 1]);
    if (k) ctx.lineTo(px, py); else ctx.moveTo(px, py);
  }
  ctx.closePath();
}

// A tile around a pole, flat: from its edge, which goes through all longitudes, to the pole.
function cap(i) {
  const s = lat[i] > 0 ? 1 : -1, points = [];
  const ends = [0, 1, 2, 3].map((k) => { const [lo, la] = corner(i, k), r = 90 - s * la; return [r * Math.sin(lo * RAD), r * Math.cos(lo * RAD)]; });
  for (let k = 0; k < 4; k++) for (let t = 0; t < 1; t += 1 / 32) {
    const [a, b] = [ends[k], ends[(k + 1) % 4]], x = a[0] + (b[0] - a[0]) * t, y = a[1] + (b[1] - a[1]) * t;
    points.push([near(Math.atan2(x, y) / RAD), s * (90 - Math.hypot(x, y))]);
  }
  points.sort((a, b) => a[0] - b[0]);
  ctx.moveTo(sx(cx - 180), sy(points[0][1]));
  for (const [x, y] of points) ctx.lineTo(sx(x), sy(y));
  ctx.lineTo(sx(cx + 180), sy(points[0][1])); ctx.lineTo(sx(cx + 180), sy(90 * s)); ctx.lineTo(sx(cx - 180), sy(90 * s));
  ctx.closePath();
}

const loaded = new Map();
function image(i) {
  let found = loaded.get(i);
  if (!found) {
    found = new Image(); found.onload = draw; found.src = pictures.get(i).url;
    loaded.set(i, found);
  }
  return found;
}

function picture(i) {
  const one = pictures.get(i), shown = image(i);
  if (!one.corners || !shown.complete || !shown.naturalWidth || (kind === "flat" && polar.has(i))) return;
  const at = (k) => { const [u, v] = project(one.corners[2 * k], one.corners[2 * k + 1]); return [sx(near(u)), sy(v)]; };
  const [a, b, c] = [at(0), at(1), at(2)], iw = shown.naturalWidth, ih = shown.naturalHeight;
  ctx.save();
  ctx.transform((b[0] - a[0]) / iw, (b[1] - a[1]) / iw, (c[0] - a[0]) / ih, (c[1] - a[1]) / ih, a[0], a[1]);
  ctx.drawImage(shown, 0, 0);
  ctx.restore();
  ctx.beginPath(); trace(i);
  ctx.lineWidth = 1.6; ctx.strokeStyle = classes.colors[classes.of[i]]; ctx.stroke();
}

function mark(i) {
  ctx.lineWidth = 4; ctx.strokeStyle = "rgba(255,255,255,0.9)"; ctx.beginPath(); trace(i); ctx.stroke();
  ctx.lineWidth = 2; ctx.strokeStyle = "#111"; ctx.beginPath(); trace(i); ctx.stroke();
  if (2 * R[i] * scale < 16) {
    const x = sx(near(X[i])), y = sy(Y[i]);
    for (const [w, c] of [[5, "rgba(255,255,255,0.9)"], [2, "#111"]]) { ctx.lineWidth = w; ctx.strokeStyle = c; ctx.beginPath(); ctx.arc(x, y, 11, 0, 7); ctx.stroke(); }
  }
}

function foot() {
  // east and west, amid the view: what a degree is there, over how wide it is drawn
  const across = kind === "flat" ? KM * Math.max(0.02, Math.cos(Math.min(89, Math.abs(cy)) * RAD)) / kx : KM;
  const target = 90 / scale * across;
  const nice = [1, 2, 5].flatMap((m) => Array.from({ length: 9 }, (_, n) => m * 10 ** (n - 4))).sort((a, b) => a - b).filter((v) => v <= target).pop() ?? 1e-4;
  const bar = element("i"); bar.style.width = `${nice / across * scale}px`;
  $("scale").replaceChildren(bar, document.createTextNode(nice >= 1 ? `${nice.toLocaleString("en")} km` : `${Math.round(nice * 1000)} m`));
}

// ------------------------------------------------------------------------------------------------ moving about

function resize() {
  ratio = window.devicePixelRatio || 1;
  width = window.innerWidth; height = window.innerHeight;
  canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
  limit(); draw();
}

function limit() {
  const least = kind === "flat" ? Math.min(width / 372, (height - covered()) / 190) : Math.min(width, height - covered()) / 210;
  scale = Math.min(4e6, Math.max(least, scale));
  cy = Math.max(kind === "flat" ? -90 : -100, Math.min(kind === "flat" ? 90 : 100, cy));
  if (kind === "flat") cx = ((cx + 180) % 360 + 360) % 360 - 180; else cx = Math.max(-100, Math.min(100, cx));
}

const under = (px, py) => [cx + (px - width / 2) / scale / kx, cy - (py - height / 2) / scale];

function zoom(factor, px = width / 2, py = height / 2) {
  const [x, y] = under(px, py);
  scale *= factor;
  limit();
  for (let n = 0; n < 3; n++) { kx = squeeze(); cx = x - (px - width / 2) / scale / kx; cy = y + (py - height / 2) / scale; limit(); }
  draw();
}

function fit(indices) {
  // the narrowest arc of longitudes that holds them: all but the widest gap
  const filled = new Uint8Array(360);
  let low = Infinity, high = -Infinity, left = Infinity, right = -Infinity;
  const each = (indices ?? Array.from({ length: N }, (_, i) => i)).filter((i) => Y[i] < 1e6);
  if (!each.length) return world();
  for (const i of each) {
    filled[Math.floor(((lon[i] + 180) % 360 + 360) % 360)] = 1;
    low = Math.min(low, Y[i] - R[i]); high = Math.max(high, Y[i] + R[i]); left = Math.min(left, X[i] - R[i]); right = Math.max(right, X[i] + R[i]);
  }
  if (kind === "flat") {
    let gap = 0, end = 0, run = 0;
    for (let k = 0; k < 720; k++) { run = filled[k % 360] ? 0 : run + 1; if (run > gap && run <= 360) { gap = run; end = k % 360; } }
    const start = (end + 1) % 360 - 180, span = 360 - gap;
    if (span > 200) return world();
    cx = start + span / 2;
    left = Infinity; right = -Infinity;
    for (const i of each) { const x = near(X[i]); left = Math.min(left, x - R[i]); right = Math.max(right, x + R[i]); }
  }
  cx = (left + right) / 2; cy = (low + high) / 2;
  for (let n = 0; n < 4; n++) { kx = squeeze(); scale = Math.min((width - 80) / Math.max(right - left, 1e-4) / kx, (height - covered() - 60) / Math.max(high - low, 1e-4)) * 0.9; limit(); }
  cx = (left + right) / 2; cy = (low + high) / 2 - covered() / 2 / scale; limit();
  draw();
}

function world() { cx = 0; cy = 0; scale = 0; limit(); cy = -covered() / 2 / scale; draw(); }

// pixels that strip and foot cover
function covered() { return about.pictures.length ? 118 : 30; }

function show(i, closer) {
  if (closer && Y[i] > 1e6) turn("flat");
  if (closer) {
    cx = X[i]; cy = Y[i];
    scale = Math.max(scale, Math.min(width, height) * 0.16 / Math.max(2 * R[i], 1e-6));
    cy -= covered() / 2 / scale;
    limit();
  }
  open_([i], 0);
}

// --------------------------------------------------------------------------------------------- what is clicked

let chosen = null;

function hits(px, py) {
  const found = [], [x, y] = under(px, py), close = 7 / scale;
  let nearest = null, least = close;
  for (let i = 0; i < N; i++) {
    if (hidden.has(classes.of[i])) continue;
    const dx = x - near(X[i]), dy = y - Y[i], r = R[i] + close;
    if (Math.abs(dx) * kx > r + close || Math.abs(dy) > r || Math.abs(dx) > r / Math.min(1, kx)) continue;
    let inside = false;
    for (let k = 0, j = 3; k < 4; j = k++) {
      const ax = Q[8 * i + 2 * k], ay = Q[8 * i + 2 * k + 1], bx = Q[8 * i + 2 * j], by = Q[8 * i + 2 * j + 1];
      if ((ay > dy) !== (by > dy) && dx < (bx - ax) * (dy - ay) / (by - ay) + ax) inside = !inside;
    }
    if (inside) found.push(i);
    const away = Math.hypot(dx * kx, dy);
    if (away < least) { least = away; nearest = i; }
  }
  if (found.length) return found.sort((a, b) => pictures.has(b) - pictures.has(a) || a - b);
  if (nearest === null) return [];
  // too small to be hit: what lies there
  const together = [];
  for (let i = 0; i < N; i++) if (!hidden.has(classes.of[i]) && Math.abs(near(X[i]) - near(X[nearest])) * kx < close && Math.abs(Y[i] - Y[nearest]) < close) together.push(i);
  return together.sort((a, b) => pictures.has(b) - pictures.has(a) || a - b);
}

const UNITS = { mean_db: "dB", std_db: "dB", structure_db: "dB", spacing_x_m: "m", lo_db: "dB", hi_db: "dB" };
const WORDS = { enl: "looks (ENL)", spacing_x_m: "spacing", std_db: "deviation", mean_db: "mean", structure_db: "structure", orbit_direction: "orbit", near_evaluation: "near evaluation", valid_fraction: "valid share", datetime: "time" };

function open_(list, at) {
  const box = $("tile"), i = list[at];
  chosen = i;
  box.hidden = false;
  const head = element("header");
  head.append(element("span", list.length > 1 ? `${(at + 1).toLocaleString("en")} of ${list.length.toLocaleString("en")} here` : "tile"));
  const go = (by) => open_(list, (at + by + list.length) % list.length);
  if (list.length > 1) for (const [words, by] of [["‹", -1], ["›", 1]]) { const one = element("button", words); one.onclick = () => go(by); head.append(one); }
  const closer = element("button", "closer"); closer.onclick = () => { cx = X[i]; cy = Y[i]; scale = Math.max(scale * 2, Math.min(width, height) * 0.16 / Math.max(2 * R[i], 1e-6)); limit(); draw(); };
  const shut = element("button", "×"); shut.title = "close"; shut.onclick = close_;
  head.append(closer, shut);
  const body = element("div", null, "body");
  if (pictures.has(i)) { const shown = element("img"); shown.src = pictures.get(i).url; shown.alt = "the tile"; body.append(shown); }
  const key = keyOf(i);
  body.append(element("h2", key));
  const table = element("table");
  const row = (name, value) => { const line = element("tr"); line.append(element("td", name), element("td", value)); table.append(line); };
  row("place", `${degrees(lat[i], "N", "S")}, ${degrees(lon[i], "E", "W")}`);
  for (const name of Object.keys(columns)) {
    const value = text(name, i);
    if (value === null || value === "false" || columns[name].derived || name === "row" || name === "col") continue;
    row(WORDS[name] ?? name.replaceAll("_", " "), UNITS[name] ? `${value} ${UNITS[name]}` : value);
  }
  if (columns.row && columns.col) row("row, column", `${columns.row.values[i]}, ${columns.col.values[i]}`);
  body.append(table);
  if (key && !key.includes("…") && !/[\u0000-\u001f\u007f]/.test(key)) {
    body.append(element("p", pictures.has(i) ? "The tile itself, at its place:" : "No picture of it is in this page. To get it, at its place:"));
    const quoted = /^[\w@%+=:,./-]+$/.test(key) ? key : `'${key.replaceAll("'", "'\\''")}'`;
    body.append(element("code", `sarsense shards get ${about.address} ${quoted} -o tile.tif`));
  } else body.append(element("p", "Its key is too long, or holds characters that cannot be shown."));
  box.replaceChildren(head, body);
  box.scrollTop = 0;
  for (const one of $("strip").children) one.classList.toggle("on", Number(one.dataset.tile) === i);
  draw();
}

function close_() { chosen = null; $("tile").hidden = true; draw(); }

// ------------------------------------------------------------------------------------------------------- begin

function listen() {
  const held = new Map();
  let moved = 0, apart = 0;
  canvas.addEventListener("pointerdown", (e) => { canvas.setPointerCapture(e.pointerId); held.set(e.pointerId, [e.clientX, e.clientY]); moved = 0; apart = 0; canvas.classList.add("moving"); });
  canvas.addEventListener("pointermove", (e) => {
    const [x, y] = place(...under(e.clientX, e.clientY));
    $("cursor").textContent = Math.abs(y) <= 90 ? `${degrees(y, "N", "S")}  ${degrees(x, "E", "W")}` : "";
    const before = held.get(e.pointerId);
    if (!before) return;
    held.set(e.pointerId, [e.clientX, e.clientY]);
    if (held.size === 1) {
      cx -= (e.clientX - before[0]) / scale / kx; cy += (e.clientY - before[1]) / scale;
      moved += Math.abs(e.clientX - before[0]) + Math.abs(e.clientY - before[1]);
      limit(); draw();
    } else if (held.size === 2) {
      const [a, b] = [...held.values()], now = Math.hypot(a[0] - b[0], a[1] - b[1]);
      if (apart) zoom(now / apart, (a[0] + b[0]) / 2, (a[1] + b[1]) / 2);
      apart = now; moved = 99;
    }
  });
  const up = (e) => {
    const was = held.delete(e.pointerId);
    if (!held.size) canvas.classList.remove("moving");
    if (was && e.type === "pointerup" && moved < 5) { const found = hits(e.clientX, e.clientY); if (found.length) open_(found, 0); else close_(); }
  };
  canvas.addEventListener("pointerup", up);
  canvas.addEventListener("pointercancel", up);
  canvas.addEventListener("wheel", (e) => { e.preventDefault(); zoom(Math.exp(-e.deltaY * (e.deltaMode ? 0.05 : 0.0016)), e.clientX, e.clientY); }, { passive: false });
  canvas.addEventListener("dblclick", (e) => zoom(2, e.clientX, e.clientY));
  window.addEventListener("keydown", (e) => {
    if (e.target.tagName === "SELECT") return;
    const by = 60 / scale, move = { ArrowLeft: [-by / kx, 0], ArrowRight: [by / kx, 0], ArrowUp: [0, by], ArrowDown: [0, -by] }[e.key];
    if (move) { cx += move[0]; cy += move[1]; limit(); draw(); } else if (e.key === "+" || e.key === "=") zoom(1.6); else if (e.key === "-") zoom(1 / 1.6); else if (e.key === "Escape") close_(); else if (e.key === "0") fit();
  });
  window.addEventListener("resize", resize);
  $("in").onclick = () => zoom(2);
  $("out").onclick = () => zoom(0.5);
  $("all").onclick = () => fit();
  $("view").onchange = (e) => turn(e.target.value);
  $("color").onchange = (e) => { choose(e.target.value); draw(); };
}

function turn(name) {
  const [x, y] = place(cx, cy);
  kind = name; $("view").value = name;
  lay();
  if (kind === "flat") { cx = x; cy = y; limit(); draw(); } else world();
}

function tell() {
  const n = (value) => value.toLocaleString("en"), title = document.querySelector("h1");
  title.textContent = about.name;
  if (about.version) title.append(" ", element("small", about.version));
  $("counts").textContent = `${n(N)} tiles on the map` + (about.unplaced ? `, ${n(about.unplaced)} have no place` : "");
  const notes = [];
  if (about.where) notes.push(`of those where ${about.where}`);
  if (about.points && N) notes.push("footprints are not known: dots are middles");
  if (about.unknown.length) notes.push(`nothing says ${about.unknown.slice(0, 12).join(", ")}`);
  if (about.unreadable) notes.push(`${n(about.unreadable)} pictures could not be read`);
  if (!N) notes.push("nothing to draw: no tile has a place");
  $("notes").textContent = notes.join("; ");
  if (about.digest) title.title = `digest ${about.digest}`;
  $("credit").textContent = "Coastline: Natural Earth 1:50m, public domain, to about 5 km. Drag, scroll, click; + − 0 Esc.";
}

function offer() {
  const select = $("color");
  for (const name of Object.keys(columns).filter((one) => !["row", "col"].includes(one))) {
    const one = element("option", WORDS[name] ?? name.replaceAll("_", " ")); one.value = name; select.append(one);
  }
  if (about.color && columns[about.color]) select.value = about.color; else if (!select.options.length) $("key").hidden = true;
}

function strip() {
  const box = $("strip");
  if (!about.pictures.length) return;
  box.hidden = false; document.body.classList.add("strip");
  for (const one of about.pictures) {
    const shown = element("img"); shown.loading = "lazy"; shown.src = one.url; shown.alt = "a tile"; shown.dataset.tile = one.tile;
    shown.title = "show it on the map"; shown.onclick = () => show(one.tile, true);
    box.append(shown);
  }
  box.addEventListener("wheel", (e) => { if (!e.deltaX) { box.scrollLeft += e.deltaY; e.preventDefault(); } }, { passive: false });
}

// #at=lon,lat,pixels a degree&view=north&color=enl&tile=3: where a link opens the page
function linked() {
  const said = new URLSearchParams(location.hash.slice(1));
  if (["north", "south"].includes(said.get("view"))) turn(said.get("view"));
  const name = said.get("color");
  if (name && Object.hasOwn(columns, name)) { $("color").value = name; choose(name); }
  const at = (said.get("at") ?? "").split(",").map(Number);
  if (at.length === 3 && at.every(Number.isFinite)) { [cx, cy] = project(at[0], at[1]); scale = at[2]; limit(); } else if (kind === "flat") fit();
  const tile = Number(said.get("tile") ?? NaN);
  if (Number.isInteger(tile) && tile >= 0 && tile < N) show(tile, !said.has("at"));
  draw();
}

async function begin() {
  if (typeof DecompressionStream === "undefined") throw new Error("this browser is too old for the page: it needs DecompressionStream (2023)");
  arrays = await unpack("tiles");
  decode(); shore(); lay(); tell(); offer(); strip();
  choose(about.color && columns[about.color] ? about.color : Object.keys(columns)[0]);
  listen(); resize(); linked();
  window.addEventListener("hashchange", linked);
  document.body.dataset.ready = String(N);
}

begin().catch((error) => { $("counts").textContent = `The map cannot be drawn: ${error.message}`; throw error; });
