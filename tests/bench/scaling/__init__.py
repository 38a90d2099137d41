"""What a machine carries: ``python -m tests.bench.scaling`` measures, and writes docs/reports/scaling-measured.md.

Real processes on the loopback address: API, workers, and Redis as the roles configure it. They and the load share the
machine's processors, so rates are what a single small machine does. Prices are CPU seconds of single processes, which
other work on the machine hardly changes; rates stand beside a reference of the same minutes.
"""
