"""Real servers for the tests, one module each.

Every server is had in this order: given by an environment variable, already on this machine, started for the test run,
or the test is skipped with a reason. With REQUIRE_SERVICES=1 a missing server is a failure instead.

    python -m tests.services install    install what Debian has of them, as root
    python -m tests.services docker     start a Docker engine and print its address, until Ctrl-C
"""
