"""`python -m ovss_bench` is `ovss`."""

from ovss_bench.cli.main import main

if __name__ == "__main__":
    main()
