"""Runs a program that nobody has read in a child process with limits.

The child is a supervisor (`supervisor`), which forks the program's process (`worker`), isolated by
namespaces of its own where the kernel allows it (`namespaces`); `runner` is the caller's side.
"""
