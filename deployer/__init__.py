"""deployer: zero-downtime deploys with rolling restarts."""

__version__ = "0.1.0"
