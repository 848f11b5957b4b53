"""Speed and memory benchmarks against the alternatives; import from the modules."""
