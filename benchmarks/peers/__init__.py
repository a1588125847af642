"""What people would use instead of Tercet, measured in the same run: `python -m benchmarks.peers --help`."""
