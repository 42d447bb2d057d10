"""All benchmarks: `make bench`, or `python -m benchmarks`. Tables on standard output."""

from benchmarks import build, stream

build.main()
stream.main()
