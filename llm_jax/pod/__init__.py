"""Multi-host training: planning a run, joining its processes, submitting it as a job."""
