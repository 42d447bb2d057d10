"""`python -m sarsense`: the same as the console script."""

from cli import run_sarsense

if __name__ == "__main__":
    run_sarsense()
