"""To look into shards: what lies in a corpus, or in tars of other programs, is listed, counted, shown, mapped, checked.

`source` opens what was named, `query` asks its table, `tile` reads pixels; the others draw and write what they found.
Tables are read, not tars, wherever a corpus has tables.
"""
