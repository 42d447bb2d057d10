// The two maps beside a tile: all tiles of the corpus, and the outline of this one.
import { ask } from "/page.js";

const SVG = "http://www.w3.org/2000/svg";

/** An element of SVG; strings among its children become text. */
export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
  node.append(...children);
  return node;
}

let coasts = null;

/** Rings of land, lon and lat; asked for once. In the file a ring is its first point, then steps, in units. */
function coastline() {
  coasts ??= ask("/coastline.json").then(({ unit, rings }) => rings.map((steps) => {
    const ring = [];
    let x = 0, y = 0;
    for (let i = 0; i < steps.length; i += 2) {
      x += steps[i];
      y += steps[i + 1];
      ring.push([x * unit, y * unit]);
    }
    return ring;
  })).catch(() => []);
  return coasts;
}

/** Where all tiles of the corpus lie, and this one. */
export function world(places, lon, lat) {
  const xs = [lon, ...places.map(([x]) => x)], ys = [lat, ...places.map(([, y]) => y)];
  const map = new Chart(Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys), 1.2, 12);
  const coast = svg("path", { class: "coast" });
  map.picture.append(coast);
  coastline().then((rings) => coast.setAttribute("d", rings.map((ring) => `M${ring.map((one) => map.at(one).map((c) => c.toFixed(1)).join(" ")).join("L")}Z`).join("")));
  const most = Math.log(1 + Math.max(1, ...places.map(([, , n]) => n)));
  for (const [x, y, n] of places) {
    const [cx, cy] = map.at([x, y]);
    map.picture.append(svg("circle", { class: "dot", cx, cy, r: 1.4 + (1.6 * Math.log(1 + n)) / most }));
  }
  const [cx, cy] = map.at([lon, lat]);
  map.picture.append(svg("circle", { class: "here", cx, cy, r: 7 }), svg("title", {}, "All tiles of the corpus, to a tenth of a degree, and this one"));
  return map.picture;
}

/** The outline of the tile, with a scale. */
export function around(ring) {
  const first = ring[0][0];
  const points = ring.map(([x, y]) => [x - first > 180 ? x - 360 : x - first < -180 ? x + 360 : x, y]); // over 180 degrees
  const xs = points.map(([x]) => x), ys = points.map(([, y]) => y);
  const map = new Chart(Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys), 2.2, 1e-5);
  map.picture.append(svg("polygon", { class: "tile-ring", points: points.map((one) => map.at(one).map((c) => c.toFixed(2)).join(",")).join(" ") }));
  const metre = map.k / 111195; // pixels a metre, along a meridian
  const bar = nice(70 / metre);
  map.picture.append(svg("line", { class: "scale", x1: WIDE - 12 - bar * metre, x2: WIDE - 12, y1: 16, y2: 16 }), svg("text", { x: WIDE - 12, y: 32, "text-anchor": "end" }, bar >= 1000 ? `${bar / 1000} km` : `${bar} m`));
  return map.picture;
}

const WIDE = 356, TALL = 196;

/** An upright map of a box of degrees, with a graticule: true to scale in its middle. */
class Chart {
  constructor(west, east, south, north, times, least) {
    this.middle = [(west + east) / 2, (south + north) / 2];
    const far = Math.min(Math.max(...[south, north].map(Math.abs)), 85);
    this.across = east - west > 60 ? 1 : Math.max(Math.cos((Math.min(Math.abs(this.middle[1]), far) * Math.PI) / 180), 0.02);
    const size = Math.max((east - west) * this.across * (TALL / WIDE), north - south, least) * times;
    this.k = TALL / Math.min(size, 180);
    this.picture = svg("svg", { viewBox: `0 0 ${WIDE} ${TALL}`, role: "img" });
    this.graticule();
  }

  at([x, y]) {
    return [WIDE / 2 + (x - this.middle[0]) * this.across * this.k, TALL / 2 - (y - this.middle[1]) * this.k];
  }

  graticule() {
    const halves = [WIDE / 2 / this.k / this.across, TALL / 2 / this.k];
    [0, 1].forEach((axis) => {
      const step = nice(halves[axis] / (axis ? 1.4 : 1.8), halves[axis] > 8);
      const digits = Math.max(0, Math.ceil(-Math.log10(step) - 1e-9));
      for (let value = Math.ceil((this.middle[axis] - halves[axis]) / step) * step; value < this.middle[axis] + halves[axis]; value += step) {
        if (axis && Math.abs(value) > 90 + 1e-9) continue;
        const [x, y] = this.at(axis ? [this.middle[0], value] : [value, this.middle[1]]);
        this.picture.append(axis ? svg("line", { class: "grat", x1: 0, x2: WIDE, y1: y, y2: y }) : svg("line", { class: "grat", x1: x, x2: x, y1: 0, y2: TALL }));
        if (axis ? y > TALL - 26 || y < 14 : x > WIDE - 48 || x < 50) continue;
        this.picture.append(axis ? svg("text", { x: 5, y: y - 4 }, degrees(value, digits, "S", "N")) : svg("text", { x: x + 4, y: TALL - 6 }, degrees(((value + 540) % 360) - 180, digits, "W", "E")));
      }
    });
  }
}

function degrees(value, digits, below, above) {
  const figure = Math.abs(value).toFixed(digits);
  return `${figure}°${Number(figure) === 0 ? "" : ` ${value < 0 ? below : above}`}`;
}

/** 1, 2 or 5 times a power of ten, at most the value; of large angles 10, 30, 60. */
function nice(value, angle = false) {
  if (angle && value >= 10) return value >= 60 ? 60 : value >= 30 ? 30 : 10;
  const power = 10 ** Math.floor(Math.log10(value));
  const times = value / power;
  return (times >= 5 ? 5 : times >= 2 ? 2 : 1) * power;
}
