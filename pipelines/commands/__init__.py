"""The commands of the two command lines, a function each: parse, call, print. `cli.py` names them."""
