"""Dask: options, client, scheduler, workers, tasks, memory."""
