"""Faults on purpose, against a real fleet: each scenario is a file with what is injected, expected and measured."""
