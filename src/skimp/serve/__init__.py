"""Answering many requests at once: jobs, the scheduler that runs them, and the server before it."""
