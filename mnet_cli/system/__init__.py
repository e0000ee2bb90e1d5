"""What every other package stands on: files, hashes, downloads, signals, the machine."""
