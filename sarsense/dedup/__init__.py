"""What of a corpus repeats something else of it: by content, by place, by speckle, by look.

    exact          the same values: a scene delivered twice, a tile cut twice
    geographic     the same acquisition on the same ground: slices, another product of one pass, another grid
    speckle        the same acquisition by its speckle, where no metadata says so
    perceptual     imagery without metadata that looks the same once despeckled
    leakage        ground of evaluation sets

Which of several is kept never depends on order, number of workers or arrival: docs/duplicates.md has the rules.
"""
