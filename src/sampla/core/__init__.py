"""The lowest floor: data, parameters, blocks of vectors, memory, noise and files. It contains no statistics."""
