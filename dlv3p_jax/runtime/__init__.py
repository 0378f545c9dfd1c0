"""What every command stands on: flags and their errors, the configuration, devices, processes, files."""
