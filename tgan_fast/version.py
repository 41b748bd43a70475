"""The version of the package."""

from importlib import metadata


def package_version() -> str:
    """Return the installed version, or "unknown" in a source tree that was never installed."""
    try:
        return metadata.version("tgan_fast")
    except metadata.PackageNotFoundError:
        return "unknown"
