from support.stores import store, videos  # noqa: F401  fixtures
