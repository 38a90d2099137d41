"""The guide's way, ours and other libraries in the same run: ``make bench`` writes docs/reports/performance.md."""
