"""Compiling quickly: most of what tests compile runs once, and programs give the same numbers either way."""

# For XLA on a CPU: LLVM at level 1 takes half the time, and fusions go around MLIR.
XLA_FLAGS = "--xla_backend_optimization_level=1 --xla_cpu_use_fusion_emitters=false"
COMPILER_OPTIONS = {"xla_backend_optimization_level": 0}


def jit(function, **options):
    """`jax.jit` for programs that run once."""
    import jax

    return jax.jit(function, compiler_options=COMPILER_OPTIONS, **options)
