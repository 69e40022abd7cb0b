"""How XLA compiles the programs of tests: they run for milliseconds, and compiling them is half of what tests cost."""

from importlib.metadata import version

OLDER_EMITTERS = version("jaxlib").startswith("0.10.")  # which XLA had beside those of today: half the time
COMPILED_FAST = "--xla_backend_optimization_level=0" + " --xla_cpu_use_fusion_emitters=false" * OLDER_EMITTERS
