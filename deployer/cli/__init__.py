"""The command line: a viewer of the control API. Nothing here changes a worker by itself."""
