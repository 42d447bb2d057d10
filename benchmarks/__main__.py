"""All benchmarks: `make bench`, or `python -m benchmarks`. Tables on standard output."""

from benchmarks import build, ingest, inspection, stream

build.main([])
ingest.main()
stream.main()
inspection.main([])
