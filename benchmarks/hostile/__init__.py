"""Attacks on every kind of input that comes from others: recipes, data, run directories, repositories, servers.

An *attempt* damages one valid input in one way and gives it to real commands, in a process forked from one that has
imported everything, with limits of time and memory, a home of its own, and traps for what must not happen.
"""
