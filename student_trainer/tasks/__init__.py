"""Benchmark tasks: anything that lm-eval knows, and code tasks whose programs run in a sandbox."""
