"""Layouts of labelled data sets: which files are a place, what its label values or colours mean, and which places the
set itself tells apart. Knows names of files and folders; reads no image.
"""

from __future__ import annotations

from collections.abc import Mapping

from dic3l.evaluate.layouts.files import Codes, Colour, ImageFile, Layout, PlaceFiles, SetFiles
from dic3l.evaluate.layouts.folder import class_folders, folder_files
from dic3l.evaluate.layouts.public import (
    air_polsar_seg_files,
    dfc2020_files,
    fusar_map_files,
    gaofen_files,
    ombria_files,
    road_files,
    sen1floods11_files,
    terramind_files,
    whu_opt_sar_files,
)

LAYOUTS: Mapping[str, Layout] = {
    "folder": Layout("scenes/ and labels/ (or images/ and masks/), paired by name", folder_files),
    "ombria": Layout("OMBRIA: BEFORE, AFTER and MASK pictures of floods", ombria_files),
    "sen1floods11": Layout("Sen1Floods11: S1Hand and LabelHand, water", sen1floods11_files),
    "terramind": Layout("TerraMind's examples: S1RTC and LULC, land cover", terramind_files),
    "air-polsar-seg": Layout("AIR-PolSAR-Seg: Gaofen-3, four polarisations, terrain in colours", air_polsar_seg_files),
    "gaofen": Layout("2020 Gaofen Challenge: 1_HH.tiff ... 1_gt.png, terrain in colours", gaofen_files),
    "fusar-map": Layout("FUSAR-Map: SAR_1024 and Labels_1024, land cover in colours", fusar_map_files),
    "whu-opt-sar": Layout("WHU-OPT-SAR: sar and lbl, land use", whu_opt_sar_files),
    "dfc2020": Layout("DFC2020: s1_0 and dfc_0, simplified IGBP land cover", dfc2020_files),
    "roads": Layout("road masks: SAR-Intensity of SpaceNet 6, or images/, and roads/ or masks/", road_files),
}
CLASS_FOLDERS_HELP = "a folder a class: images with one label each"

__all__ = [
    "CLASS_FOLDERS_HELP",
    "LAYOUTS",
    "Codes",
    "Colour",
    "ImageFile",
    "Layout",
    "PlaceFiles",
    "SetFiles",
    "air_polsar_seg_files",
    "class_folders",
    "dfc2020_files",
    "folder_files",
    "fusar_map_files",
    "gaofen_files",
    "ombria_files",
    "road_files",
    "sen1floods11_files",
    "terramind_files",
    "whu_opt_sar_files",
]
