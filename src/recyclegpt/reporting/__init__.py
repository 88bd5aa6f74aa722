"""What came out, as figures and reports. Reads files and plain values only; imports nothing else of the package."""
