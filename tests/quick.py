"""Compiling quickly, for tests that compare programs with each other: on a CPU, LLVM takes most of the time."""

import functools

import jax

COMPILER_OPTIONS = {"xla_backend_optimization_level": 0}

jit = functools.partial(jax.jit, compiler_options=COMPILER_OPTIONS)
