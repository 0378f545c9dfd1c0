"""Pages that say how a run went, or how runs differ."""
