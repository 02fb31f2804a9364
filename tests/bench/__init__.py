"""How quick the product is, each figure beside a floor of the same run: `make bench`, docs/benchmarks.md."""
