"""What everything stands on: data, parameters, blocks of vectors, memory, noise, files. No statistics."""
