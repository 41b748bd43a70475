"""Fixtures of clip stores for the tests of preparation."""

from support.stores import store, videos  # noqa: F401  fixtures
