"""All benchmarks: `make bench`, or `python -m benchmarks`. Tables on standard output."""

from benchmarks import build, ingest, stream

build.main([])
ingest.main()
stream.main()
