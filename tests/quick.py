"""Compiling quickly: most of what tests compile runs once, and programs give the same numbers either way."""

# For XLA on a CPU: LLVM optimises nothing, and fusions go around MLIR.
XLA_FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
