"""sarsense/report/coastline.json from Natural Earth's land at 1:50 million, as the npm package world-atlas has it.

    npm pack world-atlas@2.0.2 && tar xzf world-atlas-2.0.2.tgz package/land-50m.json
    python -m docs.coastline package/land-50m.json

Natural Earth (4.1.0) is in the public domain; world-atlas (ISC licence) holds it as TopoJSON, whose arcs are decoded
here, cut at 180 degrees, simplified to a twentieth of a degree and rounded to a hundredth. Of islands, those under
12 km across are left out. A ring is its first point and then steps: lon, lat, lon, lat, ..., in hundredths of a degree.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from sarsense.inspection.ground import for_gis

OUT = Path(__file__).parent.parent / "sarsense" / "report" / "coastline.json"
UNIT, TOLERANCE, SMALLEST = 0.01, 0.05, 0.1


def outlines(topology: dict[str, Any]) -> list[np.ndarray]:
    """Rings of the object `land`, lakes too, in degrees (topojson-specification, 2.1.4 and 2.2), not cut at 180."""
    scale, shift = (np.array(topology["transform"][name]) for name in ("scale", "translate"))
    arcs = [np.cumsum(arc, axis=0) * scale + shift for arc in topology["arcs"]]

    def ring(numbers: list[int]) -> np.ndarray:
        parts = [arcs[n] if n >= 0 else arcs[~n][::-1] for n in numbers]
        return np.concatenate([parts[0], *(part[1:] for part in parts[1:])])

    geometries = topology["objects"]["land"]["geometries"]
    return [ring(numbers) for one in geometries for polygon in one["arcs"] for numbers in polygon]


def simplified(outline: np.ndarray) -> list[list[int]]:
    """Rings of whole hundredths of a degree; none of a small island."""
    polygons = shapely.get_parts(shapely.make_valid(for_gis(shapely.Polygon(outline))))
    west, south, east, north = shapely.total_bounds(polygons)
    if max((east - west) * np.cos(np.radians((south + north) / 2)), north - south) < SMALLEST:
        return []
    rings = shapely.get_rings(shapely.simplify(polygons, TOLERANCE))
    points = [np.round(shapely.get_coordinates(ring) / UNIT).astype(int) for ring in rings]
    return [[*ring[0].tolist(), *np.diff(ring, axis=0).ravel().tolist()] for ring in points if len(ring) > 3]


def main() -> None:
    topology = json.loads(Path(sys.argv[1]).read_text())
    rings = [ring for outline in outlines(topology) for ring in simplified(outline)]
    rings.sort(key=lambda ring: (-len(ring), ring))
    lines = ",\n".join(json.dumps(ring, separators=(",", ":")) for ring in rings)
    source = "Natural Earth 4.1.0, land 1:50m, public domain; by way of world-atlas 2.0.2; made by docs/coastline.py"
    OUT.write_text(f'{{"source":{json.dumps(source)},\n"unit":{UNIT},\n"rings":[\n{lines}\n]}}\n')
    points = sum(len(ring) // 2 for ring in rings)
    print(f"{OUT}: {len(rings)} rings, {points} points, {OUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
