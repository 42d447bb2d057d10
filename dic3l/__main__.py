"""`python -m dic3l ...`, so that `torchrun -m dic3l pretrain ...` works."""

from cli import run_dic3l

if __name__ == "__main__":
    run_dic3l()
