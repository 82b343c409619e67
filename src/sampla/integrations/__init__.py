"""Small adapters between sampla and other libraries, none of which sampla needs: each module imports its own."""
