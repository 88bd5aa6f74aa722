"""What the machine is and can do: device, dtypes, CPU, memory, stopwatch."""
