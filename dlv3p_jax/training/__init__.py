"""The host loop, the compiled step, and what it minimises."""
