"""Compiling quickly: most of what tests compile runs once, and programs give the same numbers but for rounding."""

# For XLA on a CPU: LLVM optimises nothing, and fusions go around MLIR.
XLA_FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
# Where programs run for longer than compiling them takes, or two programs' sums of float32 may differ little.
XLA_FLAGS_OF_LONG_RUNS = XLA_FLAGS.replace("level=0", "level=1")
COMPILER_OPTIONS_OF_LONG_RUNS = {"xla_backend_optimization_level": 1}
