"""From batches to scores: views and counts on the devices, tables and files on the host."""
