"""`python -m tap_hf` is `tap-hf`, for launchers that start Python modules."""

from tap_hf.cli.app import main

if __name__ == "__main__":
    main()
