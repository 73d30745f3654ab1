"""What the command line does: one module for each job, from a request to a file."""
