"""`python -m fastlane_core` is `fastlane`."""

from fastlane_core.cli.main import main

if __name__ == "__main__":
    main()
