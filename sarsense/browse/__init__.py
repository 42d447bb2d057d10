"""`sarsense shards browse`: a page, served to this machine alone, on which a person looks through tiles and flags them.

`table` asks the table of tiles, `pixels` makes pictures of one, `near` finds those that are like it, `flags` keeps the
list of what is bad; `answers` turns a request into an answer of these, and knows no socket; `server` alone does.
"""
