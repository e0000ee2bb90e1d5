"""Files, hashes, downloads, signals and the machine: no domain code."""
